"""The embedded world: captioned, boxed, hierarchical scenes and a small grounder trained on them."""
