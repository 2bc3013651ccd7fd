"""Encoders (data to vectors), the heads that stand on them while training, and how they are saved."""

from contrastive.encoders.conv import ConvEncoder
from contrastive.encoders.heads import ProjectionHead

__all__ = ["ConvEncoder", "ProjectionHead"]
