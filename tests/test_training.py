import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY, competition_zip, photo_folder
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.arguments import parse_arguments
from hf_vit_scratch.augmentation import DigitAugmentation
from hf_vit_scratch.trainer import MildEnd, ViTScratchTrainer, WeightAverage
from hf_vit_scratch.training import main

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def error_of(capsys, *argv) -> str:
    """The one line with which a run is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "error" in line]
    assert line.startswith("train.py: error:")
    return line


# ---- the output folder


def test_a_run_leaves_one_folder_with_everything(run_folder):
    names = {path.name for path in run_folder.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "all_results.json"} <= names
    assert {f"{room}_vit_scratch.py" for room in ("configuration", "modeling", "image_processing")} <= names
    assert {"curves.png", "confusion_matrix.png", "submission.csv"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_the_submission_is_kaggles_format_in_the_order_of_the_test_split(run_folder):
    with open(run_folder / "submission.csv", newline="") as stream:
        header, *rows = csv.reader(stream)
    labels = json.loads((run_folder.parent / "test_labels.json").read_text())
    assert header == ["ImageId", "Label"]
    assert [int(row[0]) for row in rows] == list(range(1, len(labels) + 1))
    assert np.mean([int(row[1]) == label for row, label in zip(rows, labels, strict=True)]) > 0.9


def test_the_measured_accuracy_is_that_of_the_saved_folder(run_folder):
    """Recomputed image by image, through transformers' classes and the processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_vit_scratch import data

    split = data.load(run_folder.parent / "digits.zip")["validation"]
    model = AutoModelForImageClassification.from_pretrained(run_folder)
    processor = AutoImageProcessor.from_pretrained(run_folder)
    with torch.inference_mode():
        logits = model(**processor(list(split["image"]), return_tensors="pt")).logits
    labels = torch.tensor(split["label"][:])
    results = json.loads((run_folder / "all_results.json").read_text())
    assert results["validation_errors"] == int((logits.argmax(dim=-1) != labels).sum())
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert results["validation_negative_log_likelihood"] == pytest.approx(expected, abs=1e-5)
    assert results["validation_accuracy"] > 0.9


def test_what_is_evaluated_during_training_are_the_averaged_weights(run_folder):
    """The last evaluation is of the last step, and so are the weights of the folder."""
    history = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    name = "negative_log_likelihood"
    last = [row[f"eval_{name}"] for row in history if f"eval_{name}" in row][-1]
    results = json.loads((run_folder / "all_results.json").read_text())
    assert last == pytest.approx(results[f"validation_{name}"], rel=1e-4)


def test_training_images_are_augmented_and_others_are_not(digits, tmp_path, monkeypatch):
    from hf_vit_scratch.augmentation import DigitAugmentation

    augmented, original = [], DigitAugmentation.forward
    monkeypatch.setattr(DigitAugmentation, "forward", lambda self, x: augmented.append(len(x)) or original(self, x))
    main(["--data", digits, *TINY, "--output_dir", str(tmp_path / "out"), "--rotation_degrees", "20"])
    assert sum(augmented) == 2 * 180  # two epochs, and neither the evaluations nor the prediction of the test split
    settings = json.loads((tmp_path / "out" / "training_args.json").read_text())
    assert settings["augmentation"]["rotation_degrees"] == 20
    assert settings["data"]["data"] == "digit-recognizer"


def test_compiling_changes_the_speed_and_not_the_weights(digits, tmp_path):
    """Where there is no C++ compiler, training goes on without."""
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "1", "--bf16", "false", "--eval_strategy", "no"]
    main([*arguments, "--output_dir", str(tmp_path / "eager")])
    main([*arguments, "--output_dir", str(tmp_path / "compiled"), "--torch_compile", "true"])
    assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "eager"))


