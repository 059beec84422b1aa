"""A multi-scale ResNet backbone: image -> C2..C5, with weights that load whole or not at all. Needs torch alone."""

from .backbone import FeatureSpec, ResNetBackbone, build_backbone
from .classifier import ResNetClassifier
from .hosts import register
from .preprocess import Preprocess
from .specs import RESNETS, ResNetSpec
from .weights.certificate import CertificateMismatch
from .weights.files import save_weights
from .weights.load import WeightMismatch, WeightReport, load_weights
from .weights.sources import SOURCES, AmbiguousWeights

__version__ = "0.1.0"
__all__ = [
    "RESNETS",
    "SOURCES",
    "AmbiguousWeights",
    "CertificateMismatch",
    "FeatureSpec",
    "Preprocess",
    "ResNetBackbone",
    "ResNetClassifier",
    "ResNetSpec",
    "WeightMismatch",
    "WeightReport",
    "build_backbone",
    "load_weights",
    "register",
    "save_weights",
]
