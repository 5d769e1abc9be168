"""Layers, one per file, where torch.nn would have them; tangent vectors at the origin in and out.

    net = nn.Sequential(hnn.Conv2d(3, 16, 3, padding=1, c=0.1), hnn.BatchNorm2d(16, c=0.1), hnn.ReLU(), ...)

module                    HyperbolicModule, the base class
linear, classifier        Linear; MLR
conv, conv_transpose      Conv1d, Conv2d, Conv3d; ConvTranspose2d
lorentz_linear, lorentz_conv, lorentz_classifier
                          LorentzLinear; LorentzConv1d, LorentzConv2d, LorentzConv3d; LorentzMLR: linear growth
busemann                  BusemannLinear; BusemannMLR: distances to horospheres
batchnorm                 BatchNorm1d, BatchNorm2d
pooling                   AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, AdaptiveMaxPool2d
norm                      LayerNorm, RMSNorm, GroupNorm
activation                LorentzActivation; torch's ReLU, GELU, Dropout, ... re-exported
attention, embedding      MultiheadAttention; Embedding
transformer               TransformerBlock; RotaryPositions
residual, flatten         ResidualAdd, residual_add; Flatten, cat, split
change_manifold           ChangeManifold
functional                tangent vectors to the unit hyperboloid and back
hyperplane_ops            the response of K hyperplanes, behind linear layers and convolutions
batchnorm_ops             batch normalisation by autograd; batchnorm_fused, batchnorm_near: hand-written backward

A tangent vector is an ordinary tensor, so Euclidean features go in as they are; `ChangeManifold` turns the
results into points of the Poincare ball, the hyperboloid or the Klein ball.
"""

from models.hyperbolic.nn.activation import ELU, GELU, Dropout, LeakyReLU, LorentzActivation, ReLU, SiLU, Tanh
from models.hyperbolic.nn.attention import MultiheadAttention
from models.hyperbolic.nn.batchnorm import BatchNorm1d, BatchNorm2d
from models.hyperbolic.nn.busemann import BusemannLinear, BusemannMLR
from models.hyperbolic.nn.change_manifold import ChangeManifold
from models.hyperbolic.nn.classifier import MLR
from models.hyperbolic.nn.conv import Conv1d, Conv2d, Conv3d
from models.hyperbolic.nn.conv_transpose import ConvTranspose2d
from models.hyperbolic.nn.embedding import Embedding
from models.hyperbolic.nn.flatten import Flatten, cat, split
from models.hyperbolic.nn.linear import Linear
from models.hyperbolic.nn.lorentz_classifier import LorentzMLR
from models.hyperbolic.nn.lorentz_conv import LorentzConv1d, LorentzConv2d, LorentzConv3d
from models.hyperbolic.nn.lorentz_linear import LorentzLinear
from models.hyperbolic.nn.module import HyperbolicModule
from models.hyperbolic.nn.norm import GroupNorm, LayerNorm, RMSNorm
from models.hyperbolic.nn.pooling import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, MaxPool2d
from models.hyperbolic.nn.residual import ResidualAdd, residual_add
from models.hyperbolic.nn.transformer import RotaryPositions, TransformerBlock

__all__ = [
    "ELU",
    "GELU",
    "MLR",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BusemannLinear",
    "BusemannMLR",
    "ChangeManifold",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "HyperbolicModule",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LorentzActivation",
    "LorentzConv1d",
    "LorentzConv2d",
    "LorentzConv3d",
    "LorentzLinear",
    "LorentzMLR",
    "MaxPool2d",
    "MultiheadAttention",
    "RMSNorm",
    "ReLU",
    "ResidualAdd",
    "RotaryPositions",
    "SiLU",
    "Tanh",
    "TransformerBlock",
    "cat",
    "residual_add",
    "split",
]
