"""A loaded Grounding DINO of transformers, made faster on a CPU without another result.

Two kinds of layer are replaced, in float32 and without gradients; the rest of the network stays the library's:

- deformable attention (Zhu et al. 2020, equation 3), see `DeformableAttention`;
- linear layers, which oneDNN computes 1 to 2.4 times as fast as the MKL of PyTorch's own, activation included.
"""

import functools
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.onednn import has_onednn

_ATTENTION = ("GroundingDinoMultiscaleDeformableAttention", "MMGroundingDinoMultiscaleDeformableAttention")
# Layers in which an activation directly follows a linear layer: the names of the two.
_ACTIVATED = {
    "ConvNextLayer": ("pwconv1", "act"),
    "SwinIntermediate": ("dense", "intermediate_act_fn"),
    "BertIntermediate": ("dense", "intermediate_act_fn"),
    **{
        f"{family}{layer}": ("fc1", "activation_fn")
        for family in ("GroundingDino", "MMGroundingDino")
        for layer in ("DeformableLayer", "DecoderLayer", "TextEnhancerLayer")
    },
}
_FUSED = {"GELUActivation": "gelu", "ReLU": "relu"}  # class of an activation -> oneDNN's name
_EXACT_FLOAT = 1 << 24  # whole numbers up to here are exact in float32


def accelerate(network: nn.Module) -> None:
    """Replace the slow layers of a float32 network on the CPU, in place. It can no longer be trained or saved."""
    for module in list(network.modules()):
        if type(module).__name__ in _ACTIVATED:
            linear, activation = _ACTIVATED[type(module).__name__]
            fused = _FUSED.get(type(getattr(module, activation, None)).__name__)
            if fused and isinstance(getattr(module, linear, None), nn.Linear) and has_onednn():
                setattr(module, linear, OneDnnLinear(getattr(module, linear), fused))
                setattr(module, activation, nn.Identity())
        for name, child in list(module.named_children()):
            if type(child).__name__ in _ATTENTION:
                setattr(module, name, DeformableAttention(child))
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and has_onednn():
                setattr(module, name, OneDnnLinear(child))


class OneDnnLinear(nn.Module):
    """nn.Linear by oneDNN, with an activation in the same pass.

    Args:
        linear: has the weights, float32 on the CPU.
        activation: "none", "relu" or "gelu" (exact, not the tanh approximation).
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight, self.bias, self.activation = linear.weight, linear.bias, activation

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        """Apply the layer to [..., in]."""
        if not x.numel():
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.activation, [], "none" if self.activation == "gelu" else ""
        )


class _Layout(NamedTuple):
    """Constants of H heads, L levels and P points, columns in this order ([n] with n = H L P).

    sizes [2, n]: width and height of each column's level; spread [L, n]: 1 where a column is of a level;
    first [n]: row of the level's first cell for the head; down [n]: rows from a cell to the one below; last [n]: the
    last row of which all four neighbours are in the table; rows: of one image's table.
    """

    sizes: Tensor
    spread: Tensor
    first: Tensor
    down: Tensor
    last: Tensor
    rows: int


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention as four weighted sums of table rows.

    The library samples each level into a tensor of queries x points x channels, stacks these, multiplies by the
    attention weights and sums. Here the projected image is a table of one row per cell and head, with a border of
    zeros, and each of the four neighbours of a point is a row of it: `embedding_bag` adds up the rows of all levels
    and points of a query, weighted, without storing them.

    Args:
        theirs: the layer of the library whose weights and signature this one has.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.heads, self.levels, self.points = theirs.n_heads, theirs.n_levels, theirs.n_points
        self.value_proj, self.output_proj = theirs.value_proj, theirs.output_proj
        offsets, weights = theirs.sampling_offsets, theirs.attention_weights
        width = offsets.in_features
        # x, y and attention weight of all points from one product, each in columns of its own.
        self.proj = nn.Linear(width, 3 * weights.out_features).requires_grad_(False)
        for own, first, last in ((self.proj.weight, offsets.weight, weights.weight),
                                 (self.proj.bias, offsets.bias, weights.bias)):  # fmt: skip
            x, y = first.reshape(-1, 2, *first.shape[1:]).unbind(1)
            own.copy_(torch.cat([x, y, last]))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        spatial_shapes_list: list[tuple[int, int]] | None = None,
        level_start_index: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """See the library's layer: [B, Q, D] of the queries -> [B, Q, D], and attention weights [B, Q, H, L, P]."""
        assert encoder_hidden_states is not None and reference_points is not None and spatial_shapes_list
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        value = self.value_proj(encoder_hidden_states)
        if attention_mask is not None and not attention_mask.all():
            value = value.masked_fill(~attention_mask[..., None], 0.0)
        batch, queries, _ = hidden_states.shape
        layout = _layout(tuple(map(tuple, spatial_shapes_list)), self.heads, self.points)
        x, y, logits = self.proj(hidden_states).view(batch * queries, 3, -1).unbind(1)
        weights = _softmax(logits.reshape(batch * queries * self.heads, -1)).view(batch * queries, -1)
        references = reference_points.reshape(batch * queries, self.levels, -1)
        x, y = (
            _cells(offset, references[..., axis::2], layout, axis, self.points)
            for axis, offset in enumerate((x, y))
        )
        table = _table(value, spatial_shapes_list, self.heads, layout.rows)
        output = _sampled(table, x, y, weights, layout, batch, self.heads)
        return self.output_proj(output.view(batch, queries, -1)), weights.view(
            batch, queries, self.heads, self.levels, self.points
        )


