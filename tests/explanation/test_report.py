"""The page of `vit-scratch explain`, as a browser would read it, for models and images of several sorts."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers import call_it_the_competition, photo_folder, weights
from helpers import refused_by_vit_scratch as refused
from PIL import Image
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchImageProcessor
from hf_vit_scratch.cli import main
from hf_vit_scratch.conversion import from_transformers
from hf_vit_scratch.explanation import report, sections

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OF_LABELS = {"confused_pairs.png", "reliability.png"}


class Page(HTMLParser):
    """The text, the images and the tags of a page."""

    def __init__(self, file):
        super().__init__()
        self.text, self.images, self.tags, self.attributes = "", [], set(), []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.text += data


def explained(folder) -> Page:
    """The page in a folder, which must stand alone: its images decode and are the PNG files, nothing is loaded."""
    page = Page(folder / "explanation.html")
    loading = [
        value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data", "style")
    ]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loading)
    assert not re.search(r"https?:|@import|url\(|<script|<link", page.source)
    assert "width=device-width" in page.source and "prefers-color-scheme: dark" in page.source
    embedded = [base64.b64decode(image["src"].partition(",")[2], validate=True) for image in page.images]
    for png in embedded:
        Image.open(io.BytesIO(png)).load()
    assert sorted(embedded) == sorted(file.read_bytes() for file in folder.glob("*.png")) != []
    assert all(image["alt"] for image in page.images)
    return page


def saved(folder, model) -> str:
    """The folder of a model that takes RGB images of this height and width."""
    model.save_pretrained(folder)
    height, width = model.config.image_height_width
    channels = model.config.num_channels
    ViTScratchImageProcessor(size={"height": height, "width": width}, num_channels=channels).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """Files of photos, one of which has a name that means something in HTML."""
    photo_folder(tmp_path / "photos", per_class=2)
    files = sorted((tmp_path / "photos" / "train").rglob("*.jpg"))
    return [str(files[0]), str(files[1].rename(files[1].with_name("<img src=x onerror=alert(1)> & $a$.jpg")))]


@pytest.fixture
def competition(run_folder, monkeypatch) -> str:
    """The data of the run, which take its small zip for the competition's."""
    call_it_the_competition(monkeypatch, run_folder.parent / "digits.zip")
    return str(run_folder.parent / "digits.zip")


def test_held_out_digits_of_a_run(run_folder, competition, tmp_path, capsys):
    flags = ["--model", str(run_folder), "--data", competition, "--output_dir", str(tmp_path / "out")]
    main(["explain", *flags, "--number", "3"])
    assert "shows 3 images. Its 12 plots" in capsys.readouterr().out
    page = explained(tmp_path / "out")
    assert "20 images of the validation split of digit-recognizer, with labels" in page.text
    assert "The model was not trained on these images, which were held out." in page.text
    assert 'class="warning"' not in page.source
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"attention_distance.png", "filters.png", "position_similarity.png", "embedding.png"} <= names
    assert {"reliability.png", "randomization.png", "image_003_maps.png", "image_003_heads.png"} <= names
    for words in ("Abnar and Zuidema 2020", "figure 7 (right)", "Adebayo et al. 2018", "Guo et al. 2017"):
        assert words in page.text
    wrong = 20 - round(20 * json.loads((run_folder / "all_results.json").read_text())["validation_accuracy"])
    assert f"{wrong} of 20 images" in page.text

    # Another page takes its place: of a model that takes each 2 for a 7 and each 7 for a 2, on what it was trained on.
    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    tensors = weights(folder)
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name][[2, 7]] = tensors[name][[7, 2]]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    main(["explain", "--model", str(folder), *flags[2:], "--number", "1", "--split", "train"])
    page = explained(tmp_path / "out")
    assert not (tmp_path / "out" / "image_002_maps.png").exists()
    assert "The model was trained on these images" in page.text and 'class="warning"' in page.source
    assert "36 of 180 images, 20.00% (95% interval 14.42% to 26.60%)" in page.text
    assert (tmp_path / "out" / "confused_pairs.png").exists()

    # A folder that holds anything else is left alone.
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "that of an earlier explanation, got one with other files" in refused(capsys, "explain", *flags)
    assert (tmp_path / "out" / "mine.txt").exists()


