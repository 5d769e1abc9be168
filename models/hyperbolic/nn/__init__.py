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
residual, flatten         ResidualAdd, residual_add; Flatten, cat, log_radius_cat, split
change_manifold           ChangeManifold
functional                tangent vectors to the unit hyperboloid and back
hyperplane_ops            the response of K hyperplanes, behind linear layers and convolutions
batchnorm_ops             batch normalisation by autograd; batchnorm_fused, batchnorm_near: hand-written backward

A tangent vector is an ordinary tensor, so Euclidean features go in as they are; `ChangeManifold` turns the
results into points of the Poincare ball, the hyperboloid or the Klein ball.
"""

from hyco.models.hyperbolic.nn.activation import ELU as ELU
from hyco.models.hyperbolic.nn.activation import GELU as GELU
from hyco.models.hyperbolic.nn.activation import Dropout as Dropout
from hyco.models.hyperbolic.nn.activation import LeakyReLU as LeakyReLU
from hyco.models.hyperbolic.nn.activation import LorentzActivation as LorentzActivation
from hyco.models.hyperbolic.nn.activation import ReLU as ReLU
from hyco.models.hyperbolic.nn.activation import SiLU as SiLU
from hyco.models.hyperbolic.nn.activation import Tanh as Tanh
from hyco.models.hyperbolic.nn.attention import MultiheadAttention as MultiheadAttention
from hyco.models.hyperbolic.nn.batchnorm import BatchNorm1d as BatchNorm1d
from hyco.models.hyperbolic.nn.batchnorm import BatchNorm2d as BatchNorm2d
from hyco.models.hyperbolic.nn.busemann import BusemannLinear as BusemannLinear
from hyco.models.hyperbolic.nn.busemann import BusemannMLR as BusemannMLR
from hyco.models.hyperbolic.nn.change_manifold import ChangeManifold as ChangeManifold
from hyco.models.hyperbolic.nn.classifier import MLR as MLR
from hyco.models.hyperbolic.nn.conv import Conv1d as Conv1d
from hyco.models.hyperbolic.nn.conv import Conv2d as Conv2d
from hyco.models.hyperbolic.nn.conv import Conv3d as Conv3d
from hyco.models.hyperbolic.nn.conv_transpose import ConvTranspose2d as ConvTranspose2d
from hyco.models.hyperbolic.nn.embedding import Embedding as Embedding
from hyco.models.hyperbolic.nn.flatten import Flatten as Flatten
from hyco.models.hyperbolic.nn.flatten import cat as cat
from hyco.models.hyperbolic.nn.flatten import log_radius_cat as log_radius_cat
from hyco.models.hyperbolic.nn.flatten import split as split
from hyco.models.hyperbolic.nn.linear import Linear as Linear
from hyco.models.hyperbolic.nn.lorentz_classifier import LorentzMLR as LorentzMLR
from hyco.models.hyperbolic.nn.lorentz_conv import LorentzConv1d as LorentzConv1d
from hyco.models.hyperbolic.nn.lorentz_conv import LorentzConv2d as LorentzConv2d
from hyco.models.hyperbolic.nn.lorentz_conv import LorentzConv3d as LorentzConv3d
from hyco.models.hyperbolic.nn.lorentz_linear import LorentzLinear as LorentzLinear
from hyco.models.hyperbolic.nn.module import HyperbolicModule as HyperbolicModule
from hyco.models.hyperbolic.nn.norm import GroupNorm as GroupNorm
from hyco.models.hyperbolic.nn.norm import LayerNorm as LayerNorm
from hyco.models.hyperbolic.nn.norm import RMSNorm as RMSNorm
from hyco.models.hyperbolic.nn.pooling import AdaptiveAvgPool2d as AdaptiveAvgPool2d
from hyco.models.hyperbolic.nn.pooling import AdaptiveMaxPool2d as AdaptiveMaxPool2d
from hyco.models.hyperbolic.nn.pooling import AvgPool2d as AvgPool2d
from hyco.models.hyperbolic.nn.pooling import MaxPool2d as MaxPool2d
from hyco.models.hyperbolic.nn.residual import ResidualAdd as ResidualAdd
from hyco.models.hyperbolic.nn.residual import residual_add as residual_add
from hyco.models.hyperbolic.nn.transformer import RotaryPositions as RotaryPositions
from hyco.models.hyperbolic.nn.transformer import TransformerBlock as TransformerBlock
