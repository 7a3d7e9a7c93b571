"""Pre-trained models to go on from: those of this package, transformers' own ViT, and timm's.

Fine-tuning as in section 3.2 of the paper: other classes get a new head that starts at zero, other resolutions get the
position embeddings interpolated. Everything else is as it was trained: the size of the model, how its pixels are
normalized, and how much of a picture it is shown.
"""

import json
import math
import os
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from huggingface_hub import list_repo_files
from safetensors import SafetensorError
from transformers import PreTrainedModel, ViTForImageClassification, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import cached_file

from ..data.sources import HUB_ID
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..model.modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel
from ..output_folder import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from .weights import from_timm, from_transformers

# Fields that a run may choose anew. No weight depends on them but the positions, which are interpolated.
_FREE_FIELDS = ("image_size", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
# By model_type: the encoder, the encoder with a head, and the image processor.
_CLASSES = {
    ViTScratchConfig.model_type: (ViTScratchModel, ViTScratchForImageClassification, ViTScratchImageProcessor),
    "vit": (ViTModel, ViTForImageClassification, ViTImageProcessorPil),
}


@dataclass
class Pretrained:
    """A model to go on from.

    Args:
        name: id on the Hub, or name of the folder.
        model: in fp32 on the CPU; a [`ViTScratchModel`] where the source has no head.
        preprocessing: `image_mean`, `image_std` and `resample`, arguments of [`ViTScratchImageProcessor`].
        crop_fraction: side of the centre crop that it is shown, as a fraction of the shorter side; None: the whole
            image.
    """

    name: str
    model: ViTScratchModel | ViTScratchForImageClassification
    preprocessing: dict
    crop_fraction: float | None

    def config_for(self, fields: dict, classes: list[str], training_data: str) -> ViTScratchConfig:
        """The config of the model that is fine-tuned.

        Args:
            fields: those asked for. The image size and the drop rates may differ from the loaded model's.
            classes: names of the classes.
            training_data: name of the data; what the loaded model has seen before stays noted in front of it.

        Raises:
            ValueError: a field contradicts the loaded model.
        """
        loaded = self.model.config
        for name, value in fields.items():
            if name not in _FREE_FIELDS and value != getattr(loaded, name):
                raise ValueError(
                    f"{name} {value!r} contradicts {self.name}, which has {getattr(loaded, name)!r}: leave it out. "
                    f"What can change is {', '.join(_FREE_FIELDS)}."
                )
        fields = {name: getattr(loaded, name) for name in ViTScratchConfig.__annotations__} | fields
        fields["training_data"] = list(dict.fromkeys([*(loaded.training_data or []), training_data]))
        label2id = {name: index for index, name in enumerate(classes)}
        return ViTScratchConfig(**fields, id2label=dict(enumerate(classes)), label2id=label2id)

    def fit(self, config: ViTScratchConfig) -> ViTScratchForImageClassification:
        """A model of `config`, which is of [`~Pretrained.config_for`], with the loaded weights.

        The head is kept where the classes are those of the source, in any order. For others, section 3.2: "we remove
        the whole pre-trained prediction head and attach a zero-initialized D x K feedforward layer". Learned positions
        `(1, T, D)` are interpolated to the grid of `config` by their location in the image.
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
        """One line on what of the loaded model is kept and what is new."""
        (rows, columns), grid = self.model.config.grid_size, config.grid_size
        head = "its own head" if self._rows_of_head(config) else "a new head"
        line = f"Fine-tuning {self.name} at {'x'.join(map(str, config.image_height_width))}, {head} for "
        line += f"{config.num_labels} classes"
        if grid != (rows, columns) and config.position_embedding == "learned":
            line += f", positions interpolated from {rows}x{columns} to {grid[0]}x{grid[1]}"
        return f"{line}."

    def _rows_of_head(self, config: ViTScratchConfig) -> list[int] | None:
        """For each class of `config` its row in the loaded head; None where the classes are others."""
        if not hasattr(self.model, "classifier"):
            return None
        loaded, wanted = (
            [each.id2label[index] for index in range(each.num_labels)] for each in (self.model.config, config)
        )
        return [loaded.index(name) for name in wanted] if sorted(loaded) == sorted(wanted) else None


def load_pretrained(source: str) -> Pretrained:
    """Load what [`Pretrained`] holds, converted where it is not a model of this package.

    Weights are read from safetensors alone, and no code that lies beside them is run.

    Args:
        source: a folder, or the id of a repository on the Hub, with a model of this package, with transformers'
            `ViTForImageClassification` or `ViTModel`, or with a `VisionTransformer` that timm saved.

    Raises:
        ValueError: in one line, where there is no such model, its weights are a pickle or not those of its config,
            it has a part without counterpart here, or nothing says how its pixels were normalized.
    """
    path = os.path.expanduser(source)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a head or pooler that is left out needs no report
    try:
        file = cached_file(path, CONFIG_NAME)
        config = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        kind = config.get("model_type")
        if kind in _CLASSES:
            loaded = _load_transformers(path, config)
        elif "architecture" in config and kind is None:
            loaded = _load_timm(path, config)
        else:
            found = f"model_type {kind}" if kind else "neither model_type nor architecture" if file else "none"
            raise ValueError(
                f"expected a config.json with model_type {' or '.join(_CLASSES)}, or one of timm's, got {found}."
            )
        return Pretrained(model_name(source), *loaded)
    except (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        line = textwrap.shorten(str(error), 500, placeholder=" ...")  # timm names every tensor that does not fit
        raise ValueError(f"cannot start from {source}: {line}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def model_name(source: str) -> str:
    """What a model is called in public: its id on the Hub, or the last part of a local path."""
    path = Path(source).expanduser()
    return source if HUB_ID.fullmatch(source) and not path.exists() else path.resolve().name


def _load_transformers(source: str, config: dict) -> tuple[PreTrainedModel, dict, float | None]:
    """Model, preprocessing and crop_fraction of a folder or repository in transformers' format."""
    encoder_class, classifier_class, processor_class = _CLASSES[config["model_type"]]
    has_head = classifier_class.__name__ in (config.get("architectures") or [])
    _find_weights(source, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    if cached_file(source, PREPROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is None:
        raise ValueError("nothing says how its pixels were normalized: it has no preprocessor_config.json.")
    model, loaded = (classifier_class if has_head else encoder_class).from_pretrained(
        source,
        use_safetensors=True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # to be named below
        output_loading_info=True,
        **({"add_pooling_layer": False} if encoder_class is ViTModel and not has_head else {}),
    )
    for name, found, expected in sorted(loaded["mismatched_keys"]):
        raise ValueError(f"its {name} is {tuple(found)}, and {tuple(expected)} by its config.json.")
    if loaded["missing_keys"]:  # transformers leaves them at random, with a warning
        raise ValueError(f"its weights lack {', '.join(sorted(loaded['missing_keys'])[:3])}.")
    model = from_transformers(model) if encoder_class is ViTModel else model
    processor, channels = processor_class.from_pretrained(source), model.config.num_channels
    if not processor.do_rescale or not math.isclose(processor.rescale_factor, 1 / 255):
        raise ValueError("its pixels are not scaled to [0, 1], as those of this package are.")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    crop_fraction = None
    if processor.do_center_crop:
        side = max(processor.crop_size.height, processor.crop_size.width)
        crop_fraction = min(1.0, side / min(dict(processor.size).values()))
    return model, _preprocessing(mean, std, PILImageResampling(processor.resample), channels), crop_fraction


def _load_timm(source: str, config: dict) -> tuple[PreTrainedModel, dict, float | None]:
    """The same for timm's format; what config.json does not say is timm's default."""
    if find_spec("timm") is None:
        raise ValueError("it is a model of timm's, which is an optional package: pip install timm.")
    model = from_timm(os.path.dirname(_find_weights(source, WEIGHTS_NAME)))
    given = config | config.get("pretrained_cfg", {})
    resample = PILImageResampling[(given.get("interpolation") or "bicubic").upper()]
    mean, std = given.get("mean") or IMAGENET_DEFAULT_MEAN, given.get("std") or IMAGENET_DEFAULT_STD
    side = max(model.config.image_height_width)
    crop_fraction = side / math.floor(side / (given.get("crop_pct") or 0.875))  # timm rounds the resize down
    return model, _preprocessing(mean, std, resample, model.config.num_channels), crop_fraction


def _find_weights(source: str, *names: str) -> str:
    """The local path of the first of these files that there is, downloaded where `source` is a repository."""
    for name in names:
        if file := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
            return file
    files = os.listdir(source) if os.path.isdir(source) else list_repo_files(source)
    pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")))
    found = f"{', '.join(pickles)}, and a pickle can run any code" if pickles else "no weights"
    raise ValueError(f"weights are read from {names[0]} alone, and there is {found}.")


def _preprocessing(image_mean, image_std, resample: PILImageResampling, num_channels: int) -> dict:
    """Arguments of the processor, with one number for all channels where they agree, as grey models need it."""
    values = {"image_mean": image_mean, "image_std": image_std}
    for name, value in values.items():
        value = [value] if isinstance(value, (int, float)) else list(value)
        if len(set(value)) > 1 and len(value) != num_channels:
            raise ValueError(f"its {name} {value} is not one for each of its {num_channels} channels.")
        values[name] = value[0] if len(set(value)) == 1 else value
    return values | {"resample": resample}