def test_a_model_of_photos_with_hostile_names_and_without_labels(photos, tmp_path, capsys):
    names = {0: "<script>alert(1)</script>", 1: "$\\frac{1}{0}$ & co", 2: "x" * 300}
    config = ViTScratchConfig(**TINY, image_size=[16, 32], patch_size=8, pooling="mean", stem="conv", id2label=names)
    model = ViTScratchForImageClassification(config)
    model.classifier.bias.data += torch.tensor([9.0, 0, 0])
    folder = saved(tmp_path / "<b>model", model)
    main(["explain", "--images", *photos, "--model", folder, "--output_dir", str(tmp_path / "out")])
    page = explained(tmp_path / "out")
    assert not page.tags & {"script", "b"} and len(page.images) == 4 + len(
        {"attention_distance", "filters", "position_similarity", "randomization"}
    )
    assert "predicted <script>alert(1)</script> (1.000)" in page.text
    assert "<img src=x onerror=alert(1)> & $a$.jpg" in page.text
    assert page.text.count("The images have no labels, so this part is left out.") == 2
    assert "needs at least 10 images, and there are 2" in page.text
    assert "there is no linear filter of a whole patch" in page.text
    assert "the mean of the patch tokens" in page.text
    assert not OF_LABELS & {file.name for file in (tmp_path / "out").iterdir()}


def test_a_converted_vit_on_data_with_other_classes(tmp_path, capsys):
    photo_folder(tmp_path / "photos", per_class=10)
    torch.manual_seed(0)
    theirs = ViTForImageClassification(ViTConfig(**TINY, image_size=16, patch_size=8, id2label={0: "cat", 1: "dog"}))
    folder = saved(tmp_path / "model", from_transformers(theirs))
    flags = ["--model", folder, "--data", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out")]
    main(["explain", *flags, "--number", "1", "--split", "train"])
    page = explained(tmp_path / "out")
    assert page.text.count("The labels of the data are not the classes of the model") == 2
    assert "may have been trained on these images" in page.text and "The colour is the label." in page.text
    assert "blue/blue" in page.text or "red/red" in page.text  # names of files
    main(["explain", *flags, "--number", "2", "--embedding_images", "5"])
    page = explained(tmp_path / "out")
    assert "5 images, drawn at random from 10, of the validation split" in page.text
    assert "needs at least 10 images, and there are 5" in page.text and len(page.images) == 4 + 4


@pytest.mark.parametrize(
    "fields",
    [{"problem_type": "regression", "num_labels": 1}, {"problem_type": "multi_label_classification"}],
    ids=str,
)
def test_outputs_that_are_no_choice_of_a_class(fields, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sections, "has_captum", lambda: False)
    config = ViTScratchConfig(**TINY, image_size=16, patch_size=16, position_embedding="none", **fields)
    folder = saved(tmp_path / "model", ViTScratchForImageClassification(config))
    main(["explain", "--images", photos[0], "--model", folder, "--output_dir", str(tmp_path / "out")])
    page = explained(tmp_path / "out")
    assert page.text.count("The model does not choose one of several classes, so this part is left out.") == 2
    assert "highest output LABEL_" in page.text and "The model has no position embeddings" in page.text
    assert "The image is one patch" in page.text
    assert 'pip install "hf-vit-scratch[explain]"' in page.text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--images --data"),
        (["--images", "{tmp}/absent.png"], "absent.png cannot be read as an image"),
        (["--images", "{tmp}/text.png"], "text.png cannot be read as an image"),
        (["--images", "{tmp}/wide.png"], "wide.png cannot be read as an image"),
        (["--images", "{tmp}/wide.png", "--data", "sample"], "not allowed with"),
        (["--images", "{tmp}/wide.png", "--number", "2"], "--number goes with --data"),
        (["--images", "{tmp}/wide.png", "--split", "train"], "go with --data"),
        (["--data", "{digits}", "--number", "0"], "--number must be at least 1"),
        (["--data", "{digits}", "--embedding_images", "-1"], "--embedding_images must be at least 1"),
        (["--data", "{digits}", "--split", "all"], "invalid choice"),
        (["--data", "{tmp}/absent.zip"], "absent.zip"),
        (["--data", "{tmp}/photos", "--split", "test"], "has no split test. Its splits: train, validation"),
        (["--data", "{digits}", "--model", "{tmp}/bert"], "expected a model of type vit_scratch"),
        (["--data", "{digits}", "--model", "{tmp}/none"], "cannot load a model from"),
        (["--data", "{digits}", "--output_dir", "{tmp}/text.png"], "expected a folder, got a file"),
        (["--data", "{digits}", "--output_dir", "{tmp}/bert"], "got one with other files"),
    ],
)
def test_bad_input_is_refused_in_one_line(argv, words, run_folder, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (3000, 2)).save(tmp_path / "wide.png")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    if "{tmp}/photos" in argv:
        photo_folder(tmp_path / "photos", per_class=2)
    defaults = ["--model", str(run_folder), "--output_dir", str(tmp_path / "out")]
    digits = str(run_folder.parent / "digits.zip")
    argv = [part.format(tmp=tmp_path, digits=digits) for part in argv]
    before = sorted(tmp_path.iterdir())
    assert words in refused(capsys, "explain", *defaults, *argv)
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_leaves_the_earlier_page_as_it_was(run_folder, tmp_path, monkeypatch):
    digit = tmp_path / "digit.png"
    Image.fromarray(np.pad(np.full((18, 4), 250, np.uint8), ((5, 5), (12, 12)))).save(digit)
    flags = ["explain", "--images", str(digit), "--model", str(run_folder), "--output_dir", str(tmp_path / "out")]
    main(flags)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(report, "write_page", full)
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digit.png", "out"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("weights of the sample", "are parts of MNIST: it has seen many."),
        ("no settings", "which rows were held out is not recorded"),
        ("other rows", "which rows were held out is not recorded"),
        ("damaged settings", "which rows were held out is not recorded"),
        ("other data", "The model was trained on elsewhere."),
    ],
)
def test_what_the_page_says_of_rows_that_the_model_may_have_seen(change, words, run_folder, competition, tmp_path):
    from hf_vit_scratch.evaluation.classifier import load_model
    from hf_vit_scratch.explanation.images import ImageSource, read_pictures

    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    files = {name: folder / name for name in ("config.json", "training_args.json", "all_results.json")}
    content = {name: json.loads(file.read_text()) for name, file in files.items()}
    if change in ("weights of the sample", "other data"):
        content["config.json"]["training_data"] = ["sample" if "sample" in change else "elsewhere"]
        content["training_args.json"]["data"]["data"] = content["config.json"]["training_data"][0]
    elif change == "other rows":
        content["all_results.json"]["train_images"] += 1
    elif change == "damaged settings":
        content["training_args.json"]["data"]["validation_size"] = "much"
    for name, file in files.items():
        file.write_text(json.dumps(content[name]))
    if change == "no settings":
        files["training_args.json"].unlink()
    pictures = read_pictures(str(folder), load_model(folder), ImageSource(data=competition), 7)
    assert words in pictures.origin and pictures.origin.startswith("7 images, drawn at random from 20, of the valid")
    assert pictures.seen == (change != "other data")
    assert len(pictures.names) == len(pictures.labels) == len(np.unique(pictures.names)) == 7


