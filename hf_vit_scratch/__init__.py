"""A Vision Transformer written by hand from "An Image is Worth 16x16 Words", as a Hugging Face model package."""

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {
    "ViTScratchConfig": "configuration_vit_scratch",
    "ViTScratchModel": "modeling_vit_scratch",
    "ViTScratchForImageClassification": "modeling_vit_scratch",
    "ViTScratchImageProcessor": "image_processing_vit_scratch",
}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name):
    # Late, so that `import hf_vit_scratch` and `vit-scratch --help` need not wait for torch and transformers.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
