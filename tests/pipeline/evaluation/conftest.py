"""Shapes and types of what computes are checked while these tests run."""

from jaxtyping import install_import_hook

MODULES = (
    "data",
    "scenes",
    "embedded",
    "outcome",
    "retrieval",
    "parts",
    "zero_shot",
    "hierarchy",
    "geometry",
    "taxonomy",
    "traversal",
    "walks",
    "horopca",
    "plane",
    "boxes",
    "compositional",
    "files",
    "labelled_sets",
    "probe",
    "suite",
)
install_import_hook([f"pipeline.evaluation.evaluate.{name}" for name in MODULES], "beartype.beartype")
