"""Export a model to files that run without this package: ONNX, a `torch.export` program, or transformers' own ViT.

The exported model is loaded again and compared with the original before the output folder appears. Its
preprocessor_config.json is for transformers' `ViTImageProcessor`, so preprocessing needs no code of this package.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import ViTForImageClassification, ViTImageProcessorPil

from ..evaluation.classifier import load_model
from ..model.image_processing_vit_scratch import ViTScratchImageProcessor
from ..model.modeling_vit_scratch import ViTScratchForImageClassification
from ..output_folder import real_path
from .weights import to_transformers

BATCH_SIZES = (1, 3, 8)  # for the comparison with the original
TOLERANCE = 1e-4  # largest absolute difference of a logit

_DYNAMIC_BATCH = {"pixel_values": {0: torch.export.Dim("batch")}}
_Logits = Callable[[torch.Tensor], torch.Tensor]


class _LogitsOnly(nn.Module):
    """`(batch, num_channels, height, width)` -> logits `(batch, num_labels)`."""

    def __init__(self, model: ViTScratchForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


@torch.no_grad()
def export_model(source: str | os.PathLike, format: str, output_dir: str | os.PathLike) -> str:
    """Export a model for the CPU, in fp32, for batches of any size.

    Args:
        source: output folder of a run, or id of a repository on the Hub. Code in it is not run.
        format: a key of `FORMATS`. "onnx" writes model.onnx, which contains the weights up to 1.5 GiB. "torch" writes
            model.pt2, for `torch.export.load`. "transformers" writes model.safetensors. All formats also write
            config.json and preprocessor_config.json.
        output_dir: a new or empty folder. A failed export leaves it unchanged.

    Returns:
        Two lines for the user: the written files with the largest difference of a logit between the exported model and
        the original, over random batches of `BATCH_SIZES`; and how to preprocess images.

    Raises:
        ValueError: in one line, if the folder is not empty, there is no such model, the format cannot express it, the
            extra `export` is not installed, or a logit differs by more than `TOLERANCE`.
    """
    output = real_path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        there = "a folder with files in it" if output.is_dir() else "a file"
        raise ValueError(f"--output_dir {output_dir}: expected a new or empty folder, got {there}.")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if format == "onnx" and missing:
        raise ValueError(f'--format onnx needs {", ".join(missing)}: pip install "hf-vit-scratch[export]".')
    model, processor = load_model(source, torch.device("cpu"))
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name  # a subfolder, since a TemporaryDirectory is readable only by its owner
        folder.mkdir()
        logits_of_written = FORMATS[format](model, folder)
        if not (difference := _largest_difference(model, logits_of_written)) <= TOLERANCE:  # also true for NaN
            raise ValueError(
                f"the export to {format} failed: a logit differs by {difference:.1e} from the original, but at most "
                f"{TOLERANCE:.0e} is allowed."
            )
        to_transformers_processor(processor).save_pretrained(folder)
        if output.exists():
            output.rmdir()
        folder.rename(output)
    files = ", ".join(sorted(file.name for file in output.iterdir()))
    images = 'grey images, image.convert("L")' if processor.num_channels == 1 else "images with 8 bits per channel"
    return (
        f"{output_dir}: {files}; a logit differs by at most {difference:.1e} from the original, in batches of "
        f'{BATCH_SIZES}\nPreprocess upright {images}, with AutoImageProcessor.from_pretrained("{output_dir}", '
        'backend="pil")'
    )


def to_transformers_processor(processor: ViTScratchImageProcessor) -> ViTImageProcessorPil:
    """Convert to transformers' ViT processor. It returns the same `pixel_values` for upright images of up to 8 bits.

    It converts images to RGB, but not to grey, so a model with one channel needs images of mode "L". If torchvision is
    installed, `AutoImageProcessor` resizes with it, which changes values by up to 1 of 255, unless `backend="pil"` is
    passed.
    """
    own = ("image_processor_type", "auto_map", "num_channels", "do_center_digit")
    fields = {name: value for name, value in processor.to_dict().items() if name not in own}
    return ViTImageProcessorPil(**fields, do_convert_rgb=processor.num_channels == 3)


def _largest_difference(model: ViTScratchForImageClassification, logits_of_written: _Logits) -> float:
    shape = (max(BATCH_SIZES), model.config.num_channels, *model.config.image_height_width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1  # in the range of normalized pixels
    batches = [images[:size] for size in BATCH_SIZES]
    differences = [(logits_of_written(batch) - model(batch).logits).abs().max() for batch in batches]
    return torch.stack(differences).max().item()


def _write_onnx(model: ViTScratchForImageClassification, folder: Path) -> _Logits:
    import onnxruntime

    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    exported = torch.onnx.export(_program(model), dynamo=True, verbose=False, dynamic_shapes=_DYNAMIC_BATCH, **names)
    exported.save(folder / "model.onnx")  # above 1.5 GiB torch writes the weights into a second file
    _write_config(model, folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"pixel_values": batch.numpy()})[0])


def _write_torch(model: ViTScratchForImageClassification, folder: Path) -> _Logits:
    torch.export.save(_program(model), folder / "model.pt2")
    _write_config(model, folder)
    return torch.export.load(folder / "model.pt2").module()


def _write_transformers(model: ViTScratchForImageClassification, folder: Path) -> _Logits:
    to_transformers(model).save_pretrained(folder)
    written = ViTForImageClassification.from_pretrained(folder)
    return lambda batch: written(batch).logits


def _program(model: ViTScratchForImageClassification) -> torch.export.ExportedProgram:
    # An example of two images, since a batch of one would be traced as a constant batch size.
    example = torch.zeros(2, model.config.num_channels, *model.config.image_height_width)
    program = torch.export.export(_LogitsOnly(model).eval(), (example,), dynamic_shapes=_DYNAMIC_BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of this machine
    return program


def _write_config(model: ViTScratchForImageClassification, folder: Path) -> None:
    vars(model.config).pop("auto_map", None)  # refers to code that is not in this folder
    model.config.to_json_file(folder / "config.json")


FORMATS = {"onnx": _write_onnx, "torch": _write_torch, "transformers": _write_transformers}
