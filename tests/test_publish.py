import json

import pytest
from huggingface_hub import ModelCard


def test_the_card_reads_back_with_the_results_of_the_run(run_folder):
    card = ModelCard.load(run_folder / "README.md")
    results = json.loads((run_folder / "all_results.json").read_text())
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_split) == ("accuracy", "validation")
    assert result.metric_value == pytest.approx(results["validation_accuracy"])
    assert f"{results['parameters']:,}" in card.text
    assert "Trained on the sample" not in card.text


def test_the_card_and_the_results_name_no_path_of_the_machine(run_folder):
    for name in ("README.md", "all_results.json", "config.json"):
        assert str(run_folder.parent) not in (run_folder / name).read_text()
