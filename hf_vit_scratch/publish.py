"""The model card of a run, made from what the run measured."""

from importlib import resources
from pathlib import Path

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .competition import SAMPLE
from .configuration_vit_scratch import ViTScratchConfig

# A wheel carries the template inside of the package; a clone has it in model_cards/.
_TEMPLATES = (
    resources.files(__package__) / "model_card_template.md",
    Path(__file__).parent.parent / "model_cards" / "template.md",
)


def saw_sample(config: ViTScratchConfig) -> bool:
    """Whether the weights have seen the sample, many of whose digits stand in the competition's test set."""
    return SAMPLE in (config.training_data or [])


def write_card(folder: Path, config: ViTScratchConfig, results: dict) -> None:
    """Write README.md into an output folder.

    Args:
        results: what is in all_results.json; its `validation_...` and `test_...` metrics become the `model-index`.
    """
    keys = ("num_images", "errors", "accuracy", "macro_f1", "negative_log_likelihood", "calibration_error")
    splits = [name for name in ("validation", "test") if f"{name}_accuracy" in results]
    measured = [{"split": name, **{key: results[f"{name}_{key}"] for key in keys}} for name in splits]
    name, labels = folder.resolve().name, list(config.id2label.values())
    height, width = config.image_height_width
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers",
            pipeline_tag="image-classification",
            tags=["vision", "vit", ViTScratchConfig.model_type, "from-scratch"],
            metrics=["accuracy"],
            model_name=name,
            eval_results=[_eval_result(results["data"], row) for row in measured] or None,
        ),
        template_str=next(file for file in _TEMPLATES if file.is_file()).read_text(encoding="utf-8"),
        name=name,
        config=config,
        height=height,
        width=width,
        num_labels=len(labels),
        labels=", ".join(labels[:20]) + (", ..." if len(labels) > 20 else ""),
        saw_sample=saw_sample(config),
        results=results,
        measured=measured,
        has_confusion_matrix=(folder / "confusion_matrix.png").exists(),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    card.save(folder / "README.md")


def _eval_result(data: str, row: dict) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=data,
        dataset_name=data,
        dataset_split=row["split"],
        metric_type="accuracy",
        metric_value=row["accuracy"],
    )