def test_rows_of_a_streamed_run(run_folder, tmp_path):
    from hf_vit_scratch.data import load
    from hf_vit_scratch.data.shards import write_shards
    from hf_vit_scratch.evaluation.classifier import load_model
    from hf_vit_scratch.explanation.images import ImageSource, read_pictures

    write_shards(load(str(run_folder.parent / "digits.zip")), tmp_path / "shards", images_per_shard=100)
    folder = shutil.copytree(run_folder, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    settings = json.loads((folder / "training_args.json").read_text())
    settings["data"] |= {"data": "shards", "streaming": True}
    (folder / "training_args.json").write_text(json.dumps(settings))
    classifier, data = load_model(folder), str(tmp_path / "shards")
    pictures = read_pictures(str(folder), classifier, ImageSource(data=data), 30)
    assert "20 images of the validation split of shards, with labels. The model was not trained" in pictures.origin
    with pytest.raises(ValueError, match="no images are drawn from the stream train"):
        read_pictures(str(folder), classifier, ImageSource(data=data, split="train"), 30)


def test_a_picture_of_a_digit_is_explained_as_the_model_is_given_it_and_a_blank_one_refused(
    run_folder, tmp_path, capsys
):
    from hf_vit_scratch.evaluation.classifier import load_model
    from hf_vit_scratch.explanation.images import ImageSource, read_pictures

    page = Image.new("L", (300, 200), 240)
    page.save(tmp_path / "blank.png")
    page.paste(20, (120, 40, 140, 160))
    page.save(tmp_path / "bar.png")
    files = [str(tmp_path / name) for name in ("bar.png", "blank.png")]
    flags = ["--model", str(run_folder), "--output_dir", str(tmp_path / "out")]
    assert f"no digit was found in {files[1]}: leave out" in refused(capsys, "explain", "--images", *files, *flags)
    pictures = read_pictures(str(run_folder), load_model(run_folder), ImageSource(files=(files[0],)), 1)
    rows, columns = (np.flatnonzero(pictures.pixels([0])[0, 0].amax(dim=axis) > 127) for axis in (1, 0))
    assert (len(rows), 3 <= len(columns) <= 4) == (20, True)  # light, as long as MNIST's digits
