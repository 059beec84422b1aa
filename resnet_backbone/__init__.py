"""A multi-scale ResNet backbone: image -> C2..C5, with strictly loaded weights. Needs torch alone."""

from .adapt import as_backbone
from .backbone import ResNetBackbone
from .build import build_backbone, build_classifier, load_weights, save_weights
from .classifier import ResNetClassifier
from .errors import UserError
from .hosts import register
from .preprocess import Preprocess
from .protocols import Backbone, FeatureSpec
from .specs import RESNETS, ResNetSpec
from .weights.certificate import CertificateMismatch
from .weights.load import WeightMismatch, WeightReport
from .weights.sources import SOURCES, AmbiguousWeights

__version__ = "0.1.0"
__all__ = [
    "RESNETS",
    "SOURCES",
    "AmbiguousWeights",
    "Backbone",
    "CertificateMismatch",
    "FeatureSpec",
    "Preprocess",
    "ResNetBackbone",
    "ResNetClassifier",
    "ResNetSpec",
    "UserError",
    "WeightMismatch",
    "WeightReport",
    "as_backbone",
    "build_backbone",
    "build_classifier",
    "load_weights",
    "register",
    "save_weights",
]
