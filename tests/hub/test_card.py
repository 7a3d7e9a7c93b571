import json
import shutil
from importlib import metadata

import pytest
from huggingface_hub import ModelCard

from hf_vit_scratch import ViTScratchConfig
from hf_vit_scratch.hub.card import write_card
from hf_vit_scratch.training.results import measured_energy


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
    for name in ("README.md", "all_results.json", "config.json", "training_args.json"):
        assert str(run_folder.parent) not in (run_folder / name).read_text()


def test_the_card_says_what_it_is_made_of_and_leaves_out_what_is_not_known(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = ViTScratchConfig.from_pretrained(folder)
    results = json.loads((folder / "all_results.json").read_text())

    def card(**other) -> ModelCard:
        write_card(folder, config, results | other)
        return ModelCard.load(folder / "README.md")

    known = card(data="alice/photos", base_model="google/vit", energy_kwh=0.0123)
    assert known.data.to_dict() | {"model-index": None} == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["vision", "vit", "vit_scratch"],
        "datasets": ["alice/photos"],
        "metrics": ["accuracy"],
        "base_model": "google/vit",
        "widget": [{"src": "example.png", "example_title": "A held-out image"}],
        "model-index": None,
    }
    for words in ("fine-tuned from [google/vit](https://huggingface.co/google/vit) with", "| energy | 0.0123 kWh |"):
        assert words in known.text
    assert (
        f"| versions | torch {metadata.version('torch')}, transformers {metadata.version('transformers')},"
        in known.text
    )
    assert "torch 1.0 |" in card(versions={"torch": "1.0"}).text  # of the run, and not of who writes the card
    for name in ("example.png", "confusion_matrix.png"):
        (folder / name).unlink()
    local = card(base_model="vit-of-mine")
    assert not {"datasets", "base_model", "widget"} & local.data.to_dict().keys()
    assert "fine-tuned from `vit-of-mine` with" in local.text and "![curves](curves.png)" in local.text
    assert not [words for words in ("kWh", "confusion_matrix", "example.png", "Unfinished") if words in local.text]
    assert card(data="sample").data.datasets == ["ylecun/mnist"]
    unfinished = card(unfinished="step 3 of 9")
    assert "after step 3 of 9 of a run that is still training" in unfinished.text and "in fp32" not in unfinished.text
    unmeasured = {key: value for key, value in results.items() if not key.startswith("validation")}
    results.clear()
    assert (
        "no labelled split" in card(**unmeasured).text
        and ModelCard.load(folder / "README.md").data.eval_results is None
    )


@pytest.mark.parametrize("stem, trained", [("conv", "of the blocks and the stem |"), ("patch", "of the blocks |")])
def test_the_card_says_whether_muon_trained_the_stem(stem, trained, run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    settings = json.loads((folder / "training_args.json").read_text())
    settings["run"] |= {"muon_learning_rate": 1e-3, "muon_stem": True}
    (folder / "training_args.json").write_text(json.dumps(settings))
    config = ViTScratchConfig.from_pretrained(folder, stem=stem, patch_size=4)
    write_card(folder, config, json.loads((folder / "all_results.json").read_text()))
    assert f"Muon, for the weight matrices {trained}" in ModelCard.load(folder / "README.md").text


def test_the_energy_is_that_of_all_trainings_that_codecarbon_watched(tmp_path):
    assert measured_energy(tmp_path) == {}
    (tmp_path / "emissions.csv").write_text("timestamp,energy_consumed\n2026-01-01,0.5\n2026-01-02,0.25\n")
    assert measured_energy(tmp_path) == {"energy_kwh": 0.75}
