"""Configuration of the Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929)."""

import math
from difflib import get_close_matches
from pathlib import Path

from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.versions import require_version

require_version("transformers>=5.4")

# The columns of the paper's table 1, then the patch size. "Ti" and "S" are from DeiT (arXiv 2012.12877, table 1).
_FIELDS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "patch_size")
_TABLE = {
    "Ti/16": (12, 192, 768, 3, 16),
    "S/16": (12, 384, 1536, 6, 16),
    "B/16": (12, 768, 3072, 12, 16),
    "L/16": (24, 1024, 4096, 16, 16),
    "H/14": (32, 1280, 5120, 16, 14),
    "digits-tiny": (6, 64, 256, 4, 4),
    "digits-small": (4, 128, 512, 4, 4),
    "digits-base": (9, 192, 768, 6, 4),
    "photos-tiny": (4, 256, 512, 4, 8),
}
_DIGITS = {"image_size": 28, "num_channels": 1, "initializer_range": 0.0}
_SMALL = {"digits": _DIGITS, "photos": {**_DIGITS, "image_size": 32, "num_channels": 3}}
SIZES = {name: dict(zip(_FIELDS, row, strict=True)) | _SMALL.get(name[:6], {}) for name, row in _TABLE.items()}

_CHOICES = dict(position_embedding=("learned", "sincos2d", "none"), pooling=("cls", "mean"), stem=("patch", "conv"))
# The largest integers, which are far above those of published ViTs; 65,536 for other fields.
_MOST = {"num_labels": 10**6, "num_hidden_layers": 1000, "stem_depth": 100}
_ARGUMENTS_OF_TRANSFORMERS = {"num_labels", "output_attentions", "attn_implementation", "torch_dtype", "name_or_path"}


