"""The published way to train HyCoCLIP, in plain torch: what our step is compared with.

Towers of nn.TransformerEncoderLayer on all tokens of texts padded to the context length, one pass for each of the four
nodes, and a loss with a matrix of distances for every cross-entropy. The weights are those of a DualEncoder.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.clip import DualEncoder
from hyco.models.encoders.text import TextTransformer
from hyco.models.encoders.vit import VisionTransformer
from hyco.models.hyperbolic import lorentz
from hyco.models.losses.objective import ObjectiveConfig


class PlainTower(nn.Module):
    """The blocks of a tower as encoder layers that share its weights' values."""

    def __init__(self, tower: VisionTransformer | TextTransformer, causal: bool) -> None:
        super().__init__()
        config = tower.config
        self.causal = causal
        self.layers = nn.ModuleList()
        for block in tower.blocks:
            layer = nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                round(config.width * config.mlp_ratio),
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=config.norm_eps,
                batch_first=True,
                norm_first=True,
            )
            named = {
                "self_attn.in_proj": block.get_submodule("qkv"),
                "self_attn.out_proj.": block.get_submodule("attention_out"),
                "linear1.": block.get_submodule("mlp_in"),
                "linear2.": block.get_submodule("mlp_out"),
                "norm1.": block.get_submodule("attention_norm"),
                "norm2.": block.get_submodule("mlp_norm"),
            }
            values = {
                (f"{name}_{kind}" if name.endswith("proj") else f"{name}{kind}"): getattr(part, kind)
                .detach()
                .clone()
                for name, part in named.items()
                for kind in ("weight", "bias")
            }
            layer.load_state_dict(values)
            self.layers.append(layer)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.norm.load_state_dict(tower.norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] -> normalised tokens [B, N, D]."""
        mask = (
            nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
            if self.causal
            else None
        )
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=self.causal)
        return self.norm(x)


class PlainHyCoClip(nn.Module):
    """HyCoCLIP in plain torch with the values of a DualEncoder with a ViT and class token."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        assert isinstance(model.visual, VisionTransformer)
        vision, text = model.config.vision, model.config.text
        assert model.visual.config.pooling == "class" and model.config.geometry == "lorentz"
        self.context, self.end, self.patch_size = (
            text.context_length,
            text.end_token,
            model.visual.config.patch_size,
        )
        self.patch = nn.Conv2d(3, vision.width, self.patch_size, self.patch_size)
        kernel = model.visual.patch.weight.detach().reshape(self.patch.weight.shape)
        self.patch.load_state_dict(
            {"weight": kernel.clone(), "bias": model.visual.patch.bias.detach().clone()}
        )
        self.class_token = nn.Parameter(model.visual.class_token.detach().clone())
        self.register_buffer("image_positions", model.visual.positions.detach().clone())
        self.tokens = nn.Embedding.from_pretrained(model.textual.tokens.weight.detach().clone(), freeze=False)
        self.positions = nn.Parameter(model.textual.positions.detach().clone())
        self.visual, self.textual = PlainTower(model.visual, False), PlainTower(model.textual, True)
        for name in ("visual_projection", "textual_projection"):
            weight = getattr(model, name).weight.detach().clone()
            projection = nn.Linear(*reversed(weight.shape), bias=False)
            projection.load_state_dict({"weight": weight})
            setattr(self, name, projection)
        for name in ("visual_alpha", "textual_alpha", "log_scale", "log_curvature"):
            setattr(self, name, nn.Parameter(getattr(model, name).detach().clone()))
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())

    def image(self, images: Tensor) -> Tensor:
        """Bytes [B, S, S, 3] -> points [B, D]."""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.image_positions
        return self._lift(self.visual_projection(self.visual(x)[:, 0]), self.visual_alpha)

    def text(self, tokens: Tensor) -> Tensor:
        """Ids [B, N] -> points [B, D], padded to the context length first."""
        tokens = F.pad(tokens, (0, self.context - tokens.shape[1]), value=self.end)
        x = self.textual(self.tokens(tokens) + self.positions)
        last = x[torch.arange(len(x), device=x.device), (tokens == self.end).int().argmax(1)]
        return self._lift(self.textual_projection(last), self.textual_alpha)

    def _lift(self, projected: Tensor, alpha: Tensor) -> Tensor:
        with torch.autocast(projected.device.type, enabled=False):
            return lorentz.exp0(alpha.exp() * projected.float(), self.log_curvature.exp())

    def forward(
        self, images: Tensor, tokens: Tensor, image_boxes: Tensor, token_boxes: Tensor
    ) -> dict[str, Tensor]:
        """The four nodes, one pass each."""
        return {
            "image": self.image(images),
            "text": self.text(tokens),
            "image_box": self.image(image_boxes),
            "text_box": self.text(token_boxes),
        }


def four_matrices(
    points: dict[str, Tensor], own: Tensor, scale: Tensor, c: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """HyCoCLIP's loss with a matrix of distances for every cross-entropy and cones by acos and asin."""

    def time_part(x: Tensor) -> Tensor:
        return (1 / c + x.square().sum(-1, keepdim=True)).sqrt()

    def entropy(query: str, key: str) -> Tensor:
        x, y = points[query], points[key]
        inner = x @ y.T - time_part(x) @ time_part(y).T
        distance = torch.acosh(torch.clamp(-c * inner, min=1 + 1e-8)) / c.sqrt()
        return F.cross_entropy(-scale * distance, own)

    def hinge(general: str, specific: str, eta: float) -> Tensor:
        x, y = points[general], points[specific]
        x_t, y_t, norm = time_part(x)[:, 0], time_part(y)[:, 0], x.norm(dim=-1)
        inner = c * ((x * y).sum(-1) - x_t * y_t)
        cosine = (y_t + x_t * inner) / (norm * (inner.square() - 1).clamp(min=1e-8).sqrt())
        angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
        aperture = torch.asin((2 * objective.aperture / (c.sqrt() * norm)).clamp(max=1 - 1e-6))
        return F.relu(angle - eta * aperture).mean()

    terms = [row.weight * entropy(row.query, row.key) for row in objective.contrast]
    terms += [row.weight * hinge(row.general, row.specific, row.eta) for row in objective.entailment]
    return sum_of(terms)


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of 0-dim tensors."""
    return torch.stack(list(terms)).sum()
