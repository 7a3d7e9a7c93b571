import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import REPOSITORY, blocks, call_it_the_competition
from helpers import refused_by_vit_scratch as refused
from PIL import Image
from processes import run_python

from hf_vit_scratch.cli import main


@pytest.fixture
def digit(tmp_path):
    """A file for each of two digits, and the digits."""
    labels = np.array([7, 2])
    files = [tmp_path / f"{label}.png" for label in labels]
    for file, pixels in zip(files, blocks(labels, seed=5), strict=True):
        Image.fromarray(pixels).save(file)
    return list(map(str, files))


def test_predict_gives_a_line_an_image(run_folder, digit, capsys):
    main(["predict", *digit, "--model", str(run_folder)])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[digit[0], "7"], [digit[1], "2"]]
    assert all(0.1 < float(row[2]) <= 1 for row in rows)


def test_predict_as_json_with_several_classes(run_folder, digit, capsys):
    main(["predict", digit[0], "--model", str(run_folder), "--json", "--top_k", "3"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    scores = [entry["score"] for entry in found["predictions"]]
    assert found["file"] == digit[0]
    assert found["predictions"][0]["label"] == "7"
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


def test_submit_writes_the_same_bytes_twice_and_as_the_run_did(run_folder, tmp_path, capsys):
    for name in ("one.csv", "two.csv"):
        zipped = str(run_folder.parent / "digits.zip")
        main(["submit", "--model", str(run_folder), "--data", zipped, "--output_file", str(tmp_path / name)])
    assert "Warning" not in capsys.readouterr().err
    written = (run_folder / "submission.csv").read_bytes()
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes() == written


def test_submit_warns_about_a_model_that_has_seen_the_sample(run_folder, tmp_path, capsys):
    from hf_vit_scratch import ViTScratchForImageClassification, ViTScratchImageProcessor

    model = ViTScratchForImageClassification.from_pretrained(run_folder)
    model.config.training_data = ["sample"]
    model.save_pretrained(tmp_path / "model")
    ViTScratchImageProcessor.from_pretrained(run_folder).save_pretrained(tmp_path / "model")
    zipped, file = str(run_folder.parent / "digits.zip"), str(tmp_path / "file.csv")
    main(["submit", "--model", str(tmp_path / "model"), "--data", zipped, "--output_file", file])
    assert "trained on the sample" in capsys.readouterr().err


def test_code_that_lies_in_a_model_folder_is_not_run(run_folder, tmp_path, digit, capsys):
    import shutil

    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    for file in folder.glob("*_vit_scratch.py"):
        file.write_text(
            f"open({str(tmp_path / 'was_run')!r}, 'w')\nraise SystemExit('the code of the folder was run')\n"
        )
    main(["predict", digit[0], "--model", str(folder)])
    assert capsys.readouterr().out.split("\t")[1] == "7"
    assert not (tmp_path / "was_run").exists()


def test_a_folder_with_a_pickle_instead_of_safetensors_is_refused(run_folder, tmp_path, digit, capsys):
    import shutil

    import torch

    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert "cannot load a model" in refused(capsys, "predict", digit[0], "--model", str(folder))


@pytest.mark.parametrize("damage", ["cut", "other", "renamed"])
def test_weights_that_are_not_those_of_the_config_are_refused(run_folder, tmp_path, digit, capsys, damage):
    """transformers would leave what it does not find at random."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    file = folder / "model.safetensors"
    weights = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "other":
        weights["vit.layernorm.weight"] = weights["vit.layernorm.weight"][:3].clone()
        save_file(weights, file, metadata={"format": "pt"})
    else:
        weights["vit.norm.weight"] = weights.pop("vit.layernorm.weight")
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SystemExit) as stopped:
        main(["predict", digit[0], "--model", str(folder)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert "error: cannot load a model from" in printed.err.splitlines()[-1]


@pytest.mark.parametrize("added", [["vit.layers.2.mlp.fc1.weight"], ["gate", "temperature"]], ids=str)
@pytest.mark.parametrize("command", ["predict", "submit", "evaluate", "export"])
def test_weights_that_hold_more_than_the_model_has_are_refused_by_every_command(
    run_folder, tmp_path, digit, capsys, monkeypatch, command, added
):
    """transformers would leave out what the model does not have, and the rest may mean something else without it."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    more = {name: torch.ones(3) for name in added}
    file, zipped = folder / "model.safetensors", str(run_folder.parent / "digits.zip")
    call_it_the_competition(monkeypatch, run_folder.parent / "digits.zip")  # as it was for the run
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    argv = {
        "predict": [digit[0]],
        "submit": ["--data", zipped, "--output_file", str(tmp_path / "written.csv")],
        "evaluate": ["--data", zipped, "--output_dir", str(tmp_path / "written")],
        "export": ["--format", "torch", "--output_dir", str(tmp_path / "written")],
    }[command]
    line = refused(capsys, command, *argv, "--model", str(folder))
    assert f"cannot load a model from {folder}" in line and f"hold {', '.join(added)}, which" in line
    assert not list(tmp_path.glob("written*"))


@pytest.mark.parametrize(
    ("problem", "classes"),
    [("multi_label_classification", 10), ("single_label_classification", 10), (None, 1), ("regression", 10)],
)
def test_predict_gives_the_scores_of_transformers_pipeline(tmp_path, digit, capsys, problem, classes):
    import torch
    from transformers import pipeline

    from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor

    torch.manual_seed(0)
    config = ViTScratchConfig.from_size("digits-tiny", num_labels=classes, problem_type=problem)
    model = ViTScratchForImageClassification(config)
    torch.nn.init.normal_(model.classifier.bias, mean=2.0)
    model.save_pretrained(tmp_path / "model")
    ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1).save_pretrained(tmp_path / "model")
    classify = pipeline("image-classification", model=str(tmp_path / "model"))
    plain = {"function_to_apply": "none"} if problem == "regression" else {}  # by itself only in newer transformers
    expected = classify(digit, top_k=3, **plain)
    capsys.readouterr()
    flags = ["predict", *digit, "--model", str(tmp_path / "model"), "--top_k", "3"]
    main([*flags, "--json"])
    found = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
    main(flags)
    rows = [line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()]
    assert len(found) == len(rows) == len(expected) == 2
    for answer, row, wanted in zip(found, rows, expected, strict=True):
        labels, scores = ([each[key] for each in wanted] for key in ("label", "score"))
        assert [each["label"] for each in answer] == row[::2] == labels
        assert [each["score"] for each in answer] == pytest.approx(scores, rel=1e-4)
        assert [float(score) for score in row[1::2]] == pytest.approx(scores, abs=1e-4)
    # Classes that stand each for itself share no sum.
    assert (sum(scores) > 1) == (problem in ("multi_label_classification", "regression"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["predict", "{tmp}/absent.png", "--model", "{run}"], "absent.png"),
        (["predict", "{tmp}/absent.png"], "--model"),
        (["predict", "{tmp}/absent.png", "--modle", "{run}"], "--model"),
        (["predict", "{tmp}/text.png", "--model", "{run}"], "text.png cannot be read as an image"),
        (["predict", "{tmp}/text.png", "--model", "{run}", "--top_k", "0"], "--top_k"),
        (["predict", "{tmp}/text.png", "--model", "{tmp}"], "cannot load a model from"),
        (["predict", "{tmp}/text.png", "--model", "{tmp}/bert"], "bert"),
        (["submit", "--data", "sample", "--model", "{run}", "--output_file", "{tmp}/a.csv"], "no unlabelled test"),
        (["submit", "--data", "{digits}", "--model", "{run}", "--output_file", "{tmp}/no/a.csv"], "no folder"),
        (["submit", "--data", "{digits}", "--model", "{tmp}/cats", "--output_file", "{tmp}/a.csv"], "classes"),
    ],
)
def test_bad_input_is_refused_in_one_line(argv, words, run_folder, tmp_path, capsys):
    from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor

    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    cats = ViTScratchConfig.from_size("digits-tiny", num_hidden_layers=1, id2label={0: "cat", 1: "dog"})
    ViTScratchForImageClassification(cats).save_pretrained(tmp_path / "cats")
    ViTScratchImageProcessor(size={"height": 28, "width": 28}, num_channels=1).save_pretrained(tmp_path / "cats")
    digits = str(run_folder.parent / "digits.zip")
    capsys.readouterr()
    argv = [part.format(tmp=tmp_path, run=run_folder, digits=digits) for part in argv]
    assert words in refused(capsys, *argv)
    assert not (tmp_path / "a.csv").exists()