class ViTScratchConfig(PretrainedConfig):
    """Sizes and options of a [`ViTScratchModel`]. The defaults are the paper's ViT-B/16 for 224x224 images (table 1).

    Args:
        image_size (`int` or `[height, width]`, defaults to 224): in pixels; each side is a multiple of `patch_size`.
        patch_size (`int`, defaults to 16): side P of a square patch, in pixels (section 3.1).
        num_channels (`int`, defaults to 3): number C of channels of an image.
        hidden_size (`int`, defaults to 768): width D of the tokens.
        num_hidden_layers (`int`, defaults to 12): number L of Transformer blocks.
        num_attention_heads (`int`, defaults to 12): number k of attention heads; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): width of the MLP's hidden layer.
        hidden_act (`str`, defaults to `"gelu"`): activation of the MLP, a key of `transformers.activations.ACT2FN`.
        hidden_dropout_prob (`float`, defaults to 0.0): dropout after embeddings and dense layers but q, k, v (B.1).
        attention_probs_dropout_prob (`float`, defaults to 0.0): dropout of the attention weights.
        layer_norm_eps (`float`, defaults to 1e-6): epsilon of every normalization layer.
        initializer_range (`float`, defaults to 0.02): standard deviation of the initial weights. 0: Glorot's
            uniform initialization, as in the paper's code, with which narrow models learn much faster.
        qkv_bias (`bool`, defaults to `True`): whether the query-key-value projection has a bias.
        position_embedding (`"learned"`, `"sincos2d"` or `"none"`, defaults to `"learned"`): appendix D.4, or fixed 2D
            sines and cosines (arXiv 2104.02057), for which `hidden_size` must be a multiple of 4.
        pooling (`"cls"` or `"mean"`, defaults to `"cls"`): input of the head: the class token, or the mean of the
            patch tokens of a model without a class token (appendix D.3).
        stem (`"patch"` or `"conv"`, defaults to `"patch"`): a linear projection of each patch (equation 1), or the
            paper's hybrid (section 3.1): a small CNN of 3x3 convolutions that reduces the image to one position per
            patch; `patch_size` must be a power of 2.
        stem_depth (`int`, defaults to 1): number of 3x3 convolutions of the `"conv"` stem per halving of the image.
        stem_width (`int`, *optional*): its channels before the last halving. Unset: half of `hidden_size`.
        drop_path_rate (`float`, defaults to 0.0): stochastic depth (arXiv 1603.09382), rising to this rate linearly.
        training_data (`list[str]`, *optional*): names of the data sets that the weights were trained on.

    Raises:
        ValueError: a field is unknown, has the wrong type or a value out of range, or contradicts another field.
    """

    model_type = "vit_scratch"
    _auto_class = "AutoConfig"

    image_size: int | list[int] = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    qkv_bias: bool = True
    position_embedding: str = "learned"
    pooling: str = "cls"
    stem: str = "patch"
    stem_depth: int = 1
    stem_width: int | None = None
    drop_path_rate: float = 0.0
    training_data: list[str] | None = None

    def __post_init__(self, **kwargs):
        unknown = kwargs.keys() - _ARGUMENTS_OF_TRANSFORMERS
        # A config.json may hold keys of the Trainer or of other models (layer_norm_epsilon): refuse only near misses.
        self._refuse(unknown, likeness=0.9 if "model_type" in kwargs else 0.0)
        self._check_integer("num_labels", kwargs.get("num_labels", 1))  # transformers makes a name for each
        super().__post_init__(**kwargs)
        self.validate()

    @staticmethod
    def _check_integer(name: str, value):
        if type(value) is not int or not 1 <= value <= _MOST.get(name, 2**16):
            raise ValueError(f"{name} must be an integer from 1 to {_MOST.get(name, 2**16):,}, got {value!r:.80}.")

    @classmethod
    def _refuse(cls, names, likeness: float):
        fields = ViTScratchConfig.__annotations__
        if unknown := [repr(name) for name in sorted(names) if get_close_matches(name, fields, cutoff=likeness)]:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}: the fields are {', '.join(fields)}.")

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "ViTScratchConfig":
        """The config of a named size, a key of `SIZES`, with the fields in `kwargs` changed. Raises: ValueError."""
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r:.80}: expected one of {', '.join(SIZES)}.")
        return cls(**{**SIZES[size], **kwargs})

    @classmethod
    def from_dict(cls, config_dict, return_unused_kwargs=False, **kwargs):
        """As in transformers, but fields that are changed while loading are checked as in a new config."""
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        config.validate()
        if not return_unused_kwargs:  # others may belong to the caller, as device_map belongs to a pipeline
            cls._refuse(unused, likeness=0.8)
        return (config, unused) if return_unused_kwargs else config

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, with the code of all classes that `auto_map` names, so that no package is needed."""
        self.__dict__["_auto_class"] = vars(type(self)).get("_auto_class")  # not that of a base class
        super().save_pretrained(save_directory, *args, **kwargs)
        for file in Path(__file__).parent.glob("*_vit_scratch.py"):
            Path(save_directory, file.name).write_bytes(file.read_bytes())

    @property
    def image_height_width(self) -> tuple[int, int]:
        """`image_size` as (height, width), in pixels."""
        height, width = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        return height, width

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Sequence length T for an image of `image_size`: the number of patches, plus 1 with a class token."""
        return math.prod(self.grid_size) + (self.pooling == "cls")

    def validate(self):
        """Check types, ranges and combinations of the fields. Raises: ValueError, in one line."""
        for name, kind in ViTScratchConfig.__annotations__.items():
            value = getattr(self, name)
            if kind is int or (kind == int | None and value is not None):
                self._check_integer(name, value)
            if kind is bool and type(value) is not bool:
                raise ValueError(f"{name} must be true or false, got {value!r:.80}.")
            least = 1e-12 if name == "layer_norm_eps" else 0
            if kind is float and (not isinstance(value, (int, float)) or value is True or not least <= value < 1):
                raise ValueError(f"{name} must be at least {least} and below 1, got {value!r:.80}.")
            if value not in (choices := {**_CHOICES, "hidden_act": tuple(ACT2FN)}.get(name, (value,))):
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.80}.")
        sides = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        if not isinstance(sides, (list, tuple)) or len(sides) != 2 or any(type(side) is not int for side in sides):
            raise ValueError(f"image_size must be an integer or [height, width], got {sides!r:.80}.")
        if any(side < 1 or side % self.patch_size for side in sides):
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}: change one."
            )
        if self.num_tokens > 2**16 or math.prod(sides) * self.num_channels > 2**26:
            raise ValueError(f"image_size {self.image_size} means more than 65,536 tokens or 67,108,864 pixel values.")
        if self.hidden_size % (heads := self.num_attention_heads):
            raise ValueError(f"hidden_size ({self.hidden_size}) is not divisible by num_attention_heads ({heads}).")
        if {*(names := self.id2label or {})} != {*range(len(names))} or {*map(type, names.values())} != {str}:
            raise ValueError(f"id2label must name the classes 0 to num_labels - 1, got {names!r:.80}.")
        if self.position_embedding == "sincos2d" and self.hidden_size % 4:
            raise ValueError(f"sincos2d positions need a hidden_size that is a multiple of 4, got {self.hidden_size}.")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"stem 'conv' needs a patch_size that is a power of 2, got {self.patch_size}.")
        if self.stem != "conv" and (self.stem_depth, self.stem_width) != (1, None):
            raise ValueError(f"stem_depth and stem_width need stem 'conv', got stem {self.stem!r}.")
