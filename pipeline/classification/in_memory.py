"""A labelled set in memory: uint8 tensors, and the random crops and flips of an epoch as batch operations."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hyco.pipeline.datasets import LabelledSet
from hyco.pipeline.imaging.crop import whole
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.sources.source import Source
from hyco.storage.sample import Failure


@dataclass(frozen=True)
class Images:
    """uint8 pixels [N, 3, S, S] and int64 labels [N], on one device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray | Tensor) -> "Images":
        """The images at these indices."""
        where = torch.as_tensor(index, device=self.labels.device)
        return Images(self.pixels[where], self.labels[where])

    def to(self, device: torch.device | str) -> "Images":
        """The same on another device."""
        return Images(self.pixels.to(device), self.labels.to(device))


def load_images(found: LabelledSet, size: int, index: np.ndarray | None = None) -> Images:
    """Decode a labelled set, or the images at `index`, into memory (N * 3 * size^2 bytes).

    Images of another size are resized by their short side and centre-cropped.
    """
    index = np.arange(len(found)) if index is None else index
    pixels = torch.empty(len(index), 3, size, size, dtype=torch.uint8)
    for row, place in enumerate(index):
        pixels[row] = _pixels(found.image(int(place)), size)
    return Images(pixels, torch.from_numpy(np.asarray(found.labels, np.int64)[index]))


def load_captioned(source: Source, size: int, limit: int) -> tuple[Images, int]:
    """The first `limit` images of a captioned source (pipeline.sources.source), as images of no class (-1).

    Also the number of unusable samples before the last of them: no image, no caption, undecodable.
    """
    rows, failures = [], list[Failure]()
    undecodable = 0
    for unit in source.units():
        for sample in source.samples(unit, failures.append):
            if len(rows) == limit:
                break
            try:
                rows.append(_pixels(decode(sample.image), size))
            except ImageError:
                undecodable += 1
        if len(rows) == limit:
            break
    if not rows:
        raise ValueError(f"{source.store.url} has no readable image")
    return Images(torch.stack(rows), torch.full((len(rows),), -1)), len(failures) + undecodable


def _pixels(image: np.ndarray, size: int) -> Tensor:
    """uint8 [H, W, 3] of any size -> uint8 [3, S, S]; copied, because a decoder's array may be read-only."""
    return torch.from_numpy(np.array(whole(image, size))).permute(2, 0, 1)


def statistics(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]: uint8 [N, 3, S, S] -> 3 and 3."""
    counts = torch.stack(
        [torch.bincount(channel.reshape(-1), minlength=256) for channel in pixels.unbind(1)]
    ).double()
    values = torch.arange(256, dtype=torch.float64, device=pixels.device) / 255
    total = counts.sum(1)
    mean = counts @ values / total
    deviation = (counts @ values**2 / total - mean**2).clamp(min=1e-8).sqrt()
    return mean.tolist(), deviation.tolist()


@dataclass(frozen=True)
class Epoch:
    """One epoch's order and augmentation, drawn at once from (seed, epoch): a batch is a slice of it.

    A run that resumes in the middle of an epoch draws it again and continues at its batch. The last incomplete batch is
    dropped.
    """

    images: Images
    order: Tensor
    shifts: Tensor
    flips: Tensor
    crop: int
    batch_size: int

    @classmethod
    def draw(
        cls, images: Images, seed: int, epoch: int, *, batch_size: int, crop: int, flip: bool
    ) -> "Epoch":
        """The epoch's random numbers, on the CPU so that every device draws the same."""
        random = torch.Generator().manual_seed((seed << 24) + epoch)
        count, device = len(images), images.labels.device
        order = torch.randperm(count, generator=random)
        shifts = torch.randint(2 * crop + 1, (count, 2), generator=random)
        flips = torch.rand(count, generator=random) < (0.5 if flip else 0.0)
        return cls(images, order.to(device), shifts.to(device), flips.to(device), crop, batch_size)

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number`: float32 pixels [B, 3, S, S] in [0, 1] and labels [B]."""
        rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
        where = self.order[rows]
        pixels = crops(self.images.pixels[where], self.shifts[rows], self.flips[rows], self.crop)
        return pixels.float() / 255, self.images.labels[where]

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from `start` on."""
        yield from (self.batch(number) for number in range(start, len(self)))


def crops(pixels: Tensor, shifts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad with black, crop at the shift, mirror where requested: [B, C, S, S], [B, 2], [B] -> [B, C, S, S]."""
    size = pixels.shape[-1]
    padded = F.pad(pixels, (padding,) * 4)
    along = torch.arange(size, device=pixels.device)
    rows = shifts[:, :1] + along
    columns = shifts[:, 1:] + torch.where(flips[:, None], size - 1 - along, along)
    picture = torch.arange(len(pixels), device=pixels.device)
    return padded[picture[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
