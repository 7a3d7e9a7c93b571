"""The model card of an output folder, rendered from a template with the results of the run and of an evaluation."""

from importlib import resources
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.corruption import UNITS
from ..data.digit_recognizer import SAMPLE, saw_sample
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..output_folder import (
    CARD_NAME,
    CONFUSION_PLOT,
    CURVES_PLOT,
    EVALUATION_NAME,
    EXAMPLE_NAME,
    SETTINGS_NAME,
    WRONG_PLOT,
    read_json,
    real_path,
)
from ..settings.flags import complete_settings

# In a wheel the template is inside the package, in a clone it is in model_cards/.
_TEMPLATES = (
    resources.files("hf_vit_scratch.hub") / "model_card_template.md",
    Path(__file__).parents[2] / "model_cards" / "template.md",
)
_FROZEN = "with a linear head that was trained on the frozen encoder of"
_MEASURED = ("num_images", "errors", "accuracy", "macro_f1", "negative_log_likelihood", "calibration_error")


def write_card(folder: Path, config: ViTScratchConfig, results: dict, name: str | None = None) -> None:
    """Write the model card, README.md, into an output folder that already holds training_args.json and the plots.

    If the folder has an evaluation.json, the card shows its figures, which were measured with other models of the same
    recipe.

    Args:
        folder: output folder of a run.
        config: config of the model.
        results: the content of all_results.json. Its `validation_...` and `test_...` metrics become the `model-index`.
            `unfinished`, such as "step 40 of 400", marks a run that is still training. `base_model` is the model that
            was fine-tuned.
        name: name of the model. Default: name of the folder.
    """
    name, labels = name or real_path(folder).name, list(config.id2label.values())
    height, width = config.image_height_width
    evaluation = read_json(folder / EVALUATION_NAME) if (folder / EVALUATION_NAME).exists() else None
    splits = [split for split in ("validation", "test") if f"{split}_accuracy" in results]
    measured = [{"split": split, **{key: results[f"{split}_{key}"] for key in _MEASURED}} for split in splits]
    has_example = (folder / EXAMPLE_NAME).exists()
    settings = complete_settings(read_json(folder / SETTINGS_NAME))
    card = ModelCard.from_template(
        _card_data(name, config, results, evaluation, has_example),
        template_str=next(file for file in _TEMPLATES if file.is_file()).read_text(encoding="utf-8"),
        name=name,
        tuned=_FROZEN if settings["run"]["freeze_encoder"] else "fine-tuned from",
        base_on_the_hub="/" in results.get("base_model", ""),
        config=config,
        height=height,
        width=width,
        num_labels=len(labels),
        labels=", ".join(labels[:20]) + (", ..." if len(labels) > 20 else ""),
        saw_sample=saw_sample(config),
        results=results,
        measured=measured,
        evaluation=evaluation,
        wrong_plot=(folder / WRONG_PLOT).exists(),
        units=UNITS,
        settings=settings,
        plots=[plot for plot in (CURVES_PLOT, CONFUSION_PLOT) if (folder / plot).exists()],
        has_example=has_example,
    )
    card.save(folder / CARD_NAME)


def _card_data(
    name: str, config: ViTScratchConfig, results: dict, evaluation: dict | None, has_example: bool
) -> ModelCardData:
    """The metadata of the card, which the Hub reads."""
    data, base = results["data"], results.get("base_model", "")
    measured = [
        _eval_result(data, data, split, results[f"{split}_accuracy"])
        for split in ("validation", "test")
        if f"{split}_accuracy" in results
    ]
    if evaluation:
        rows = f"{data}, held-out rows of other models of the recipe"
        measured.append(_eval_result(data, rows, "train", evaluation["accuracy"]))
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["vision", "vit", config.model_type],
        # The Hub accepts only ids of its data sets, which contain a slash. The sample is a part of MNIST.
        datasets=["ylecun/mnist"] if data == SAMPLE else [data] if "/" in data else None,
        base_model=base if "/" in base else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=measured or None,
        **({"widget": [{"src": EXAMPLE_NAME, "example_title": "A held-out image"}]} if has_example else {}),
    )


def _eval_result(data: str, rows: str, split: str, accuracy: float) -> EvalResult:
    return EvalResult(
        task_type="image-classification",
        dataset_type=data,
        dataset_name=rows,
        dataset_split=split,
        metric_type="accuracy",
        metric_value=accuracy,
    )
