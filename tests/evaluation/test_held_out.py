"""Three small runs of one recipe on three folds, two of another, and what `vit-scratch evaluate` says of them."""

import json
import math
import shutil
import zipfile

import numpy as np
import pytest
import torch
from helpers import TINY, blocks, call_it_the_competition, competition_zip
from helpers import refused_by_vit_scratch as refused
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.model_selection import StratifiedKFold
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_vit_scratch import training
from hf_vit_scratch.cli import main
from hf_vit_scratch.evaluation.held_out import SIDES, _agreed_against
from hf_vit_scratch.evaluation.plots import plot_robustness

FOLDS = (3, 4, 5)
MISLABELLED = range(0, 200, 12)
LABELS = np.arange(200) % 10
LABELS[MISLABELLED] = (LABELS[MISLABELLED] + 1) % 10


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def runs(tmp_path_factory, patch):
    """digits.zip, fold-3 to fold-5, other-3 and other-4 (twice as wide), and whole, of the first recipe.

    The zip is taken for the competition's.
    """
    folder = tmp_path_factory.mktemp("runs")
    competition_zip(folder / "right.zip")
    with zipfile.ZipFile(folder / "right.zip") as right, zipfile.ZipFile(folder / "digits.zip", "w") as wrong:
        for name in right.namelist():
            lines = right.read(name).decode().splitlines(keepends=True)
            if name == "train.csv":
                for row in MISLABELLED:
                    lines[row + 1] = f"{LABELS[row]},{lines[row + 1].partition(',')[2]}"
            wrong.writestr(name, "".join(lines))
    call_it_the_competition(patch, folder / "digits.zip")
    common = ["--data", str(folder / "digits.zip"), *TINY, "--learning_rate", "1e-2", "--num_train_epochs", "30"]
    common += ["--augmentation", "digits", "--mild_fraction", "0.5", "--eval_strategy", "no", "--save_strategy", "no"]
    common += ["--bf16", "false", "--ema_decay", "0.9", "--label_smoothing_factor", "0"]
    for fold in FOLDS:
        told = ["--fold", str(fold), "--seed", str(fold)]
        training.main([*common, *told, "--output_dir", str(folder / f"fold-{fold}")])
        if fold < 5:
            training.main([*common, *told, "--hidden_size", "32", "--output_dir", str(folder / f"other-{fold}")])
    training.main([*common, "--validation_size", "0", "--output_dir", str(folder / "whole")])
    results = json.loads((folder / "fold-5" / "all_results.json").read_text())
    taught = {"train_runtime": 600.0, "teacher_runtime": 300.0}
    (folder / "fold-5" / "all_results.json").write_text(json.dumps(results | taught))
    return folder


@pytest.fixture(scope="module")
def evaluation(runs) -> dict:
    """Written into the folder of the model that was trained on all rows."""
    evaluate(runs, FOLDS, "whole", against=(3, 4))
    return json.loads((runs / "whole" / "evaluation.json").read_text())


def arguments(runs, folds, output, against=()) -> list[str]:
    given = [
        "evaluate",
        "--model",
        *(str(runs / f"fold-{fold}") for fold in folds),
        "--data",
        str(runs / "digits.zip"),
    ]
    given += ["--against", *(str(runs / f"other-{fold}") for fold in against)] if against else []
    return [*given, "--output_dir", str(runs / output)]


def evaluate(runs, folds, output, against=()):
    main(arguments(runs, folds, output, against))


