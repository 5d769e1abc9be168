"""Where bytes rest: open formats, atomic commits and immutable versions."""
