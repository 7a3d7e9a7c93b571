"""Import weights of transformers' ViT, of timm and of the paper's `.npz` files, and export models to other formats."""

from .weights import from_npz, from_timm, from_transformers, to_transformers

__all__ = ["from_npz", "from_timm", "from_transformers", "to_transformers"]
