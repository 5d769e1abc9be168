"""Speed of a training: tokens and FLOPs per second, model FLOPs utilisation (MFU), peak memory.

FLOPs are those of the model (Chowdhery et al. 2022, PaLM, appendix B): two per multiplication and addition of the
towers' matrix products on the tokens that there are, without padding, without what is computed again, and without the
loss; a backward pass costs twice the forward pass. MFU compares them with a matrix product measured at the start.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from hyco.models.clip import ClipConfig, image_tower
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig


class Meter:
    """Counts the tokens and the FLOPs of batches.

    Args:
        model: the dual encoder.
        factor: FLOPs of a training step over those of its forward pass, see `backward_factor`.
    """

    def __init__(self, model: ClipConfig, factor: float) -> None:
        self.text, self.factor, self.dim = model.text, factor, model.dim
        self.by_length: dict[int, int] = {}
        self.image = image_flops(model)
        self.image_tokens = 0
        if isinstance(model.vision, VisionConfig):
            self.image_tokens = 1 + (model.vision.image_size // model.vision.patch_size) ** 2
        self.tokens, self.flops = 0.0, 0.0

    def add(self, images: int, lengths: Sequence[int]) -> None:
        """Count a batch: the number of images and parts, and the lengths of all texts in tokens."""
        self.tokens += images * self.image_tokens + sum(lengths)
        for length in lengths:
            if length not in self.by_length:
                self.by_length[length] = text_flops(self.text, self.dim, length)
        self.flops += self.factor * (images * self.image + sum(self.by_length[n] for n in lengths))

    def take(self) -> list[float]:
        """Return [tokens, FLOPs] since the last call."""
        found = [self.tokens, self.flops]
        self.tokens, self.flops = 0.0, 0.0
        return found


def image_flops(model: ClipConfig) -> int:
    """FLOPs of one image's forward pass through its tower and projection."""
    vision, projection = model.vision, 2 * model.vision.width * model.dim
    if not isinstance(vision, VisionConfig):
        return counted_flops(model) + projection
    patches = (vision.image_size // vision.patch_size) ** 2
    embedded = 2 * patches * 3 * vision.patch_size**2 * vision.width
    whole = vision.pooling == "mean"
    return embedded + _blocks(vision, 1 + patches, last_whole=whole) + projection


def counted_flops(model: ClipConfig) -> int:
    """FLOPs of one image's forward pass through its tower, counted by PyTorch without computing it."""
    from torch.utils.flop_counter import FlopCounterMode  # takes a second with the shapes of all operations

    size = model.vision.image_size
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        image_tower(model.vision).eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def text_flops(config: TextConfig, dim: int, length: int) -> int:
    """FLOPs of one text's forward pass through its tower and projection."""
    return _blocks(config, length, last_whole=False) + 2 * config.width * dim


def _blocks(config: TextConfig | VisionConfig, length: int, last_whole: bool) -> int:
    """FLOPs of a tower's blocks on `length` tokens; the last block computes one token, or all of them."""
    width, hidden = config.width, round(config.width * config.mlp_ratio)
    linear = 4 * width**2 + 2 * width * hidden
    block = 2 * length * linear + 4 * length**2 * width
    last = 2 * (2 * length * width**2 + linear - 2 * width**2) + 4 * length * width
    return (config.depth - 1) * block + (block if last_whole else last)


def backward_factor(learn: str, blocks: float = 0.0) -> float:
    """FLOPs of a step over those of its forward pass: 3 when all is learned, 1 for frozen towers.

    With adapters in the fraction `blocks` of the towers, gradients flow through these, but not to their weights.
    """
    return {"all": 3.0, "heads": 1.0}.get(learn, 1.0 + min(1.0, blocks))


def peak_memory(device: torch.device) -> int:
    """Peak in bytes of what torch has allocated on a GPU, or of the resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    import resource  # macOS has no /proc, and counts in bytes

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
