"""Storage: open formats, atomic commits and immutable versions."""

if not __name__.startswith("hyco."):
    from hyco.old_names import answer

    answer(__name__)
