"""Layers, one per file, where torch.nn would have them; tangent vectors at the origin in and out.

    net = nn.Sequential(hnn.Conv2d(3, 16, 3, padding=1, c=0.1), hnn.BatchNorm2d(16, c=0.1), hnn.ReLU(), ...)

module                    HyperbolicModule, the base class
linear, classifier        Linear; MLR
conv, conv_transpose      Conv1d, Conv2d; ConvTranspose2d
batchnorm                 BatchNorm1d, BatchNorm2d
pooling                   AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, AdaptiveMaxPool2d
activation                LorentzActivation; torch's ReLU, GELU, ... re-exported
attention, embedding      MultiheadAttention; Embedding
residual, flatten         ResidualAdd, residual_add; Flatten, cat, split
change_manifold           ChangeManifold
functional                tangent vectors to the unit hyperboloid and back
hyperplane_ops            the response of K hyperplanes, behind linear layers and convolutions
batchnorm_ops             batch normalisation by autograd; batchnorm_fused, batchnorm_near: hand-written backward

A tangent vector is an ordinary tensor, so Euclidean features go in as they are; `ChangeManifold` turns the
results into points of the Poincare ball, the hyperboloid or the Klein ball.
"""

from models.hyperbolic.nn.activation import ELU, GELU, LeakyReLU, LorentzActivation, ReLU, SiLU, Tanh
from models.hyperbolic.nn.attention import MultiheadAttention
from models.hyperbolic.nn.batchnorm import BatchNorm1d, BatchNorm2d
from models.hyperbolic.nn.change_manifold import ChangeManifold
from models.hyperbolic.nn.classifier import MLR
from models.hyperbolic.nn.conv import Conv1d, Conv2d
from models.hyperbolic.nn.conv_transpose import ConvTranspose2d
from models.hyperbolic.nn.embedding import Embedding
from models.hyperbolic.nn.flatten import Flatten, cat, split
from models.hyperbolic.nn.linear import Linear
from models.hyperbolic.nn.module import HyperbolicModule
from models.hyperbolic.nn.pooling import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, MaxPool2d
from models.hyperbolic.nn.residual import ResidualAdd, residual_add

__all__ = [
    "ELU",
    "GELU",
    "MLR",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "ChangeManifold",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Embedding",
    "Flatten",
    "HyperbolicModule",
    "LeakyReLU",
    "Linear",
    "LorentzActivation",
    "MaxPool2d",
    "MultiheadAttention",
    "ReLU",
    "ResidualAdd",
    "SiLU",
    "Tanh",
    "cat",
    "residual_add",
    "split",
]