def test_the_folder_has_the_average_and_a_checkpoint_both_sets_of_weights(run_folder):
    checkpoint = max(run_folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    raw, average = load_file(checkpoint / "model.safetensors"), load_file(checkpoint / "average.safetensors")
    released = load_file(run_folder / "model.safetensors")
    assert raw.keys() == average.keys() == released.keys()
    assert all(torch.equal(released[name], average[name]) for name in average)
    assert any(not torch.equal(released[name], raw[name]) for name in raw)


def test_arguments_are_kept_without_a_token(tmp_path):
    competition_zip(tmp_path / "digits.zip")
    secret = "hf_" + "x" * 34
    main(["--data", str(tmp_path / "digits.zip"), "--output_dir", str(tmp_path / "out"), *TINY, "--hub_token", secret])
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert (tmp_path / "out" / "training_args.json") in files
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    """All weights but the key's biases: softmax takes no notice of them, so their gradient is rounding noise."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        parts = (0, 2) if name.endswith("qkv.bias") else (0,)
        chunks = 3 if name.endswith("qkv.bias") else 1
        for part in parts:
            one, other = actual[name].chunk(chunks)[part], tensor.chunk(chunks)[part]
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


# ---- repeating and resuming


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    competition_zip(folder / "digits.zip")
    return str(folder / "digits.zip")


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "more", [[], ["--muon_learning_rate", "1e-3"], ["--teacher_epochs", "2", "--num_teachers", "2"]]
)
def test_a_seed_repeats_a_run_and_a_resumed_run_ends_as_if_never_stopped(more, digits, tmp_path):
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "4", "--save_steps", "5", "--eval_strategy", "no"]
    arguments += ["--hidden_dropout_prob", "0.1", "--drop_path_rate", "0.1", "--save_total_limit", "9"]
    arguments += ["--augmentation", "digits", "--mild_fraction", "0.3", *more]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    main([*arguments, "--output_dir", str(tmp_path / "other"), "--seed", "7"])
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))

    main([*arguments, "--output_dir", str(tmp_path / "again")])
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "again"))
    # As if killed while it wrote checkpoint 15: what came after 10 is gone or incomplete.
    stopped = tmp_path / "again"
    for path in [*stopped.glob("checkpoint-2*"), stopped / "checkpoint-15" / "trainer_state.json"]:
        for file in path.iterdir() if path.is_dir() else [path]:
            file.unlink()
    (stopped / "model.safetensors").unlink()
    main([*arguments, "--output_dir", str(stopped), "--resume_from_checkpoint", "true"])
    assert same(weights(tmp_path / "whole"), weights(stopped))


def test_a_run_is_not_overwritten_and_another_model_is_not_resumed(digits, tmp_path, capsys):
    arguments = ["--data", digits, *TINY, "--output_dir", str(tmp_path / "out")]
    main(arguments)
    (tmp_path / "out" / "checkpoint-999").mkdir()
    (tmp_path / "out" / "checkpoint-final").mkdir()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "holds a run already" in error_of(capsys, *arguments)
    resume = ["--resume_from_checkpoint", "true"]
    assert "hidden_size 16, this run 32" in error_of(capsys, *arguments, *resume, "--hidden_size", "32")
    assert "split_seed 42, this run 1" in error_of(capsys, *arguments, *resume, "--split_seed", "1")
    assert "fold None, this run 1" in error_of(capsys, *arguments, *resume, "--fold", "1")
    muon = ["--muon_learning_rate", "1e-3"]
    assert "muon_learning_rate None, this run 0.001" in error_of(capsys, *arguments, *resume, *muon)
    settings = tmp_path / "out" / "training_args.json"
    as_it_was = settings.read_text()
    written = json.loads(as_it_was)
    del written["data"]["fold"]  # as a version without this flag wrote it
    settings.write_text(json.dumps(written))
    assert "fold None, this run 1" in error_of(capsys, *arguments, *resume, "--fold", "1")
    settings.write_text(as_it_was)
    # Neither is a finished run by going on with a checkpoint of another, nor a folder that is no run.
    (checkpoint, *_) = (tmp_path / "out").glob("checkpoint-1*")
    shutil.copytree(checkpoint, tmp_path / "other" / checkpoint.name)
    other = ["--resume_from_checkpoint", str(tmp_path / "other" / checkpoint.name)]
    assert "holds a run already" in error_of(capsys, *arguments, *other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    mine = ["--output_dir", str(tmp_path / "mine")]
    assert "README.md that is not of a run" in error_of(capsys, *arguments, *mine, "--overwrite_output_dir")
    # What is refused is refused before anything is removed.
    wrong = ["--overwrite_output_dir", "--augmentation", "flip"]
    assert "augmentation must be" in error_of(capsys, *arguments, *wrong)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for more in ([], other):
        main([*arguments, "--overwrite_output_dir", *more])
        assert not (tmp_path / "out" / "checkpoint-999").exists()
        (tmp_path / "out" / "checkpoint-999").mkdir()


def test_a_run_that_is_written_over_leaves_nothing_that_the_new_one_is_taken_for(digits, tmp_path, monkeypatch):
    arguments = ["--data", digits, *TINY, "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    main([*arguments, "--fold", "3"])

    def stop(*_, **__):
        raise RuntimeError("the machine has failed")

    monkeypatch.setattr("hf_vit_scratch.training.ViTScratchTrainer.train", stop)
    with pytest.raises(RuntimeError, match="failed"):
        main([*arguments, "--fold", "4", "--overwrite_output_dir"])
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"config.json", "model.safetensors", "all_results.json", "README.md", "curves.png"}
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert '"fold": 4' in (tmp_path / "out" / "training_args.json").read_text()


def test_all_rows_can_be_trained_on_without_a_validation_split(digits, tmp_path):
    main(["--data", digits, *TINY, "--validation_size", "0", "--output_dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["train_images"] == 200
    assert not [name for name in results if name.startswith("validation")]
    assert (tmp_path / "out" / "submission.csv").exists()


# ---- the parts of the trainer


def test_the_average_follows_its_closed_form():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.6)
    expected = model.weight.detach().clone()
    state = type("State", (), {})()
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.add_(step)
        state.global_step = step
        average.on_step_end(None, state, None)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    raw = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    torch.testing.assert_close(model.weight.detach(), raw, rtol=0, atol=0)


def test_the_statistics_of_a_batch_norm_are_averaged_with_the_weights():
    model = nn.BatchNorm1d(2, momentum=1.0)  # its running mean is that of the last batch
    average, state = WeightAverage(model, decay=0.25), type("State", (), {})()
    for step, mean in ((1, 3.0), (2, 5.0)):
        model(torch.full((4, 2), mean))
        state.global_step = step
        average.on_step_end(None, state, None)
    first = (1 - 2 / 11) * 3.0
    with average.in_place():
        torch.testing.assert_close(model.running_mean, torch.full((2,), 0.25 * first + 0.75 * 5.0))
        assert model.num_batches_tracked == 2
    torch.testing.assert_close(model.running_mean, torch.full((2,), 5.0))


def test_augmentation_is_mild_for_the_last_part_of_the_steps():
    augmentation = DigitAugmentation(10, 0, 0, 0, 0)
    callback, seen = MildEnd(augmentation, fraction=0.25, strength=0.4), []
    for step in range(8):
        callback.on_step_begin(None, TrainerState(global_step=step, max_steps=8), None)
        seen.append(augmentation.strength)
    assert seen == [1.0] * 6 + [0.4] * 2


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_weight_decay_leaves_out_biases_norms_and_embeddings(stem):
    config = ViTScratchConfig.from_size("digits-tiny", num_hidden_layers=1, stem=stem)
    model = ViTScratchForImageClassification(config)
    decayed = set(ViTScratchTrainer.get_decay_parameter_names(None, model))
    shapes = dict(model.named_parameters())
    assert decayed <= shapes.keys()
    left_out = shapes.keys() - decayed
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} <= left_out
    assert all(shapes[name].dim() in (2, 4) for name in decayed)
    assert all(shapes[name].dim() == 1 or "embeddings" in name for name in left_out)
    assert "vit.layers.0.attention.qkv.weight" in decayed


# ---- flags and recipes


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("size: digits-small\nhidden_size: 48\nlearning_rate: 1e-3\nimage_size: [28, 20]\nbf16: false\n")
    run, _, _, model, training = parse_arguments(["--recipe", str(recipe), "--hidden_size", "96"])
    assert (run.size, model.hidden_size, model.image_size) == ("digits-small", 96, [28, 20])
    assert (training.learning_rate, training.bf16) == (0.001, False)
    assert model.num_hidden_layers is None  # not given: the size says it
    assert training.output_dir == "output/mine"


def test_every_field_of_the_config_is_a_flag_of_its_name():
    flags = {
        "image_size": "56", "patch_size": "8", "num_channels": "3", "hidden_size": "24", "num_hidden_layers": "3",
        "num_attention_heads": "2", "intermediate_size": "40", "hidden_act": "relu", "hidden_dropout_prob": "0.1",
        "attention_probs_dropout_prob": "0.2", "layer_norm_eps": "1e-5", "initializer_range": "0.03",
        "qkv_bias": "false", "position_embedding": "sincos2d", "pooling": "mean", "stem": "conv",
        "stem_depth": "2", "stem_width": "12", "drop_path_rate": "0.3",
    }  # fmt: skip
    assert flags.keys() == ViTScratchConfig.__annotations__.keys() - {"training_data"}
    model = parse_arguments([part for name, value in flags.items() for part in (f"--{name}", value)])[3]
    fields = {**vars(model), "image_size": model.image_size[0]}
    config = ViTScratchConfig(**fields)
    for name, value in flags.items():
        assert str(getattr(config, name)).lower() == value or math.isclose(getattr(config, name), float(value))


@pytest.mark.parametrize("recipe", [path.stem for path in (REPOSITORY / "hf_vit_scratch" / "recipes").glob("*.yaml")])
def test_every_recipe_of_the_package_can_be_read(recipe):
    run, _, _, model, training = parse_arguments(["--recipe", recipe])
    fields = {name: value for name, value in vars(model).items() if value is not None and name != "image_size"}
    config = ViTScratchConfig.from_size(
        run.size or "B/16", **fields, **({"image_size": model.image_size[0]} if model.image_size else {})
    )
    assert config.num_hidden_layers > 0
    assert isinstance(training, TrainingArguments)


def test_a_run_that_diverges_is_stopped_with_one_line(digits, tmp_path, capsys):
    rate = ["--learning_rate", "1e30", "--warmup_steps", "0", "--max_steps", "50"]
    words = error_of(capsys, "--data", digits, *TINY, *rate, "--output_dir", str(tmp_path / "out"))
    assert "training has diverged: the loss is nan" in words and "learning_rate below 1e+30" in words


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--hiden_size", "96"], "--hiden_size"),
        (["--hidden_size", "wide"], "wide"),
        (["--recipe", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["--recipe", "{folder}/unknown.yaml"], "unknown keys: hiden_size"),
        (["--recipe", "{folder}/list.yaml"], "mapping"),
        (["--recipe", "{folder}/broken.yaml"], "not YAML"),
        (["--recipe", "{folder}/word.yaml"], "abc"),
        (["--data", "{folder}/absent.zip"], "absent.zip"),
        (["--data", "{digits}", "--num_attention_heads", "5"], "num_attention_heads (5)"),
        (["--data", "{digits}", "--patch_size", "5"], "patch_size (5)"),
        (["--data", "{digits}", "--size", "huge"], "unknown size 'huge'"),
        (["--data", "{digits}", "--augmentation", "flip"], "augmentation"),
        (["--data", "{digits}", "--load_best_model_at_end", "true"], "load_best_model_at_end"),
        (["--data", "{digits}", "--resume_from_checkpoint", "true"], "no whole checkpoint"),
        (["--data", "{digits}", "--ema_decay", "1.5"], "ema_decay"),
        (["--data", "{digits}", "--muon_learning_rate", "-1"], "muon_learning_rate"),
        (["--data", "{digits}", "--teacher_epochs", "-1"], "teacher_epochs"),
        (["--data", "{digits}", "--num_teachers", "0"], "num_teachers must be at least 1, got 0"),
        (["--data", "{digits}", "--teacher_weight", "2"], "teacher_weight"),
        (["--data", "{digits}", "--teacher_temperature", "0"], "teacher_temperature"),
        (["--data", "{digits}", "--augmentation", "digits", "--mild_fraction", "2"], "mild_fraction"),
        (["--data", "{digits}", "--augmentation", "digits", "--mild_strength", "-1"], "mild_strength"),
        (["--data", "{digits}", "--fold", "6"], "got fold 6 of 5"),
        (["--data", "{digits}", "--stem_depth", "2"], "stem_depth"),
        (["--data", "{digits}", "--push_to_hub"], "push_to_hub"),
        (["--data", "{folder}/photos"], "--recipe photos-small"),
        (["--data", "{folder}/photos", "--recipe", "photos-small", "--min_crop_area", "-1"], "min_crop_area"),
        (["--data", "{folder}/photos", "--recipe", "photos-small", "--crop_fraction", "2"], "crop_fraction"),
        (["--data", "{digits}", "--bf16_full_eval", "true"], "bf16_full_eval"),
        (["--recipe", "{folder}/keys.yaml"], "unknown keys: 1, hiden_size"),
    ],
)
def test_bad_input_is_refused_in_one_line(argv, words, digits, tmp_path, capsys):
    (tmp_path / "unknown.yaml").write_text("hiden_size: 96\n")
    (tmp_path / "keys.yaml").write_text("1: 2\nhiden_size: 96\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: }")
    (tmp_path / "word.yaml").write_text("learning_rate: abc\n")
    photo_folder(tmp_path / "photos")
    argv = [part.format(folder=tmp_path, digits=digits) for part in argv]
    assert words in error_of(capsys, *argv, "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "config.json").exists()


# ---- other data


def test_the_default_is_the_sample_and_its_model_says_so(tmp_path, capsys):
    main(
        [
            "--output_dir",
            str(tmp_path / "out"),
            *TINY,
            "--patch_size",
            "4",
            "--max_steps",
            "3",
            "--eval_strategy",
            "no",
        ]
    )
    printed = capsys.readouterr().out
    assert "sample" in printed and "kaggle.com/competitions/digit-recognizer" in printed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["training_data"] == ["sample"]
    assert "Trained on the sample" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_images"] == 4500


def test_photographs_of_all_sizes_train_by_their_recipe(tmp_path):
    photo_folder(tmp_path / "photos", per_class=16, test="labelled")
    flags = ["--image_size", "32", "--patch_size", "8", "--num_train_epochs", "15", "--dataloader_num_workers", "0"]
    tiny = [
        "--hidden_size",
        "16",
        "--num_hidden_layers",
        "2",
        "--num_attention_heads",
        "2",
        "--intermediate_size",
        "32",
    ]
    out = tmp_path / "out"
    main(["--data", str(tmp_path / "photos"), "--recipe", "photos-small", "--output_dir", str(out), *flags, *tiny,
          "--use_cpu", "true", "--disable_tqdm", "true", "--per_device_train_batch_size", "8"])  # fmt: skip
    results = json.loads((out / "all_results.json").read_text())
    assert (results["train_images"], results["validation_num_images"]) == (32, 16)
    assert (results["test_num_images"], results["test_accuracy"] > 0.8) == (6, True)
    assert results["validation_accuracy"] > 0.8
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "blue", "1": "red"}
    assert not (out / "submission.csv").exists()


def test_a_submission_has_the_names_of_the_classes(tmp_path):
    photo_folder(tmp_path / "photos", test="flat")
    out, flags = tmp_path / "out", ["--image_size", "28", "--max_steps", "2", "--num_channels", "3"]
    main(["--data", str(tmp_path / "photos"), *TINY, *flags, "--output_dir", str(out)])
    with open(out / "submission.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert {row["Label"] for row in rows} <= {"blue", "red"}


def test_gradient_accumulation_takes_the_steps_of_the_larger_batch(digits, tmp_path):
    """Two halves of a batch give the gradient of the whole, so the first steps end at the same weights."""
    arguments = ["--data", digits, *TINY, "--bf16", "false", "--augmentation", "none", "--max_steps", "2"]
    arguments += ["--eval_strategy", "no", "--label_smoothing_factor", "0"]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    halves = ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2"]
    main([*arguments, *halves, "--output_dir", str(tmp_path / "halves")])
    assert_close(weights(tmp_path / "halves"), weights(tmp_path / "whole"))


# ---- two processes

RECORDING = """
import json, os, sys
import torch.distributed
from hf_vit_scratch import training
from hf_vit_scratch.batches import ImageBatches
seen, phase = {"train": [], "evaluated": [], "predicted": [], "saved": []}, "evaluated"
original = ImageBatches.__getitems__
def record(self, indices):
    seen["train" if len(self) == 180 else phase].append(list(map(int, indices)))
    return original(self, indices)
ImageBatches.__getitems__ = record
predict = training.predict_logits
def in_phase(*args):
    global phase
    phase = "predicted"
    return predict(*args)
training.predict_logits = in_phase
save = training.ViTScratchForImageClassification.save_pretrained
def record_save(self, folder, *args, **kwargs):
    seen["saved"].append(str(folder))
    return save(self, folder, *args, **kwargs)
training.ViTScratchForImageClassification.save_pretrained = record_save
training.main(sys.argv[2:])
world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
with open(f"{sys.argv[1]}-{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump({"world": world, **seen}, file)
"""


def test_two_processes_see_every_image_once_and_write_once(digits, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RECORDING)
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "1", "--per_device_train_batch_size", "15"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--eval_strategy", "epoch", "--ddp_backend", "gloo"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [*TORCHRUN, str(script), str(tmp_path / "seen"), *arguments]
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=tmp_path)
    ranks = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    rows = [row for rank in ranks for batch in rank["train"] for row in batch]
    assert sorted(rows) == list(range(180))
    # Validation has 20 rows and test 50, and each was predicted by one of the two. The Trainer's own evaluation pads
    # its one batch to give both something to do, and must not count that.
    predicted = [row for rank in ranks for batch in rank["predicted"] for row in batch]
    assert sorted(predicted) == sorted([*range(20), *range(50)])
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [row["eval_num_images"] for row in history if "eval_num_images" in row] == [20]
    assert all(rank["predicted"] for rank in ranks)
    assert ranks[0]["saved"].count(str(tmp_path / "out")) == 1
    assert ranks[1]["saved"] == []

    from hf_vit_scratch.cli import main as vit_scratch

    alone = tmp_path / "alone.csv"
    vit_scratch(["submit", "--model", str(tmp_path / "out"), "--data", digits, "--output_file", str(alone)])
    assert alone.read_bytes() == (tmp_path / "out" / "submission.csv").read_bytes()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["validation_num_images"] == 20
