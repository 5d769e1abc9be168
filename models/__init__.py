"""Torch modules and grounding backends; no file formats of the pipeline, no flags, no schedulers."""
