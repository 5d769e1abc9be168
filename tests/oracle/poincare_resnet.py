"""Plain float64 references of the Poincare ResNet: points of the ball, textbook formulas, im2col, no shared code.

`forward(state, pixels, ...)` runs a network from its state dict, in the right arithmetic or (published=True) in that
of the authors' code with the defects that mathematics.md names.
"""

import math

import torch
from torch.nn import functional as F


def beta(n):
    return math.exp(math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2))


def norm(x):
    return x.norm(dim=-1, keepdim=True).clamp_min(1e-15)


class Ball:
    """Curvature -c; points along the last dimension."""

    def __init__(self, c, published=False):
        self.c, self.k, self.published = c, math.sqrt(c), published

    def clip(self, x):
        if not self.published:
            return x
        limit = (1 - 1e-5) / self.k
        return torch.where(norm(x) > limit, x / norm(x) * limit, x)

    def exp0(self, v):
        return self.clip(torch.tanh(self.k * norm(v)) * v / (self.k * norm(v)))

    def log0(self, x):
        return torch.atanh(self.k * norm(x)) * x / (self.k * norm(x))

    def factor(self, x):
        return 2 / (1 - self.c * x.square().sum(-1, keepdim=True))

    def add(self, x, y):
        c = self.c
        xx, yy, xy = (t.sum(-1, keepdim=True) for t in (x * x, y * y, x * y))
        return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c * c * xx * yy)

    def exp(self, x, v):
        step = torch.tanh(self.k * self.factor(x) * norm(v) / 2) * v / (self.k * norm(v))
        return self.clip(self.add(x, step))

    def log(self, x, y):
        d = self.add(-x, y)
        return 2 / (self.k * self.factor(x)) * torch.atanh(self.k * norm(d)) * d / norm(d)

    def distance(self, x, y):
        return 2 / self.k * torch.atanh(self.k * norm(self.add(-x, y)))

    def gyration(self, a, b, v):
        return self.add(-self.add(a, b), self.add(a, self.add(b, v)))

    def transport(self, x, y, v):
        # A gyration is linear: taken of a vector short enough to be a point.
        small = v * (0.1 / (self.k * norm(v)))
        return self.gyration(y, -x, small) * (self.k * norm(v) / 0.1) * self.factor(x) / self.factor(y)

    def midpoint(self, x):
        f = self.factor(x)
        m = (f * x).sum(0) / (f - 1).sum(0)
        return m / (1 + (1 - self.c * m.square().sum(-1, keepdim=True)).sqrt())

    def scores(self, x, z, r):
        """v_k of HNN++: x [..., I], z [K, I], r [K]."""
        n = z.norm(dim=1)
        factor = 4 / self.factor(x) if self.published else self.factor(x)
        inner = factor * self.k * (x @ (z / n[:, None]).T) * torch.cosh(2 * self.k * r)
        return 2 * n / self.k * torch.asinh(inner - (factor - 1) * torch.sinh(2 * self.k * r))

    def fully_connected(self, x, z, r):
        w = torch.sinh(self.k * self.scores(x, z, r)) / self.k
        return self.clip(w / (1 + (1 + self.c * w.square().sum(-1, keepdim=True)).sqrt()))


def conv(ball, u, weight, bias, stride):
    channels, kernel = u.shape[1], weight.shape[-1]
    size = [1 + (n + 2 * (kernel // 2) - kernel) // stride for n in u.shape[2:]]
    patches = F.unfold(u, kernel, padding=kernel // 2, stride=stride).transpose(1, 2)
    points = ball.exp0(patches * (beta(patches.shape[-1]) / beta(channels)))
    out = ball.log0(ball.fully_connected(points, weight.flatten(1), bias))
    return out.transpose(1, 2).unflatten(2, size)


def batch_norm(ball, u, layer, training, eps):
    x = ball.exp0(u.permute(0, 2, 3, 1).flatten(0, 2))
    target = ball.exp0(layer["bias"])
    if training or ball.published:
        middle = ball.midpoint(x)
        variance = ball.distance(x, middle).square().mean()
    else:
        middle, variance = ball.exp0(layer["running_mean"]), layer["running_var"]
    wanted = layer["weight"] if ball.published else F.softplus(layer["weight"])
    v = ball.transport(middle, target, ball.log(middle, x)) * (wanted / (variance + eps)).sqrt()
    out = ball.log0(ball.exp(target, v))
    return out.unflatten(0, (u.shape[0], *u.shape[2:])).permute(0, 3, 1, 2)


def add(ball, y, x):
    if ball.published:  # along the image's width
        return ball.log0(ball.add(ball.exp0(y), ball.exp0(x)))
    y, x = y.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    return ball.log0(ball.add(ball.exp0(y), ball.exp0(x))).permute(0, 3, 1, 2)


def forward(state, pixels, depth, c, training, published=False):
    """Logits [B, K] of a network with this state dict (float64)."""
    ball, eps = Ball(c, published), 1e-6 if published else 1e-5

    def part(prefix):
        return {n[len(prefix) + 1 :]: v for n, v in state.items() if n.startswith(prefix + ".")}

    def conv_norm(x, conv_name, norm_name, stride=1):
        layer = part(conv_name)
        out = conv(ball, x, layer["weight"], layer["bias"], stride)
        return batch_norm(ball, out, part(norm_name), training, eps)

    x = torch.relu(conv_norm(pixels, "conv", "bn"))
    per_stage = (depth - 2) // 6
    for i in range(3 * per_stage):
        stride = 2 if i and i % per_stage == 0 else 1
        name, y = f"blocks.{i}", x
        y = torch.relu(conv_norm(y, f"{name}.conv1", f"{name}.bn1", stride))
        y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
        short = part(f"{name}.shortcut")
        x = torch.relu(add(ball, y, conv(ball, x, short["weight"], short["bias"], stride) if short else x))
    features = ball.exp0(x.mean((2, 3)))
    if published:
        return ball.log0(ball.fully_connected(features, state["head.weight"], state["head.bias"]))
    return ball.scores(features, state["head.weight"], state["head.bias"])
