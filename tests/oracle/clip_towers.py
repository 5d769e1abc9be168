"""CLIP's towers in float64, spelled out over state dicts in the published and the OpenCLIP names.

Written from the architecture: pre-norm blocks (Vaswani 2017, Xiong 2020), class token (Dosovitskiy 2021), feature at
the highest token id of a text (Radford 2021), exp_0(exp(a) W f) (Desai 2023). No code is shared with models/.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * state[name + ".weight"]
        + state[name + ".bias"]
    )


def attention(
    x: Tensor, qkv: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor], heads: int, causal: bool
) -> Tensor:
    """Heads one at a time."""
    n, width = x.shape
    size = width // heads
    q, k, v = (x @ qkv[0].T + qkv[1]).split(width, -1)
    mask = torch.full((n, n), -torch.inf, dtype=x.dtype).triu(1) if causal else 0
    found = []
    for h in range(heads):
        one = slice(h * size, (h + 1) * size)
        weights = torch.softmax(q[:, one] @ k[:, one].T / math.sqrt(size) + mask, -1)
        found.append(weights @ v[:, one])
    return torch.cat(found, -1) @ out[0].T + out[1]


def gelu(x: Tensor, quick: bool) -> Tensor:
    """x Phi(x), or x / (1 + exp(-1.702 x))."""
    return x / (1 + torch.exp(-1.702 * x)) if quick else x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def resblock(state: State, at: str, x: Tensor, heads: int, causal: bool, quick: bool = False) -> Tensor:
    """A block in OpenAI's names."""
    qkv = state[at + ".attn.in_proj_weight"], state[at + ".attn.in_proj_bias"]
    out = state[at + ".attn.out_proj.weight"], state[at + ".attn.out_proj.bias"]
    x = x + attention(norm(state, at + ".ln_1", x), qkv, out, heads, causal)
    hidden = norm(state, at + ".ln_2", x) @ state[at + ".mlp.c_fc.weight"].T + state[at + ".mlp.c_fc.bias"]
    return x + gelu(hidden, quick) @ state[at + ".mlp.c_proj.weight"].T + state[at + ".mlp.c_proj.bias"]


def timm_block(state: State, at: str, x: Tensor, heads: int, eps: float = 1e-5) -> Tensor:
    """A block in timm's names."""
    qkv = state[at + ".attn.qkv.weight"], state[at + ".attn.qkv.bias"]
    out = state[at + ".attn.proj.weight"], state[at + ".attn.proj.bias"]
    x = x + attention(norm(state, at + ".norm1", x, eps), qkv, out, heads, causal=False)
    hidden = (
        norm(state, at + ".norm2", x, eps) @ state[at + ".mlp.fc1.weight"].T + state[at + ".mlp.fc1.bias"]
    )
    return x + gelu(hidden, False) @ state[at + ".mlp.fc2.weight"].T + state[at + ".mlp.fc2.bias"]


def exp0(v: Tensor, curvature: Tensor) -> Tensor:
    """sinh(sqrt(c) |v|) v / (sqrt(c) |v|)."""
    u = curvature.sqrt() * v.norm(dim=-1, keepdim=True)
    return torch.sinh(u) / u * v


def wide(state: State) -> State:
    """The state dict in float64."""
    return {name: value.double() for name, value in state.items()}


def timm_tokens(state: State, at: str, pixels: Tensor, heads: int, eps: float = 1e-5) -> list[Tensor]:
    """Normalised pixels [B, 3, H, W] -> the tokens [N, W] of each image after the last block, in timm's names."""
    weight = state[at + ".patch_embed.proj.weight"]
    grid = F.conv2d(pixels, weight, state[at + ".patch_embed.proj.bias"], stride=weight.shape[-1])
    found = []
    for one in grid:
        x = torch.cat([state[at + ".cls_token"][0], one.flatten(1).T]) + state[at + ".pos_embed"][0]
        index = 0
        while f"{at}.blocks.{index}.norm1.weight" in state:
            x = timm_block(state, f"{at}.blocks.{index}", x, heads, eps)
            index += 1
        found.append(x)
    return found


