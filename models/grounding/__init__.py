"""Grounding: images and phrases in, boxes with a score and the phrase they answer to out."""

from models.grounding.detector import Detection, Detector, Reader

__all__ = ["Detection", "Detector", "Reader"]