def held_out(fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, images and labels of a fold, by scikit-learn from what the zip was made of."""
    rows = [held for _, held in StratifiedKFold(5, shuffle=True, random_state=42).split(LABELS, LABELS)][fold - 1]
    return rows, blocks(np.arange(200) % 10, seed=1)[rows], LABELS[rows]


def logits(folder, images: np.ndarray) -> torch.Tensor:
    """Image by image, through transformers' classes."""
    model, processor = (auto.from_pretrained(folder) for auto in (AutoModelForImageClassification, AutoImageProcessor))
    with torch.inference_mode():
        return model(**processor([Image.fromarray(image) for image in images], return_tensors="pt")).logits


def test_errors_are_those_of_each_model_on_the_rows_that_it_never_saw(runs, evaluation):
    errors, losses = [], []
    for fold in FOLDS:
        _, images, labels = held_out(fold)
        said, labels = logits(runs / f"fold-{fold}", images), torch.from_numpy(labels)
        errors.append(int((said.argmax(dim=1) != labels).sum()))
        losses.append(float(torch.nn.functional.cross_entropy(said, labels)))
    assert 0 < sum(errors) < 90  # neither perfect nor chance, or this would say little
    assert [model["errors"] for model in evaluation["models"]] == errors
    assert [model["negative_log_likelihood"] for model in evaluation["models"]] == pytest.approx(losses, abs=1e-5)
    assert (evaluation["errors"], evaluation["num_images"]) == (sum(errors), 120)
    assert evaluation["negative_log_likelihood"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert evaluation["interval"][0] < sum(errors) / 120 < evaluation["interval"][1]
    assert evaluation["error_rate_std"] == pytest.approx(np.std(np.array(errors) / 40, ddof=1))
    assert [(model["fold"], model["seed"]) for model in evaluation["models"]] == [(fold, fold) for fold in FOLDS]


def test_views_are_the_image_and_its_shifts_by_a_pixel(runs, evaluation):
    errors = 0
    for fold in FOLDS:
        _, images, labels = held_out(fold)
        views = [images]
        for rows, columns in SIDES:
            moved = np.zeros_like(images)
            moved[:, max(rows, 0) : 28 + min(rows, 0), max(columns, 0) : 28 + min(columns, 0)] = images[
                :, max(-rows, 0) : 28 + min(-rows, 0), max(-columns, 0) : 28 + min(-columns, 0)
            ]
            views.append(moved)
        mean = sum(logits(runs / f"fold-{fold}", view).softmax(dim=1) for view in views)
        errors += int((mean.argmax(dim=1) != torch.from_numpy(labels)).sum())
    assert evaluation["test_time_augmentation"]["errors"] == errors


def test_the_other_recipe_is_compared_on_the_rows_that_both_held_out(runs, evaluation):
    ours, theirs = [], []
    for fold in (3, 4):
        _, images, labels = held_out(fold)
        for folder, wrong in ((f"fold-{fold}", ours), (f"other-{fold}", theirs)):
            wrong.extend((logits(runs / folder, images).argmax(dim=1).numpy() != labels).tolist())
    ours, theirs = np.array(ours), np.array(theirs)
    paired = evaluation["against"]["paired"]
    assert paired["num_images"] == 80
    assert paired["only_ours_wrong"] == (ours & ~theirs).sum()
    assert paired["only_theirs_wrong"] == (theirs & ~ours).sum()


def test_rows_are_named_where_all_models_agree_against_the_label(runs, evaluation):
    named = {entry["row"] - 1 for entry in evaluation["agreed_against"]}
    asked_twice = {row for fold in (3, 4) for row in held_out(fold)[0].tolist()}
    assert len(named & set(MISLABELLED)) >= 2  # the models have learnt the others, and say so
    assert named <= asked_twice
    for entry in evaluation["agreed_against"]:
        (fold,) = [fold for fold in FOLDS if entry["row"] - 1 in held_out(fold)[0]]
        rows, images, labels = held_out(fold)
        index = rows.tolist().index(entry["row"] - 1)
        folders = [runs / f"fold-{fold}", runs / f"other-{fold}"]
        said = [logits(folder, images[[index]]).softmax(dim=1)[0] for folder in folders]
        assert int(entry["label"]) == labels[index] != int(entry["predicted"])
        assert {int(one.argmax()) for one in said} == {int(entry["predicted"])}
        assert entry["models"] == 2
        assert entry["least_probability"] == pytest.approx(min(float(one.max()) for one in said), abs=1e-5)


def test_robustness_falls_with_the_strength_of_noise_and_blur_is_what_scipy_makes_of_the_images(runs, evaluation):
    rates = [evaluation["error_rate"], *(point["error_rate"] for point in evaluation["robustness"]["noise"])]
    assert rates[-1] > rates[0]
    assert [len(points) for points in evaluation["robustness"].values()] == [3, 3, 3, 3]
    for point in evaluation["robustness"]["blur"]:
        errors = 0
        for fold in FOLDS:
            _, images, labels = held_out(fold)
            std = (0, point["strength"], point["strength"])
            blurred = gaussian_filter(images / 255.0, std, mode="constant", radius=math.ceil(3 * point["strength"]))
            model = AutoModelForImageClassification.from_pretrained(runs / f"fold-{fold}")
            with torch.inference_mode():
                said = model(torch.tensor(2 * blurred[:, None] - 1, dtype=torch.float32)).logits
            errors += int((said.argmax(dim=1) != torch.from_numpy(labels)).sum())
        assert point["errors"] == errors


def test_rows_that_models_of_two_seeds_were_asked_about_count_once(runs, tmp_path):
    told = ["--data", str(runs / "digits.zip"), *TINY, "--max_steps", "5", "--fold", "2"]
    for seed in (1, 2):
        training.main([*told, "--seed", str(seed), "--output_dir", str(tmp_path / f"seed-{seed}")])
    models = ["--model", *(str(tmp_path / f"seed-{seed}") for seed in (1, 2))]
    main(["evaluate", *models, "--data", str(runs / "digits.zip"), "--output_dir", str(tmp_path / "seeds")])
    found = json.loads((tmp_path / "seeds" / "evaluation.json").read_text())
    assert (found["num_images"], found["distinct_images"]) == (80, 40)
    assert sum(model["errors"] for model in found["models"]) == found["errors"] > 0
    mean = round(found["errors"] / 2)
    low = stats.beta.ppf(0.025, mean, 40 - mean + 1) if mean else 0.0  # Clopper and Pearson, in closed form
    high = stats.beta.ppf(0.975, mean + 1, 40 - mean) if mean < 40 else 1.0
    assert found["interval"] == pytest.approx([low, high])


def test_the_card_of_the_model_trained_on_all_rows_has_the_figures(runs, evaluation):
    card = ModelCard.load(runs / "whole" / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(1 - evaluation["errors"] / 120)
    assert f"| {evaluation['errors']} | 120 |" in card.text
    assert "trained on all 200 labelled rows" in card.text
    (of_fold_5,) = (line for line in card.text.splitlines() if "| 5 | 5 |" in line)
    assert "| 15.0 |" in of_fold_5  # minutes, those of the teacher with them
    assert "held-out image" in card.text
    first_of_test = blocks(np.array([3]), seed=2)  # no row of train.csv was held out
    with Image.open(runs / "whole" / "example.png") as picture:
        assert np.array_equal(np.array(picture), first_of_test[0])
    assert evaluation["command"] in card.text and str(runs) not in card.text
    for name in ("robustness.png", "wrong.png"):
        assert f"]({name})" in card.text
        with Image.open(runs / "whole" / name) as picture:
            assert picture.width > 500


def test_what_does_not_compare_is_said(runs, evaluation, tmp_path, capsys):
    assert "compare" not in (runs / "whole" / "README.md").read_text()
    whole, other = (shutil.copytree(runs / name, tmp_path / name) for name in ("whole", "other-3"))
    settings, results = (other / name for name in ("training_args.json", "all_results.json"))
    told = json.loads(settings.read_text())
    told["training"]["label_smoothing_factor"] = 0.1
    settings.write_text(json.dumps(told))
    results.write_text(json.dumps(json.loads(results.read_text()) | {"resumed_from_step": 7}))
    to = ["--data", str(runs / "digits.zip"), "--output_dir", str(whole)]
    main(["evaluate", "--model", str(runs / "fold-3"), "--against", str(other), *to])
    assert "their likelihoods cannot be compared" in capsys.readouterr().out
    card = (whole / "README.md").read_text()
    assert "likelihoods and calibration errors cannot be compared" in card and "since step 7" in card


def test_a_new_folder_gets_the_evaluation_alone_and_may_be_written_again(runs, capsys):
    for _ in range(2):
        evaluate(runs, (3,), "alone")
        assert "wrong of 40" in capsys.readouterr().out
    assert {path.name for path in (runs / "alone").iterdir()} == {"evaluation.json", "robustness.png", "wrong.png"}
    found = json.loads((runs / "alone" / "evaluation.json").read_text())
    assert found["against"] is None and found["error_rate_std"] is None
    assert found["agreed_against"] == []  # of which one model alone is no witness


def test_what_does_not_belong_together_is_refused_and_nothing_is_written(runs, tmp_path, capsys, monkeypatch):
    def said(*argv) -> str:
        return refused(capsys, *argv)

    one, other, whole = (str(runs / name) for name in ("fold-3", "other-4", "whole"))
    to, zipped = ["--output_dir", str(tmp_path / "new")], ["--data", str(runs / "digits.zip")]
    assert "not of one recipe: hidden_size is 32 in the first and 16 in the second" in said(
        "evaluate", "--model", one, other, *zipped, *to
    )
    assert "was trained on all rows" in said("evaluate", "--model", whole, *zipped, *to)
    assert "trained on digit-recognizer, but --data is sample" in said(
        "evaluate", "--model", one, "--data", "sample", *to
    )
    assert "not the output folder of a finished run" in said("evaluate", "--model", str(tmp_path), *zipped, *to)
    assert "is given twice" in said("evaluate", "--model", one, f"{one}/", *zipped, *to)
    assert "is given twice" in said("evaluate", "--model", one, "--against", one, *zipped, *to)
    assert "has no partner" in said("evaluate", "--model", one, "--against", other, *zipped, *to)
    assert "was trained on other rows or classes" in said(
        "evaluate", "--model", str(runs / "fold-4"), "--data", other_zip(tmp_path, monkeypatch), *to
    )
    competition_zip(tmp_path / "alike.zip")
    assert "trained on digit-recognizer, but --data is alike.zip" in said(
        "evaluate", "--model", one, "--data", str(tmp_path / "alike.zip"), *to
    )
    assert not (tmp_path / "new").exists()
    shutil.copytree(runs / "other-4", tmp_path / "released")
    before = (tmp_path / "released" / "README.md").read_bytes()
    assert "not of one recipe" in said("evaluate", "--model", one, *zipped, "--output_dir", str(tmp_path / "released"))
    assert "is a model with held-out rows" in said(
        "evaluate", "--model", one, *zipped, "--output_dir", str(runs / "fold-4")
    )
    assert (tmp_path / "released" / "README.md").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    mine = ["--output_dir", str(tmp_path / "mine")]
    assert "neither new nor the folder of a model" in said("evaluate", "--model", one, *zipped, *mine)


def other_zip(folder, monkeypatch) -> str:
    competition_zip(folder / "other.zip", num_train=150)
    call_it_the_competition(monkeypatch, folder / "other.zip")
    return str(folder / "other.zip")


def test_the_pictures_of_a_user_do_not_go_into_a_folder_that_may_be_pushed(runs, tmp_path, monkeypatch):
    whole = shutil.copytree(runs / "whole", tmp_path / "whole")
    arguments_ = ["evaluate", "--model", str(runs / "fold-3"), "--data", str(runs / "digits.zip")]
    monkeypatch.setattr("hf_vit_scratch.evaluation.held_out.COMPETITION", "another")
    main([*arguments_, "--output_dir", str(whole)])
    assert (whole / "evaluation.json").exists() and not (whole / "wrong.png").exists()
    assert "wrong.png" not in (whole / "README.md").read_text()


def test_an_evaluation_does_not_outlive_the_weights_that_it_is_of(runs, tmp_path):
    whole = shutil.copytree(runs / "fold-5", tmp_path / "whole")
    for name in ("evaluation.json", "robustness.png", "wrong.png"):
        (whole / name).write_text("{}")
    flags = ["--data", str(runs / "digits.zip"), *TINY, "--max_steps", "1", "--overwrite_output_dir"]
    training.main([*flags, "--output_dir", str(whole)])
    assert not {"evaluation.json", "robustness.png", "wrong.png"} & {path.name for path in whole.iterdir()}


def test_runs_of_one_recipe_file_are_told_apart_by_what_is_different(runs, evaluation):
    ours, theirs = evaluation["recipe"], evaluation["against"]["recipe"]
    assert theirs == f"{ours} with hidden_size 32"
    assert f"`{theirs}`" in (runs / "whole" / "README.md").read_text()


def test_one_model_that_disagrees_spares_a_row():
    class Part:
        rows, labels = np.array([4, 9]), np.array([0, 1])

        def __init__(self, *said):
            self.logits = np.array([[5.0, 0.0] if label == 0 else [0.0, 5.0] for label in said])
            config = type("Config", (), {"id2label": {0: "zero", 1: "one"}})
            self.run = type("Run", (), {"config": config})

    (found,) = _agreed_against([Part(1, 0), Part(1, 1)])
    assert (found["row"], found["label"], found["predicted"], found["models"]) == (5, "zero", "one", 2)


@pytest.mark.parametrize("rates, scale", [((0.38, 0.5), "linear"), ((0.0, 0.3), "linear"), ((0.004, 0.2), "log")])
def test_error_rates_have_plain_numbers_beside_them_in_the_plot(monkeypatch, rates, scale):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *file, **how: drawn.append(figure))
    robustness = {kind: [{"strength": 1, "error_rate": rates[1]}] for kind in ("rotation", "shift", "noise", "blur")}
    plot_robustness([{"recipe": "photos-tiny", "error_rate": rates[0], "robustness": robustness}], "plot.png")
    axis = drawn[0].axes[0].yaxis
    drawn[0].draw_without_rendering()
    assert axis.get_scale() == scale
    low, high = axis.get_view_interval()
    shown = [label.get_text() for label in axis.get_ticklabels(which="both") if low <= label.get_position()[1] <= high]
    numbers = [float(label) for label in shown if label]
    assert len(numbers) >= 3 and all(low <= number <= high for number in numbers)