def published_image_features(state: State, images: Tensor, heads: int) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> projected features [B, D]."""
    state = wide(state)
    tokens = timm_tokens(state, "visual", (images.double() - state["pixel_mean"]) / state["pixel_std"], heads)
    return torch.stack([state["visual_proj.weight"] @ norm(state, "visual.norm", x)[0] for x in tokens])


def published_text_features(state: State, tokens: Tensor) -> Tensor:
    """Token ids [B, N] -> projected features [B, D]; heads of 64 dimensions."""
    state = wide(state)
    features = []
    for row in tokens:
        x = state["textual.token_embed.weight"][row] + state["textual.posit_embed"][: len(row)]
        index = 0
        while f"textual.resblocks.{index}.ln_1.weight" in state:
            x = resblock(state, f"textual.resblocks.{index}", x, x.shape[-1] // 64, causal=True)
            index += 1
        features.append(state["textual_proj.weight"] @ norm(state, "textual.ln_final", x)[row.argmax()])
    return torch.stack(features)


def published_images(state: State, images: Tensor, heads: int) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> points [B, D] as MERU and HyCoCLIP lift them."""
    features = published_image_features(state, images, heads)
    return exp0(features * state["visual_alpha"].double().exp(), state["curv"].double().exp())


def published_texts(state: State, tokens: Tensor) -> Tensor:
    """Token ids [B, N] -> points [B, D]; heads of 64 dimensions."""
    features = published_text_features(state, tokens)
    return exp0(features * state["textual_alpha"].double().exp(), state["curv"].double().exp())


def product_lift(state: State, features: Tensor, alphas: str) -> Tensor:
    """Features [B, D] -> points of PHyCLIP: each factor's piece by its own alpha and curvature, one after another."""
    count = sum(name.startswith("curvs.") for name in state)
    pieces = []
    for index, piece in enumerate(features.chunk(count, -1)):
        alpha, curvature = (state[f"{name}.{index}"].double().exp() for name in (alphas, "curvs"))
        pieces.append(exp0(alpha * piece, curvature))
    return torch.cat(pieces, -1)


def hyper3_images(state: State, pixels: Tensor, heads: int, norm_name: str, eps: float) -> Tensor:
    """Normalised pixels [B, 3, H, W] -> points [B, D] of Hyper3-CLIP: the mean patch, or the class token."""
    state = wide(state)
    at = "vision_encoder.backbone"
    points = []
    for x in timm_tokens(state, at, pixels.double(), heads, eps):
        pooled = x[1:].mean(0) if norm_name == "fc_norm" else x[0]
        feature = norm(state, f"{at}.{norm_name}", pooled, eps)
        points.append(state["image_proj.weight"] @ feature + state["image_proj.bias"])
    return exp0(torch.stack(points) * state["visual_alpha"].exp(), state["log_curv"].exp())


def openclip_images(state: State, pixels: Tensor, quick: bool) -> Tensor:
    """Normalised pixels [B, 3, H, W] -> projected features [B, D]; heads of 64 dimensions."""
    state = wide(state)
    weight = state["visual.conv1.weight"]
    features = []
    for one in F.conv2d(pixels.double(), weight, stride=weight.shape[-1]):
        x = torch.cat([state["visual.class_embedding"][None], one.flatten(1).T])
        x = norm(state, "visual.ln_pre", x + state["visual.positional_embedding"])
        index = 0
        while f"visual.transformer.resblocks.{index}.ln_1.weight" in state:
            at = f"visual.transformer.resblocks.{index}"
            x = resblock(state, at, x, x.shape[-1] // 64, causal=False, quick=quick)
            index += 1
        features.append(norm(state, "visual.ln_post", x)[0] @ state["visual.proj"])
    return torch.stack(features)


def openclip_texts(state: State, tokens: Tensor, heads: int, quick: bool) -> Tensor:
    """Token ids [B, N] -> projected features [B, D]."""
    state = wide(state)
    features = []
    for row in tokens:
        x = state["token_embedding.weight"][row] + state["positional_embedding"][: len(row)]
        index = 0
        while f"transformer.resblocks.{index}.ln_1.weight" in state:
            x = resblock(state, f"transformer.resblocks.{index}", x, heads, causal=True, quick=quick)
            index += 1
        features.append(norm(state, "ln_final", x)[row.argmax()] @ state["text_projection"])
    return torch.stack(features)
