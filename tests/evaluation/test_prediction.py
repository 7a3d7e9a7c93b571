"""Classes that are looked for in bf16 first are those of fp32."""

from types import SimpleNamespace

import pytest
import torch
from helpers import REPOSITORY

from hf_vit_scratch import data
from hf_vit_scratch.evaluation import prediction
from hf_vit_scratch.evaluation.classifier import load_model
from hf_vit_scratch.evaluation.prediction import predict_logits


@pytest.fixture(scope="module")
def released():
    return load_model(REPOSITORY / "model_cards" / "vit-scratch-digits-small", torch.device("cpu"))


@pytest.fixture
def exact_rows(released):
    """The numbers of images of each call of the model in fp32."""
    counts = []

    def count(model, inputs, outputs):  # a copy of the model has the hook too
        if outputs.logits.dtype == torch.float32:
            counts.append(len(outputs.logits))

    hook = released.model.register_forward_hook(count)
    yield counts
    hook.remove()


def test_the_classes_are_those_of_fp32_and_few_images_are_computed_twice(released, exact_rows, monkeypatch):
    monkeypatch.setattr(prediction, "computes_bf16", lambda device: True)
    split = data.load("sample", validation_size=0)["train"].shuffle(seed=0).select(range(400))
    expected = predict_logits(released, split, 50, show_progress=False)
    assert sum(exact_rows) == 400
    exact_rows.clear()
    found = predict_logits(released, split, 50, show_progress=False, only_classes=True)
    assert torch.equal(found.argmax(dim=-1), expected.argmax(dim=-1))
    assert torch.equal(found[:50], expected[:50])  # the first batch is computed in fp32 too
    assert not torch.equal(found, expected)
    assert 50 <= sum(exact_rows) < 150
    # What is asked for in full is fp32 everywhere.
    assert torch.equal(predict_logits(released, split, 50, show_progress=False), expected)


def test_an_image_is_computed_in_fp32_if_its_class_could_differ_or_bf16_failed(released, exact_rows):
    exact = torch.zeros(6, 10)
    exact[:, 3], exact[:, 5] = 4.0, torch.tensor([3.9, 3.99, 1.0, 4.05, 0.0, 0.0])
    rounded = exact.clone()
    rounded[1, 5], rounded[3, 5], rounded[4, 0] = 4.01, 3.95, float("nan")  # two classes are swapped, one is lost
    look = prediction._FirstInBf16(released.model)
    look.error = 0.06
    look.in_bf16 = lambda pixel_values: SimpleNamespace(logits=rounded[pixel_values[:, 0, 0, 0].long()].bfloat16())
    look.model = lambda pixel_values: (
        exact_rows.append(len(pixel_values)) or SimpleNamespace(logits=exact[pixel_values[:, 0, 0, 0].long()])
    )
    pixel_values = torch.arange(6).float().view(6, 1, 1, 1).expand(6, 1, 28, 28)
    found = look(pixel_values)
    assert exact_rows == [4]  # the images 0, 1 and 3, whose margin is small, and 4, which is not a number
    assert torch.equal(found.argmax(dim=-1), exact.argmax(dim=-1))
    assert torch.equal(found[[0, 1, 3, 4]], exact[[0, 1, 3, 4]])