def test_help_and_the_bare_import_do_not_wait_for_torch():
    code = (
        "import sys, hf_vit_scratch, hf_vit_scratch.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'imported too early'"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "predict" in printed and "submit" in printed


def test_predict_starts_without_what_only_trainings_need(tmp_path):
    Image.new("L", (60, 40), 255).save(tmp_path / "blank.png")
    code = (
        "import sys, hf_vit_scratch.cli as cli\n"
        "cli.main(['predict', sys.argv[1], '--model', sys.argv[2]])\n"
        "print({'datasets', 'evaluate'} & set(sys.modules))"
    )
    released = REPOSITORY / "model_cards" / "vit-scratch-digits-small"
    assert run_python(code, tmp_path / "blank.png", released).splitlines() == [
        f"{tmp_path / 'blank.png'}\tno digit found",
        "set()",
    ]


def test_predict_reads_the_digits_of_a_picture_and_says_where_none_is(run_folder, tmp_path, capsys):
    import shutil

    from PIL import ImageDraw

    off = shutil.copytree(run_folder, tmp_path / "off", ignore=shutil.ignore_patterns("checkpoint-*"))
    fields = json.loads((off / "preprocessor_config.json").read_text())
    assert fields["do_center_digit"] is True  # since the run was on the competition
    (off / "preprocessor_config.json").write_text(json.dumps({**fields, "do_center_digit": False}))
    folder = run_folder
    page = Image.new("L", (400, 200), 240)
    page.save(tmp_path / "blank.png")
    for left in (250, 60):
        ImageDraw.Draw(page).line([(left, 50), (left + 40, 50), (left + 15, 150)], 20, 10)
    page.save(tmp_path / "two.png")
    blank, two = str(tmp_path / "blank.png"), str(tmp_path / "two.png")
    main(["predict", blank, two, "--model", str(folder)])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [blank, "no digit found"] and [row[0] for row in rows[1:]] == [two, two]
    steps = tmp_path / "steps.png"
    main(["predict", two, "--model", str(folder), "--json", "--show_steps", str(steps)])
    found = json.loads(capsys.readouterr().out)
    assert [digit["box"][0] for digit in found["digits"]] == pytest.approx([57, 247], abs=8)
    clearest = max(found["digits"], key=lambda digit: digit["clarity"])
    assert found["predictions"] == clearest["predictions"]
    assert Image.open(steps).format == "PNG" and Image.open(steps).width > 5 * 100
    main(["predict", blank, "--model", str(folder), "--json"])
    assert json.loads(capsys.readouterr().out) == {"file": blank, "predictions": [], "digits": []}
    assert "do_center_digit off" in refused(capsys, "predict", two, "--model", str(off), "--show_steps", str(steps))
    for wrong in (tmp_path / "nowhere" / "steps.png", tmp_path / "steps.jpg", tmp_path):
        words = f"expects a file FILE.png in a folder that exists, got {wrong}."
        assert words in refused(capsys, "predict", two, "--model", str(folder), "--show_steps", str(wrong))
    assert "one picture" in refused(capsys, "predict", two, two, "--model", str(folder), "--show_steps", str(steps))
