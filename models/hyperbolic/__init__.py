"""Hyperbolic geometry and layers: pure functions on plain tensors and ordinary modules; imports torch and
math alone."""
