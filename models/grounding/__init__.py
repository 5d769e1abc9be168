"""Grounding: images and phrases in; boxes out, each with a score and its phrase."""

from hyco.models.grounding.detector import Detection, Detector, Reader

__all__ = ["Detection", "Detector", "Reader"]