def _softmax(x: Float[Tensor, "N n"]) -> Float[Tensor, "N n"]:
    """Softmax of the rows of [N, n]: with few columns PyTorch's own takes up to five times as long."""
    powers = (x - x.amax(-1, keepdim=True)).exp_()
    return powers.div_(powers.sum(-1, keepdim=True))


@functools.lru_cache(maxsize=64)
def _layout(shapes: tuple[tuple[int, int], ...], heads: int, points: int) -> _Layout:
    levels = len(shapes)

    def columns(of_level: list[int]) -> Tensor:
        return torch.tensor(of_level).view(1, levels, 1).expand(heads, levels, points).reshape(-1)

    # A row of cells has one zero cell before it, which is also the one after the row above; a level has one row of
    # zeros above it and three below (a point beyond the last cell reads the next two, with weight 0).
    widths, heights = [width for _, width in shapes], [height for height, _ in shapes]
    cells = [(height + 4) * (width + 1) for height, width in shapes]
    starts = [sum(cells[:level]) + widths[level] + 2 for level in range(levels)]
    head = torch.arange(heads).view(-1, 1).expand(heads, levels * points).reshape(-1)
    rows, down = sum(cells) * heads, (columns(widths) + 1) * heads
    assert rows < _EXACT_FLOAT, shapes
    return _Layout(
        sizes=torch.stack([columns(widths), columns(heights)]).float(),
        spread=(columns(list(range(levels))) == torch.arange(levels)[:, None]).float(),
        first=(columns(starts) * heads + head).float(),
        down=down.int(),
        last=(rows - 1 - heads - down).int(),
        rows=rows,
    )


def _cells(
    offset: Float[Tensor, "N n"], reference: Float[Tensor, "N L c"], layout: _Layout, axis: int, points: int
) -> Float[Tensor, "N n"]:
    """Positions in cells of one axis, [N, n], 0 at the middle of the first cell; those outside are just outside.

    offset [N, n]; reference [N, L, 1 or 2]: centre and, for boxes, size, as fractions of the image.
    """
    size = layout.sizes[axis]
    centre = (reference[..., 0] @ layout.spread).mul_(size)
    if reference.shape[-1] == 2:
        offset = offset * (reference[..., 1] @ layout.spread).mul_(size * (0.5 / points))
    return torch.minimum(centre.add_(offset).sub_(0.5).clamp_(min=-1.0), size)


def _table(
    value: Float[Tensor, "B S D"], shapes: list[tuple[int, int]], heads: int, rows: int
) -> Float[Tensor, "rows d"]:
    """Values [B, S, D] -> [B * rows, D / H]: a row per cell and head, zeros around each level."""
    batch, _, width = value.shape
    table = value.new_zeros(batch, rows // heads, width)
    read = written = 0
    for height, across in shapes:
        cells = (height + 4) * (across + 1)
        level = table[:, written : written + cells].view(batch, height + 4, across + 1, width)
        level[:, 1 : height + 1, 1:] = value[:, read : read + height * across].view(
            batch, height, across, width
        )
        read, written = read + height * across, written + cells
    return table.view(batch * rows, width // heads)


def _sampled(
    table: Float[Tensor, "rows d"],
    x: Float[Tensor, "N n"],
    y: Float[Tensor, "N n"],
    weights: Float[Tensor, "N n"],
    layout: _Layout,
    batch: int,
    heads: int,
) -> Float[Tensor, "N_heads d"]:
    """Weighted sums of the bilinear samples at x, y (both overwritten), all [N, n] -> [N * H, D / H]."""
    left, top = x.floor(), y.floor()
    east, south = x.sub_(left), y.sub_(top)
    lower = weights * south
    upper = weights - lower
    lower_right, upper_right = lower * east, upper * east
    row = torch.addcmul(left, top, layout.down.float() / heads).mul_(heads).add_(layout.first).int()
    image = torch.arange(batch, dtype=torch.int32).mul_(layout.rows).repeat_interleave(len(x) // batch)
    # A position that is not a number must not read outside of the table; its result is not a number anyway.
    row = torch.minimum(row.clamp_(min=0), layout.last).add_(image[:, None])
    below = row + layout.down
    bags = torch.arange(0, row.numel(), row.shape[1] // heads, dtype=torch.int32)
    total = None
    for cells, share in (
        (row, upper.sub_(upper_right)),
        (row + heads, upper_right),
        (below, lower.sub_(lower_right)),
        (below + heads, lower_right),
    ):
        part = F.embedding_bag(cells.view(-1), table, bags, mode="sum", per_sample_weights=share.view(-1))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
