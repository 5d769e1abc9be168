"""Hyperbolic geometry and layers: pure functions on plain tensors, ordinary modules; imports torch and math
alone.

lorentz, poincare   the hyperboloid and the ball: distances, exponential maps, transport, gyrovector
operations, cones isometry, mean      maps between the charts; midpoints, Frechet mean and variance product,
curvature  factors with curvatures of their own; a learnable curvature nn, optim           layers under
torch.nn's names; Riemannian SGD and Adam migrate             weights trained with HypLL

docs/mathematics.md gives symbol, function, formula and source; docs/coming-from-hypll.md the names of
HypLL's users.
"""
