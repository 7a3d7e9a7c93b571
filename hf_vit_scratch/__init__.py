"""The Vision Transformer of "An Image is Worth 16x16 Words", written from scratch as a Hugging Face model package."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import (
        ViTScratchConfig,
        ViTScratchForImageClassification,
        ViTScratchImageProcessor,
        ViTScratchModel,
    )

__version__ = "0.1.0"

__all__ = [
    "ViTScratchConfig",
    "ViTScratchForImageClassification",
    "ViTScratchImageProcessor",
    "ViTScratchModel",
    "__version__",
]


def __getattr__(name):
    # A late import, so that `import hf_vit_scratch` and `vit-scratch --help` do not wait for torch and transformers.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".model", __name__), name)
