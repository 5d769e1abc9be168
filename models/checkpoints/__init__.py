"""Checkpoints of other projects: import and export.

`read_checkpoint` reads the published state dicts of MERU, HyCoCLIP, UNCHA and PHyCLIP, Hugging Face's CLIP and
Hyper3-CLIP directories, OpenCLIP's directories and state dicts, and this project's own; `to_published` writes the
published names. Nothing is unpickled: torch files are read with weights_only=True.
"""

from hyco.models.checkpoints.load import Checkpoint, read_checkpoint, read_weights
from hyco.models.checkpoints.meru import to_published

__all__ = ["Checkpoint", "read_checkpoint", "read_weights", "to_published"]
