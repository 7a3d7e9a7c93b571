import csv
import json

import numpy as np
import pytest
import torch
from helpers import TINY, TINY_MODEL, assert_close, competition_zip, photo_folder, weights
from helpers import refused_by_train as error_of
from safetensors.torch import load_file
from torch import nn

from hf_vit_scratch.data import load
from hf_vit_scratch.data.augmentation import DigitAugmentation
from hf_vit_scratch.training import main

# ---- the output folder


def test_a_run_leaves_one_folder_with_everything(run_folder):
    names = {path.name for path in run_folder.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "all_results.json"} <= names
    assert {f"{room}_vit_scratch.py" for room in ("configuration", "modeling", "image_processing")} <= names
    assert {"curves.png", "confusion_matrix.png", "submission.csv", "example.png"} <= names
    assert json.loads((run_folder / "config.json").read_text())["training_data"] == ["digit-recognizer"]
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

    split = load(run_folder.parent / "digits.zip")["validation"]
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
    augmented, original = [], DigitAugmentation.forward
    monkeypatch.setattr(
        DigitAugmentation, "forward", lambda self, x, keys: augmented.append(len(x)) or original(self, x, keys)
    )
    main(["--data", digits, *TINY, "--output_dir", str(tmp_path / "out"), "--rotation_degrees", "20"])
    assert sum(augmented) == 2 * 180  # two epochs, and neither the evaluations nor the prediction of the test split
    settings = json.loads((tmp_path / "out" / "training_args.json").read_text())
    assert settings["augmentation"]["rotation_degrees"] == 20
    assert settings["data"]["data"] == "digits.zip"  # which only looks like the competition's
    assert not (tmp_path / "out" / "example.png").exists()


def test_compiling_changes_the_speed_and_not_the_weights(digits, tmp_path):
    """Where there is no C++ compiler, training goes on without."""
    arguments = ["--data", digits, *TINY, "--num_train_epochs", "1", "--bf16", "false", "--eval_strategy", "no"]
    arguments += [
        "--per_device_train_batch_size",
        "30",
    ]  # of 180 images: a last batch of another size is compiled anew
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


