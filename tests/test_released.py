"""The models that are released in model_cards/, as somebody meets them who has only their folder."""

import json

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from huggingface_hub import ModelCard
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter
from processes import run_python

from hf_vit_scratch.evaluation.classifier import load_model
from hf_vit_scratch.evaluation.metrics import binomial_interval
from hf_vit_scratch.hub.repository import files_to_push

RELEASED = sorted(file.parent for file in (REPOSITORY / "model_cards").glob("*/config.json"))
DIGITS, PHOTOS = ([folder for folder in RELEASED if kind in folder.name] for kind in ("digits", "photos"))

# Arguments: the folder of the model, pictures.
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_vit_scratch"] = None  # an installed package is not found either
from transformers import pipeline

classify = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
for picture in sys.argv[2:]:
    best = classify(picture)[0]
    print(best["label"], best["score"])
"""


def printed_digit(digit: int) -> Image.Image:
    """White on black, as thick, as large and as soft as one that was written with a pen: 20 of 28 pixels high."""
    figure = Figure(figsize=(2.24, 2.24), dpi=100, facecolor="black")
    figure.text(0.5, 0.5, str(digit), color="white", size=125, ha="center", va="center")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L")
    inner = picture.crop(picture.getbbox()).filter(ImageFilter.GaussianBlur(3))
    inner.thumbnail((20, 20))
    digit_of_28 = Image.new("L", (28, 28))
    digit_of_28.paste(inner, ((28 - inner.width) // 2, (28 - inner.height) // 2))
    return digit_of_28


def answers_with_its_own_code_as_with_the_package(folder, pictures, tmp_path) -> list[str]:
    """The predicted labels, if both agree."""
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    printed = run_python(WITHOUT_THE_PACKAGE, folder, *pictures, environment=environment, cwd=tmp_path)
    answers = [line.split() for line in printed.splitlines()]
    model, processor = load_model(folder)
    with torch.inference_mode():
        pixels = processor([Image.open(picture) for picture in pictures], return_tensors="pt")
        scores, labels = model(**pixels).logits.softmax(-1).max(-1)
    assert [label for label, _ in answers] == [model.config.id2label[int(label)] for label in labels]
    torch.testing.assert_close(torch.tensor([float(score) for _, score in answers]), scores, atol=1e-5, rtol=0)
    return [label for label, _ in answers]


@pytest.mark.parametrize("folder", DIGITS, ids=lambda folder: folder.name)
def test_a_released_model_reads_digits(folder, tmp_path):
    pictures = [tmp_path / f"{digit}.png" for digit in range(10)]
    for digit, picture in enumerate(pictures):
        printed_digit(digit).save(picture)
    assert answers_with_its_own_code_as_with_the_package(folder, pictures, tmp_path) == list("0123456789")


def photograph(of: str) -> Image.Image:
    """A ship on the sea under a clear sky, or an airplane in it, with the grain of a photograph."""
    random = np.random.default_rng(0)
    picture = Image.new("RGB", (320, 320), (150, 190, 230))
    draw = ImageDraw.Draw(picture)
    if of == "ship":
        draw.rectangle((0, 200, 320, 320), fill=(40, 80, 120))
        draw.polygon(((30, 180), (290, 180), (260, 230), (60, 230)), fill=(70, 40, 40))
        draw.rectangle((120, 130, 220, 180), fill=(230, 230, 230))
        draw.rectangle((150, 90, 175, 130), fill=(180, 50, 40))
    else:
        draw.polygon(((20, 150), (60, 140), (290, 150), (305, 165), (60, 180)), fill=(225, 225, 230))
        draw.polygon(((140, 160), (200, 160), (130, 270), (100, 270)), fill=(190, 190, 200))
        draw.polygon(((140, 145), (180, 145), (140, 80), (120, 80)), fill=(205, 205, 215))
        draw.polygon(((20, 150), (60, 145), (40, 90), (15, 90)), fill=(200, 60, 60))
    grain = random.normal(0, 6, (320, 320, 3))
    picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(3)).resize((32, 32))


@pytest.mark.parametrize("folder", PHOTOS, ids=lambda folder: folder.name)
def test_a_released_model_knows_a_ship_from_an_airplane(folder, tmp_path):
    pictures = [tmp_path / f"{of}.png" for of in ("ship", "airplane")]
    for picture in pictures:
        photograph(picture.stem).save(picture)
    assert answers_with_its_own_code_as_with_the_package(folder, pictures, tmp_path) == ["ship", "airplane"]


@pytest.mark.parametrize("folder", DIGITS, ids=lambda folder: folder.name)
def test_a_released_model_can_be_pushed_and_its_card_has_the_figures_of_its_evaluation(folder):
    names = {file.name for file in files_to_push(folder)}
    assert {"model.safetensors", "README.md", "evaluation.json", "robustness.png", "wrong.png"} <= names
    evaluation = json.loads((folder / "evaluation.json").read_text())
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(1 - evaluation["errors"] / evaluation["num_images"])
    assert f"| {evaluation['errors']} | {evaluation['num_images']:,} |" in card.text
    assert sum(model["errors"] for model in evaluation["models"]) == evaluation["errors"]
    low, high = (100 * bound for bound in evaluation["interval"])
    header = (REPOSITORY / "hf_vit_scratch" / "settings" / "recipes" / f"{evaluation['recipe']}.yaml").read_text()
    words = f"{evaluation['errors']} of {evaluation['num_images']:,} wrong"
    assert words in header and f"({low:.3f} to {high:.3f}%)" in header
    words = f"{evaluation['errors']} wrong of {evaluation['num_images']:,}"
    assert words in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("folder", PHOTOS, ids=lambda folder: folder.name)
def test_the_card_of_photographs_has_the_figures_of_the_test_images(folder):
    names = {file.name for file in files_to_push(folder)}
    assert {"model.safetensors", "README.md", "curves.png"} <= names
    assert (folder / "model.safetensors").stat().st_size < 25e6
    results = json.loads((folder / "all_results.json").read_text())
    wrong, images = results["test_errors"], results["test_num_images"]
    low, high = (100 * bound for bound in binomial_interval(images - wrong, images))
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.metric_value) == ("test", pytest.approx(1 - wrong / images))
    assert f"| test | {images:,} | {wrong} | {100 - 100 * wrong / images:.2f}% |" in card.text
    words = f"{100 - 100 * wrong / images:.2f}% ({low:.2f} to {high:.2f}%)"
    header = (REPOSITORY / "hf_vit_scratch" / "settings" / "recipes" / f"{results['recipe']}.yaml").read_text()
    assert words in header and words in (REPOSITORY / "README.md").read_text()


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)
def test_a_released_model_carries_the_code_of_the_package(folder):
    files = sorted(folder.glob("*.py"))
    assert len(files) == 4
    for file in files:
        assert file.read_bytes() == (REPOSITORY / "hf_vit_scratch" / "model" / file.name).read_bytes(), file.name
