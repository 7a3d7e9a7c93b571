"""Weights in and out: transformers' ViT, timm, the paper's `.npz` files, and formats that need no package."""

from .weights import from_npz, from_timm, from_transformers, to_transformers

__all__ = ["from_npz", "from_timm", "from_transformers", "to_transformers"]
