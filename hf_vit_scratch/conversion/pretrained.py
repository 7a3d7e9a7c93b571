"""Pre-trained models for fine-tuning: of this package, transformers' ViT, and timm's ViT.

As in section 3.2 of the paper, a new head for other classes is initialized with zeros, and for another resolution the
position embeddings are interpolated. Size, normalization of the pixels and centre crop are those of the pre-trained
model.
"""

import math
import os
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..data.sources import HUB_ID
from ..hub.model_folder import (
    check_count,
    check_finite,
    check_model,
    check_vit,
    read_config,
    read_shapes,
    weight_files,
)
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..model.modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel
from ..output_folder import real_path
from .weights import from_timm, from_transformers

# Fields that fine-tuning may change. Only the position embeddings depend on them, and they are interpolated.
_FREE_FIELDS = ("image_size", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
# By model_type: the encoder, the encoder with a head, and the image processor.
_CLASSES = {
    ViTScratchConfig.model_type: (ViTScratchModel, ViTScratchForImageClassification, ViTScratchImageProcessor),
    "vit": (ViTModel, ViTForImageClassification, ViTImageProcessorPil),
}


_LEAST_CROP = 0.1  # of the shorter side of an image; images are resized to the size of the model divided by it


@dataclass
class Pretrained:
    """A pre-trained model.

    Args:
        name: id on the Hub, or name of the folder.
        model: in fp32 on the CPU; a [`ViTScratchModel`] if the source has no head.
        preprocessing: `image_mean`, `image_std` and `resample`, arguments of [`ViTScratchImageProcessor`].
        crop_fraction: side of the centre crop of its preprocessing, as a fraction of the shorter side of the image.
            None: the whole image.
    """

    name: str
    model: ViTScratchModel | ViTScratchForImageClassification
    preprocessing: dict
    crop_fraction: float | None

    def config_for(self, fields: dict, classes: list[str], training_data: str) -> ViTScratchConfig:
        """The config of the fine-tuned model.

        Args:
            fields: fields of the config that were given as flags. Only image size and drop rates may differ from the
                loaded model.
            classes: names of the classes.
            training_data: name of the data. It is appended to the `training_data` of the loaded model.

        Raises:
            ValueError: a field contradicts the loaded model.
        """
        loaded = self.model.config
        for name, value in fields.items():
            if name not in _FREE_FIELDS and value != getattr(loaded, name):
                raise ValueError(
                    f"{name} {value!r} contradicts {self.name}, which has {getattr(loaded, name)!r}. Leave it out: "
                    f"only {', '.join(_FREE_FIELDS)} can change."
                )
        fields = {name: getattr(loaded, name) for name in ViTScratchConfig.__annotations__} | fields
        fields["training_data"] = list(dict.fromkeys([*(loaded.training_data or []), training_data]))
        label2id = {name: index for index, name in enumerate(classes)}
        return ViTScratchConfig(**fields, id2label=dict(enumerate(classes)), label2id=label2id)

    def fit(self, config: ViTScratchConfig) -> ViTScratchForImageClassification:
        """A model of `config`, which comes from [`~Pretrained.config_for`], with the loaded weights.

        The head is kept if the source has the same classes, in any order. Otherwise, as in section 3.2: "we remove the
        whole pre-trained prediction head and attach a zero-initialized D x K feedforward layer". Learned position
        embeddings `(1, T, D)` are interpolated to the grid of `config`.
        """
        encoder = self.model.base_model
        state = {f"vit.{name}": tensor for name, tensor in encoder.state_dict().items()}
        with torch.no_grad():
            if config.position_embedding == "learned":
                positions = encoder.embeddings.interpolate_pos_encoding(*config.grid_size)
                state["vit.embeddings.position_embeddings"] = positions
            if rows := self._rows_of_head(config):
                state["classifier.weight"] = self.model.classifier.weight[rows]  # (K, D)
                state["classifier.bias"] = self.model.classifier.bias[rows]
            else:
                state["classifier.weight"] = torch.zeros(config.num_labels, config.hidden_size)
                state["classifier.bias"] = torch.zeros(config.num_labels)
        model = ViTScratchForImageClassification(config)
        model.load_state_dict(state)
        return model

    def describe(self, config: ViTScratchConfig) -> str:
        """One line for the user: image size, whether the head is kept, and whether positions are interpolated."""
        (rows, columns), grid = self.model.config.grid_size, config.grid_size
        head = "its own head" if self._rows_of_head(config) else "a new head"
        line = f"Fine-tuning {self.name} at {'x'.join(map(str, config.image_height_width))}, {head} for "
        line += f"{config.num_labels} classes"
        if grid != (rows, columns) and config.position_embedding == "learned":
            line += f", positions interpolated from {rows}x{columns} to {grid[0]}x{grid[1]}"
        return f"{line}."

    def _rows_of_head(self, config: ViTScratchConfig) -> list[int] | None:
        """For each class of `config` its row in the loaded head, or None if the classes differ."""
        if not hasattr(self.model, "classifier"):
            return None
        loaded, wanted = (
            [each.id2label[index] for index in range(each.num_labels)] for each in (self.model.config, config)
        )
        return [loaded.index(name) for name in wanted] if sorted(loaded) == sorted(wanted) else None


def load_pretrained(source: str) -> Pretrained:
    """Load a pre-trained model, converted to this package's classes if necessary.

    Weights are read only from safetensors, and code in the source is not run.

    Args:
        source: a folder, or the id of a repository on the Hub, with a model of this package, with transformers'
            `ViTForImageClassification` or `ViTModel`, or with a `VisionTransformer` saved by timm.

    Raises:
        ValueError: in one line, if there is no such model, its weights are a pickle or do not fit its config, the
            model of this package has no counterpart for a part of it, or the normalization of its pixels is unknown.
    """
    path = os.path.expanduser(source)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would report each head or pooler that is left out
    try:
        config = read_config(path)
        kind = config.get("model_type")
        if isinstance(kind, str) and kind in _CLASSES:
            loaded = _load_transformers(path, config)
        elif "architecture" in config and kind is None:
            loaded = _load_timm(path, config)
        else:
            found = f"model_type {kind!s:.80}" if kind else "neither model_type nor architecture"
            raise ValueError(
                f"expected a config.json with model_type {' or '.join(_CLASSES)}, or one of timm; got {found}."
            )
        if loaded[2] is not None and not _LEAST_CROP <= loaded[2] <= 1:
            raise ValueError(f"its centre crop is {loaded[2]:.2g} of the shorter side, expected {_LEAST_CROP} to 1.")
        return Pretrained(model_name(source), *loaded)
    except Exception as error:  # what damaged files raise in transformers and timm has no common base class
        line = textwrap.shorten(str(error), 500, placeholder=" ...")  # timm lists all tensors that do not fit
        raise ValueError(f"cannot start from {source}: {line or type(error).__name__}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def model_name(source: str) -> str:
    """Public name of a model: its id on the Hub, or the last part of a local path."""
    path = real_path(source)
    return source if HUB_ID.fullmatch(source) and not path.exists() else path.name


def _load_transformers(source: str, config: dict) -> tuple[PreTrainedModel, dict, float | None]:
    """Model, preprocessing and crop_fraction of a folder or repository in transformers' format."""
    encoder_class, classifier_class, processor_class = _CLASSES[config["model_type"]]
    has_head = classifier_class.__name__ in (config.get("architectures") or [])
    check_vit(source, config, has_head) if encoder_class is ViTModel else check_model(source, has_head)
    model, loaded = (classifier_class if has_head else encoder_class).from_pretrained(
        source,
        use_safetensors=True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # reported below, in one line
        output_loading_info=True,
        **({"add_pooling_layer": False} if encoder_class is ViTModel and not has_head else {}),
    )
    for name, found, expected in sorted(loaded["mismatched_keys"]):
        raise ValueError(f"its weight {name} has shape {tuple(found)}, but {tuple(expected)} by its config.json.")
    if loaded["missing_keys"]:  # transformers only warns and initializes them at random
        raise ValueError(f"its weights lack {', '.join(sorted(loaded['missing_keys'])[:3])}.")
    model = from_transformers(model) if encoder_class is ViTModel else model
    processor, channels = processor_class.from_pretrained(source), model.config.num_channels
    if not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / 255):
        raise ValueError("its pixels are not scaled to [0, 1], as in this package.")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    crop_fraction = None
    if processor.do_center_crop:
        side = max(processor.crop_size.height, processor.crop_size.width)
        crop_fraction = min(1.0, side / min(side for side in dict(processor.size).values() if side))
    return model, _preprocessing(mean, std, PILImageResampling(processor.resample), channels), crop_fraction


def _load_timm(source: str, config: dict) -> tuple[PreTrainedModel, dict, float | None]:
    """Model, preprocessing and crop_fraction in timm's format. Defaults of timm replace missing values."""
    if find_spec("timm") is None:
        raise ValueError("it is a model of timm, which is an optional package: pip install timm.")
    (file,) = weight_files(source, sharded=False)
    _check_timm(config, file)
    model = from_timm(os.path.dirname(file))
    given = config | config.get("pretrained_cfg", {})
    resample = PILImageResampling[(given.get("interpolation") or "bicubic").upper()]
    mean, std = given.get("mean") or IMAGENET_DEFAULT_MEAN, given.get("std") or IMAGENET_DEFAULT_STD
    side = max(model.config.image_height_width)
    crop_fraction = side / math.floor(side / (given.get("crop_pct") or 0.875))  # timm rounds the resize down
    return model, _preprocessing(mean, std, resample, model.config.num_channels), crop_fraction


def _check_timm(config: dict, file: Path) -> None:
    """Check the config of a model of timm against its weights, without allocating either.

    Raises: ValueError if an argument of the model is out of range, the weights are fewer, or one is not finite.
    """
    import timm

    pretrained, arguments = config.get("pretrained_cfg", {}), config.get("model_args", {})
    if not isinstance(pretrained, dict) or not isinstance(arguments, dict):
        raise ValueError("its config.json must have objects as pretrained_cfg and model_args.")
    for part in (config, pretrained, arguments):
        for name, value in part.items():
            numbers = [value] if isinstance(value, (int, float)) else value if isinstance(value, list) else []
            most = 1000 if name == "depth" else 10**6 if name == "num_classes" else 2**16
            if any(isinstance(each, (int, float)) and not -most <= each <= most for each in numbers):
                raise ValueError(f"its {name[:80]} must be at most {most:,}, got {value!r:.80}.")
    with torch.device("meta"):
        model = timm.create_model(f"local-dir:{file.parent}", pretrained=False)
    check_count(model, read_shapes([file]), f"architecture {config['architecture']!s:.80}")
    check_finite([file])


def _preprocessing(image_mean, image_std, resample: PILImageResampling, num_channels: int) -> dict:
    """Arguments of the processor. Equal values of all channels become one number, which grey models need."""
    values = {"image_mean": image_mean, "image_std": image_std}
    for name, value in values.items():
        value = [value] if isinstance(value, (int, float)) else list(value)
        if not value or not all(math.isfinite(each) and (each > 0 or name == "image_mean") for each in value):
            raise ValueError(f"its {name} {value!r:.80} does not hold finite numbers, or not above 0.")
        if len(set(value)) > 1 and len(value) != num_channels:
            raise ValueError(f"its {name} {value} does not have one value for each of its {num_channels} channels.")
        values[name] = value[0] if len(set(value)) == 1 else value
    return values | {"resample": resample}