def test_all_rows_can_be_trained_on_without_a_validation_split(digits, tmp_path):
    main(["--data", digits, *TINY, "--validation_size", "0", "--output_dir", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["train_images"] == 200
    assert not [name for name in results if name.startswith("validation")]
    assert (tmp_path / "out" / "submission.csv").exists()


# ---- refusals


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
        (["--data", "{digits}", "--patch_size", "5"], "patch_size 5"),
        (["--data", "{digits}", "--size", "huge"], "unknown size 'huge'"),
        (["--data", "{digits}", "--augmentation", "flip"], "augmentation"),
        (["--data", "{digits}", "--load_best_model_at_end", "true"], "load_best_model_at_end"),
        (["--data", "{digits}", "--resume_from_checkpoint", "true"], "no complete checkpoint"),
        (["--data", "{digits}", "--ema_decay", "1.5"], "ema_decay"),
        (["--data", "{digits}", "--muon_learning_rate", "-1"], "muon_learning_rate"),
        (["--data", "{digits}", "--teacher_epochs", "-1"], "teacher_epochs"),
        (["--data", "{digits}", "--num_teachers", "0"], "num_teachers must be at least 1, got 0"),
        (["--data", "{digits}", "--teacher_weight", "2"], "teacher_weight"),
        (["--data", "{digits}", "--teacher_temperature", "0"], "teacher_temperature"),
        (["--data", "{digits}", "--augmentation", "digits", "--mild_fraction", "2"], "mild_fraction"),
        (["--data", "{digits}", "--augmentation", "digits", "--mild_strength", "-1"], "mild_strength"),
        (["--data", "{digits}", "--augmentation", "photos", "--cutout_pixels", "-1"], "cutout_pixels"),
        (["--data", "{digits}", "--shift_pixels", "inf", "--augmentation", "photos"], "shift_pixels"),
        (["--data", "{digits}", "--shift_pixels", "-1", "--augmentation", "photos"], "shift_pixels"),
        (["--data", "{digits}", "--freeze_encoder", "true"], "pass model_name_or_path"),
        (["--model_name_or_path", "x", "--freeze_encoder", "1", "--muon_learning_rate", "1e-3"], "Muon trains the"),
        (["--data", "{digits}", "--teacher_network", "vgg"], "strided or pooled, got 'vgg'"),
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
    assert (tmp_path / "out" / "example.png").exists()
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_images"] == 4500


def test_photographs_of_all_sizes_train_by_their_recipe(tmp_path):
    photo_folder(tmp_path / "photos", per_class=16, test="labelled")
    flags = ["--image_size", "32", "--patch_size", "8", "--num_train_epochs", "15", "--dataloader_num_workers", "0"]
    out = tmp_path / "out"
    flags += [*TINY_MODEL, "--use_cpu", "true", "--disable_tqdm", "true", "--per_device_train_batch_size", "8"]
    main(["--data", str(tmp_path / "photos"), "--recipe", "photos-small", "--output_dir", str(out), *flags])
    results = json.loads((out / "all_results.json").read_text())
    assert (results["train_images"], results["validation_num_images"]) == (32, 16)
    assert (results["test_num_images"], results["test_accuracy"] > 0.8) == (6, True)
    assert results["validation_accuracy"] > 0.8
    assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "blue", "1": "red"}
    assert not (out / "submission.csv").exists()


def test_a_run_says_when_it_enlarges_the_images_and_when_it_decodes_them_itself(tmp_path, capsys):
    photo_folder(tmp_path / "photos")
    flags = ["--data", str(tmp_path / "photos"), "--recipe", "photos-small", *TINY_MODEL, "--max_steps", "1"]
    flags += ["--use_cpu", "true", "--eval_strategy", "no", "--patch_size", "8"]
    main([*flags, "--image_size", "96", "--dataloader_num_workers", "0", "--output_dir", str(tmp_path / "large")])
    said = capsys.readouterr().err
    assert "Most images are enlarged, from about 50x53 to 96x96 pixels" in said and "--recipe photos-tiny" in said
    assert "--dataloader_num_workers 2" in said
    main([*flags, "--image_size", "32", "--dataloader_num_workers", "1", "--output_dir", str(tmp_path / "small")])
    said = capsys.readouterr().err
    assert "enlarged" not in said and "dataloader_num_workers" not in said


def test_a_grey_image_that_is_enlarged_is_not_sent_to_the_recipe_for_photographs(digits, tmp_path, capsys):
    main(["--data", digits, *TINY, "--image_size", "35", "--max_steps", "1", "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "enlarged, from about 28x28 to 35x35" in said and "photos" not in said


def test_a_submission_has_the_names_of_the_classes(tmp_path):
    photo_folder(tmp_path / "photos", test="flat")
    out, flags = tmp_path / "out", ["--image_size", "28", "--max_steps", "2", "--num_channels", "3"]
    main(["--data", str(tmp_path / "photos"), *TINY, *flags, "--output_dir", str(out)])
    with open(out / "submission.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert {row["label"] for row in rows} <= {"blue", "red"}


def test_gradient_accumulation_takes_the_steps_of_the_larger_batch(digits, tmp_path):
    """Two halves of a batch give the gradient of the whole, so the first steps end at the same weights."""
    arguments = ["--data", digits, *TINY, "--bf16", "false", "--augmentation", "none", "--max_steps", "2"]
    arguments += ["--eval_strategy", "no", "--label_smoothing_factor", "0"]
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    halves = ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2"]
    main([*arguments, *halves, "--output_dir", str(tmp_path / "halves")])
    assert_close(weights(tmp_path / "halves"), weights(tmp_path / "whole"))
