"""Encoders (data to vectors), the heads that stand on them while training, and how they are saved."""

from contrastive.encoders.backbones import TimmEncoder, TorchvisionEncoder
from contrastive.encoders.checkpoint import load_encoder, save_encoder
from contrastive.encoders.conv import ConvEncoder
from contrastive.encoders.export import export_encoder
from contrastive.encoders.heads import PredictionHead, ProjectionHead
from contrastive.encoders.mlp import MLPEncoder
from contrastive.encoders.momentum import MomentumEncoder
from contrastive.encoders.text import TextEncoder

__all__ = [
    "ConvEncoder",
    "MLPEncoder",
    "MomentumEncoder",
    "PredictionHead",
    "ProjectionHead",
    "TextEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "export_encoder",
    "load_encoder",
    "save_encoder",
]
