"""A batch of the training, the position of the reader that made it, and its way to a device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Position = dict[str, int]
START: Position = {"epoch": 0, "batch": 0}


@dataclass(frozen=True)
class Batch:
    """B samples of this process with P parts in total; `owner` [P] is the sample of each part.

    images uint8 [B, S, S, 3], image_boxes uint8 [P, S, S, 3], tokens int64 [B, N], token_boxes int64 [P, M].
    position is that of the next batch; substituted counts samples that could not be decoded and were replaced by
    another sample of the batch. On the host, so that reading them waits for no device: lengths, the tokens of every
    caption and then of every phrase without padding, and counts, the parts of every sample.
    """

    images: Tensor
    tokens: Tensor
    image_boxes: Tensor
    token_boxes: Tensor
    owner: Tensor
    position: Position
    substituted: int = 0
    lengths: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with a function applied to every tensor."""
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]
        return replace(self, **{name: change(getattr(self, name)) for name in names})

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory."""
        return self.each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with images and owners on a device; asynchronous from pinned memory.

        Token ids stay on the CPU: the text tower packs them there and moves the result.
        """
        moved = self.each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, tokens=self.tokens, token_boxes=self.token_boxes)


def on_device(stream: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches of a stream on a device; copies to a GPU run on a stream of their own, beside the step before.

    The host is ahead of the GPU when it asks for a batch, so the copy need not be started earlier. Page-locked
    buffers are those of PyTorch's host allocator: it reuses one when the copies from it have ended.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in stream)
        return
    copies = torch.cuda.Stream(device)
    for batch in stream:
        with torch.cuda.stream(copies):
            batch = batch.to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(copies)

        def used(tensor: Tensor, current: torch.cuda.Stream = current) -> Tensor:
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory may be reused only after the step
            return tensor

        yield batch.each(used)
