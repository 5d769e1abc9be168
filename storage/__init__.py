"""Storage: open formats, atomic commits and immutable versions."""
