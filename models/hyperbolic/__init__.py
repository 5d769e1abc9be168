"""Hyperbolic geometry and layers: pure functions on plain tensors, ordinary modules; imports torch and math only.

lorentz   the hyperboloid: distances, exponential maps, transport, gyrovector operations, entailment cones
poincare  the Poincare ball: the same operations
isometry  maps between the hyperboloid, the Poincare ball and the Klein ball
mean      midpoints, Frechet mean and variance
product   products of factors, each with its own curvature
wrapped_normal  the wrapped normal distribution
curvature a curvature as a module, fixed or learnable
nn        layers under torch.nn's names
optim     Riemannian SGD and Adam
migrate   weights trained with HypLL

docs/mathematics.md lists symbol, function, formula and source; docs/coming-from-hypll.md lists the names of HypLL.
"""
