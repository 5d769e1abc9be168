"""The embedded world: captioned, boxed, hierarchical scenes and a small grounder trained on them."""

if not __name__.startswith("hyco."):
    from hyco.old_names import answer

    answer(__name__)
