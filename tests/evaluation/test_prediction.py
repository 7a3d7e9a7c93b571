"""Classes that are looked for in bf16 first are those of fp32."""

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
    assert not torch.equal(found, expected)
    compared = torch.linspace(0, 399, prediction._COMPARED).long()
    # Batches of another size may round differently in the last bits; bf16 differs in the second decimal.
    torch.testing.assert_close(found[compared], expected[compared], rtol=0, atol=1e-4)
    assert prediction._COMPARED <= sum(exact_rows) < 150
    # What is asked for in full, with changed images, or of few images is fp32 everywhere.
    assert torch.equal(predict_logits(released, split, 50, show_progress=False), expected)
    dark = predict_logits(released, split, 50, lambda images: images / 2, show_progress=False)
    assert torch.equal(
        predict_logits(released, split, 50, lambda images: images / 2, show_progress=False, only_classes=True), dark
    )
    few = split.select(range(100))
    assert torch.equal(predict_logits(released, few, 50, show_progress=False, only_classes=True), expected[:100])


def test_images_are_computed_in_fp32_until_no_class_could_differ():
    exact = torch.zeros(1000, 10)
    exact[:, 3], exact[:, 5] = 4.0, 2.0
    rounded = exact + 0.01
    # Not among the images that are compared first. 10 is found by their error of 0.01, and 11 by that of 10, 0.07.
    exact[10, 5], rounded[10, 5] = 3.97, 3.9
    exact[11, 5], rounded[11, 5] = 4.05, 3.8
    exact[[12, 14], 5], rounded[[12, 14], 5] = 7.0, 7.01
    rounded[12, 0], rounded[14, 7] = float("nan"), float("inf")
    rounded[10, 3] = rounded[11, 3] = 3.93
    asked = []

    def in_fp32(places):
        assert len(places) <= 40
        asked.extend(places)
        return exact[places]

    found = prediction._with_sure_classes(rounded.clone(), in_fp32, 40)
    assert torch.equal(found.argmax(dim=-1), exact.argmax(dim=-1))
    assert set(asked) == {*torch.linspace(0, 999, 64).long().tolist(), 10, 11, 12, 14}
    assert len(asked) == len(set(asked))
