"""Torch modules and grounding backends; no file formats of the pipeline, no flags, no schedulers."""

if not __name__.startswith("hyco."):
    from hyco.old_names import answer

    answer(__name__)
