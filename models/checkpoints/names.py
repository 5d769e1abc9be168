"""Names of tensors in the transformer blocks of other projects, and a state dict whose tensors are taken by name."""

import math
import re
from collections.abc import Iterator, Mapping

from torch import Tensor

# Their name of a part of a block -> ours.
TIMM = {
    "norm1": "attention_norm",
    "attn.qkv": "qkv",
    "attn.proj": "attention_out",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
}
RESBLOCK = {  # OpenAI's CLIP, OpenCLIP and the text towers of MERU and HyCoCLIP
    "ln_1": "attention_norm",
    "attn.in_proj": "qkv",
    "attn.out_proj": "attention_out",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp_in",
    "mlp.c_proj": "mlp_out",
}


def block_names(theirs: str, ours: str, depth: int, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(their name, our name) of every tensor of `depth` blocks: theirs.3.ln_1.weight, ours.3.attention_norm.weight."""
    for index in range(depth):
        for part, own in parts.items():
            for leaf in ("weight", "bias"):
                # torch's MultiheadAttention joins the two words with an underscore.
                joint = "_" if part == "attn.in_proj" else "."
                yield f"{theirs}.{index}.{part}{joint}{leaf}", f"{ours}.{index}.{own}.{leaf}"


def both(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Weight and bias of one layer."""
    return [(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in ("weight", "bias")]


class Tensors:
    """A state dict whose tensors are taken by name; errors name the missing or unused tensors."""

    def __init__(self, state: Mapping[str, Tensor], source: str, layout: str) -> None:
        self.left, self.source, self.layout = dict(state), source, layout

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a required tensor."""
        return tuple(self._found(name).shape)

    def take(self, name: str) -> Tensor:
        """The tensor in float32, which then counts as used; ValueError when it is missing."""
        value = self._found(name)
        del self.left[name]
        return value.float()

    def depth(self, prefix: str) -> int:
        """Number of numbered blocks under `prefix`."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = {int(found[1]) for name in self.left if (found := pattern.match(name))}
        return max(numbers, default=-1) + 1

    def finish(self) -> None:
        """Raise ValueError naming a tensor that nothing has used: the architecture is another one."""
        if self.left:
            name = min(self.left)
            raise ValueError(
                f"{self.source} holds {name} {tuple(self.left[name].shape)}, which {self.layout} does not have "
                f"({len(self.left)} such tensors): an architecture that Hyco cannot express"
            )

    def _found(self, name: str) -> Tensor:
        if name not in self.left:
            raise ValueError(
                f"{self.source} has no tensor {name}: it is not {self.layout}, or the file is incomplete"
            )
        return self.left[name]


def side_of(tokens: int, source: str) -> int:
    """Patches along one side of the image, from the number of positions (patches and the class token)."""
    side = math.isqrt(tokens - 1)
    if side * side != tokens - 1:
        raise ValueError(
            f"{source} has {tokens} positions, which is not 1 + a square: its images are not square"
        )
    return side


def heads_of(width: int, head: int, source: str) -> int:
    """Number of attention heads of `head` dimensions each."""
    if width % head:
        raise ValueError(f"{source} has a width of {width}, not a multiple of its heads' {head}")
    return width // head
