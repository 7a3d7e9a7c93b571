"""What the page says of a picture, without a page."""

import base64
import io
import pickle

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from PIL import Image, ImageOps

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.data import load
from hf_vit_scratch.data.pixels import known_labels
from hf_vit_scratch.demo.answers import MAX_UPLOAD_BYTES, ShownModel, data_uri, read_picture
from hf_vit_scratch.demo.examples import examples, note
from hf_vit_scratch.explanation import rollout_map

RELEASED = REPOSITORY / "model_cards" / "vit-scratch-digits-small"


def saved(folder, size=32, **fields) -> str:
    """A small model of photographs with random weights."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTScratchConfig(image_size=size, patch_size=8, num_channels=3, **sizes, **fields)
    torch.manual_seed(0)
    ViTScratchForImageClassification(config).save_pretrained(folder)
    ViTScratchImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def sent(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def test_a_photograph_is_answered_with_the_ten_best_of_its_classes(tmp_path):
    names = [f"kind {index}" for index in range(12)]
    model = ShownModel(saved(tmp_path, id2label=dict(enumerate(names))))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    answer = model.answer(photo)
    with torch.inference_mode():
        pixels = model.classifier.processor(photo, return_tensors="pt")["pixel_values"]
        scores = model.classifier.model(pixels).logits.softmax(-1)[0]
    best = scores.argsort(descending=True)[:10].tolist()
    assert [name for name, _ in answer["bars"]] == [names[index] for index in best]
    np.testing.assert_allclose([score for _, score in answer["bars"]], scores[best], atol=1e-6)
    assert (answer["label"], answer["score"]) == tuple(answer["bars"][0])
    # What the model was given: mean and standard deviation of the processor are 0.5.
    given = np.asarray(decoded(answer["given"]))
    np.testing.assert_array_equal(given, np.rint((pixels[0].numpy().transpose(1, 2, 0) + 1) * 127.5))
    assert decoded(answer["looked"]).size == (4, 4)
    assert not model.reads_digits and examples(model) == {"pictures": [], "note": ""}


def test_where_it_looked_is_most_opaque_where_the_rollout_is_largest(tmp_path):
    model = ShownModel(saved(tmp_path))
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    looked = rollout_map(
        model.classifier.model, model.classifier.processor(photo, return_tensors="pt")["pixel_values"]
    )
    layer = np.asarray(decoded(model.answer(photo)["looked"]))
    np.testing.assert_allclose(layer[..., 3], 190 * looked[0] / looked[0].max(), atol=0.51)
    assert (layer[..., :3] == (255, 120, 0)).all()


def test_a_picture_without_a_digit_is_said_to_have_none():
    model = ShownModel(RELEASED)
    for colour, drawn in (("black", True), ("black", False), ("white", False)):
        with pytest.raises(ValueError, match="No digit was found"):
            model.answer(Image.new("RGB", (280, 280), colour), drawn)


def test_dark_digits_on_a_page_are_read_and_the_clearest_of_several_is_named():
    model, sample = ShownModel(RELEASED), load("sample", validation_size=0)["train"]
    rows = [int(np.flatnonzero(known_labels(sample) == label)[3]) for label in range(10)]
    for label, row in enumerate(rows):
        ink = ImageOps.invert(sample[row]["image"]).resize((140, 140), Image.Resampling.BICUBIC)
        page = Image.new("RGB", (500, 400), "white")
        page.paste(ink, (260, 90))
        answer = model.answer(page)
        assert (answer["label"], answer["note"]) == (str(label), "")
        page.paste(ink.point(lambda value: 255 - (255 - value) * 3 // 4), (60, 200))
        answer = model.answer(page)
        assert (answer["label"], answer["note"]) == (str(label), "2 digits were found: this is the clearest.")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "pictures only"),
        ("/etc/passwd", "pictures only"),
        ("http://127.0.0.1/digit.png", "pictures only"),
        ({"path": "/etc/passwd"}, "pictures only"),
        ("data:image/png;base64,", "is not a picture in the format PNG, JPEG, WebP, GIF or BMP"),
        ("data:image/png;base64,%%%", "did not arrive whole"),
        (sent(pickle.dumps([1])), "is not a picture"),
        (sent(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is not a picture"),
        (sent(png(Image.new("L", (28, 28)))[:-30]), "cannot be used"),
        (sent(png(Image.new("L", (20_000, 20_000)))), "cannot be used"),
        (sent(png(Image.new("1", (7_100, 7_100)))), "it has 7100x7100 pixels, and the most are 50 million"),
        (sent(png(Image.new("L", (1, 1_000)))), "sides that differ"),
        (sent(bytes(MAX_UPLOAD_BYTES + 1)), "more than 10 MB"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_whatever_is_no_picture_is_refused_in_one_sentence(value, words):
    with pytest.raises(ValueError, match=words) as refused:
        read_picture(value)
    assert str(refused.value).count("\n") == 0 and "object at" not in str(refused.value)


def test_a_picture_of_each_format_is_read_as_it_was_sent():
    picture = Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28))
    assert np.array_equal(read_picture(data_uri(picture)), picture)
    for form in ("JPEG", "WEBP", "GIF", "BMP"):
        content = io.BytesIO()
        picture.save(content, form)
        assert read_picture(f"data:;base64,{base64.b64encode(content.getvalue()).decode()}").size == (28, 28)


def test_a_model_without_probabilities_is_refused(tmp_path):
    with pytest.raises(ValueError, match="was trained for regression"):
        ShownModel(saved(tmp_path, num_labels=1, problem_type="regression"))


def test_the_page_says_what_the_training_data_mean_for_the_examples():
    notes = [note(ViTScratchConfig(training_data=[name])) for name in ("sample", "digit-recognizer", "photos")]
    assert "trained on the digits that these were chosen from" in notes[0]
    assert "holds 3,005 of the 5,000" in notes[1]
    assert notes[2] == note(ViTScratchConfig()) == ""
