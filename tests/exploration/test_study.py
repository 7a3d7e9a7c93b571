"""Searches and studies with models that train in a fraction of a second."""

import csv
import os
import signal
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
import yaml
from helpers import competition_zip
from helpers import refused_by_vit_scratch as refused
from matplotlib.figure import Figure
from processes import Python
from tqdm.auto import tqdm

from hf_vit_scratch import ViTScratchConfig, training
from hf_vit_scratch.cli import main
from hf_vit_scratch.data import row_numbers
from hf_vit_scratch.exploration import plans, report, study, trial
from hf_vit_scratch.exploration.arguments import parse_exploration
from hf_vit_scratch.exploration.cost import cost, module_cost
from hf_vit_scratch.exploration.plots import pareto_front
from hf_vit_scratch.exploration.report import write_findings, write_plots
from hf_vit_scratch.exploration.spec import Spec
from hf_vit_scratch.exploration.trial import TrialRunner
from hf_vit_scratch.training.cnn import ConvNet, widths_for
from hf_vit_scratch.training.trainer import ViTScratchTrainer

MODEL = ["--hidden_size", "8", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--intermediate_size", "16"]
RUN = ["--num_train_epochs", "1", "--per_device_train_batch_size", "20", "--torch_compile", "false", "--bf16", "false"]
FLAGS = [*MODEL, *RUN, "--validation_size", "0.2", "--learning_rate", "1e-2", "--use_cpu", "true"]
BOUNDS = {
    "search": {
        "hidden_size": [8, 12, 16],
        "num_hidden_layers": {"low": 1, "high": 2},
        "num_attention_heads": [2, 3],
        "patch_size": [4, 7, 14],
        "mlp_ratio": [2],
    },
    "size": {"hidden_size": [16, 8], "num_hidden_layers": [1, 2], "learning_rate": [1e-4, "1e-2"]},
    "data": {"fraction": [0.5, 1.0], "learning_rate": [1e-3, 1e-2]},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A competition zip of 200 labelled images, and a YAML file of bounds for each kind of study."""
    folder = tmp_path_factory.mktemp("explore")
    competition_zip(folder / "digits.zip")
    for kind, bounds in BOUNDS.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(bounds))
    return folder


def command(source: Path, kind: str, output: Path, *more: str) -> list[str]:
    told = ["explore", "--data", str(source / "digits.zip"), "--study", kind, "--bounds", str(source / f"{kind}.yaml")]
    return [*told, "--output_dir", str(output), *FLAGS, *more]


def rows(output: Path) -> list[dict]:
    with open(output / "results.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def process(source: Path, kind: str, output: Path, *more: str, before: str = "") -> Python:
    code = f"import sys; {before}\nfrom hf_vit_scratch.cli import main; main(sys.argv[1:])"
    return Python(code, *command(source, kind, output, *more))


def wait_for(running: Python, file: Path) -> None:
    while not file.exists():
        assert running.poll() is None, running.output()
        time.sleep(0.05)


def test_the_cnn_costs_about_what_digits_tiny_does_and_sees_every_pixel_twice_before_it_halves_the_image():
    model = ConvNet(1, 10)
    parameters, flops = module_cost(model, (1, 28, 28))
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    assert widths_for(4 * parameters, 1, 10) == (32, 64, 320)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    positions = (784, 784, 196, 196, 49, 49)
    by_hand = sum(2 * n * conv.weight.numel() for n, conv in zip(positions, convolutions, strict=True))
    assert flops == by_hand + 2 * model.head.weight.numel()
    for fields in ({}, {"stem": "conv", "stem_depth": 2}):
        vit = cost(ViTScratchConfig.from_size("digits-tiny", num_labels=10, **fields))
        assert 0.8 < parameters / vit.total_parameters < 1.25
        assert 0.8 < flops / vit.total_flops < 1.35
    assert model(torch.randn(2, 1, 28, 28)).logits.shape == (2, 10)


def test_a_search_tries_sizes_that_can_work_within_the_limits_and_leaves_a_recipe(source, tmp_path, capsys):
    limit = 5000
    main(command(source, "search", tmp_path / "out", "--trials", "14", "--max_parameters", str(limit)))
    assert "14 trials" in capsys.readouterr().out
    found = rows(tmp_path / "out")
    assert len(found) == 14  # TPE begins after ten
    assert {row["state"] for row in found} <= {"complete", "stopped early"}
    for row in found:
        width, heads, patch = (int(row[n]) for n in ("hidden_size", "num_attention_heads", "patch_size"))
        assert width % heads == 0 and 28 % patch == 0 and (row["stem"] == "patch" or patch == 4)
        assert int(row["intermediate_size"]) == 2 * width
        if row["state"] == "complete":
            assert int(float(row["parameters"])) <= limit
            assert float(row["error_rate"]) == int(float(row["errors"])) / 40
            assert float(row["images_per_second"]) > 0 and float(row["peak_memory_mb"]) >= 0
    assert len({tuple(row[name] for name in ("hidden_size", "patch_size", "learning_rate")) for row in found}) > 4
    table = (tmp_path / "out" / "results.md").read_text()
    assert "120 images" in table and "40 held-out images" in table
    assert (tmp_path / "out" / "sizes.png").read_bytes().startswith(b"\x89PNG")

    best = min(
        (row for row in found if row["state"] == "complete"), key=lambda row: float(row["negative_log_likelihood"])
    )
    recipe = ["--recipe", str(tmp_path / "out" / "best.yaml"), "--max_steps", "2", "--use_cpu", "true"]
    training.main(["--data", str(source / "digits.zip"), *recipe, "--output_dir", str(tmp_path / "run")])
    config = ViTScratchConfig.from_pretrained(tmp_path / "run")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "stem"):
        assert str(getattr(config, name)) == best[name]
    assert config.pooling == best["pooling"] and config.position_embedding == best["position_embedding"]
    assert yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())["learning_rate"] == float(
        best["learning_rate"]
    )


def test_a_search_goes_on_and_keeps_what_is_finished(source, tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(study, "tqdm", lambda **told: bars.append(tqdm(**told)) or bars[-1])
    main(command(source, "search", tmp_path, "--trials", "2"))
    before = rows(tmp_path)
    main(command(source, "search", tmp_path, "--trials", "3"))
    assert rows(tmp_path)[:2] == before and len(rows(tmp_path)) == 3
    assert len({row["learning_rate"] for row in rows(tmp_path)}) == 3  # not the same draws once more
    # The time that is left is reckoned from what this run has done, not from what it found there.
    assert [bar.format_dict["n"] - bar.format_dict["initial"] for bar in bars] == [2, 1]


def test_ctrl_c_leaves_the_report_of_what_is_finished_and_the_trial_is_done_again(source, tmp_path):
    # The second training begins and does not end.
    begun = tmp_path.with_name("begun")
    before = "import pathlib, time; from hf_vit_scratch.exploration.trial import TrialRunner as R"
    before += "; train = R.train; n = iter(range(9))"
    before += f"; endless = lambda: (pathlib.Path({str(begun)!r}).touch(), time.sleep(600))"
    before += "; R.train = lambda self, *a: train(self, *a) if next(n) < 1 else endless()"
    running = process(source, "search", tmp_path, "--trials", "200", before=before)
    wait_for(running, begun)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate()
    assert running.returncode == 130 and "Run the same command again to continue" in error
    assert (tmp_path / "results.md").exists() and (tmp_path / "sizes.png").exists()
    before = rows(tmp_path)
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/trials.db")
    waiting = [trial for trial in stored.trials if trial.state == optuna.trial.TrialState.WAITING]
    main(command(source, "search", tmp_path, "--trials", str(len(before) + 1)))
    after = rows(tmp_path)
    assert after[: len(before)] == before and len(after) == len(before) + 1
    assert float(after[-1]["learning_rate"]) == waiting[0].params["learning_rate"]


@pytest.mark.nightly
def test_a_killed_study_goes_on(source, tmp_path, monkeypatch):
    # Killed as it begins the second trial, before Optuna has written a sign of life of it.
    die = "os.kill(os.getpid(), 9) if trial_id > 1 else beat(self, trial_id)"
    before = "import os; from optuna.storages import RDBStorage as R; beat = R.record_heartbeat"
    before += f"; R.record_heartbeat = lambda self, trial_id: {die}"
    running = process(source, "size", tmp_path, before=before)
    running.communicate()
    before = rows(tmp_path)
    monkeypatch.setattr(study, "_STALE_SECONDS", 3)
    monkeypatch.setattr(plans, "SEEDS", (1,))
    main(command(source, "size", tmp_path))
    after = rows(tmp_path)
    assert after[: len(before)] == before
    assert len(after) == 4 + 2 + 3


def test_the_study_of_sizes(source, tmp_path):
    main(command(source, "size", tmp_path))
    found = rows(tmp_path)
    choosing = [row for row in found if row["confirming"] == "False"]
    confirmed = [row for row in found if row["confirming"] == "True"]
    sizes = {(row["hidden_size"], row["num_hidden_layers"]) for row in choosing}
    assert sizes == {("8", "1"), ("8", "2"), ("16", "1"), ("16", "2")}
    # The recipe's MLP ratio, and its dimensions of a head.
    assert all(row["intermediate_size"] == str(2 * int(row["hidden_size"])) for row in found)
    assert all(int(row["hidden_size"]) == 4 * int(row["num_attention_heads"]) for row in found)
    best = {}
    for width in ("8", "16"):  # a rate for each width, by the depth that was tried with all
        tried = [row for row in choosing if (row["hidden_size"], row["num_hidden_layers"]) == (width, "2")]
        assert {float(row["learning_rate"]) for row in tried} == {1e-4, 1e-2}
        rate = min(tried, key=lambda row: float(row["negative_log_likelihood"]))["learning_rate"]
        grid = [row for row in choosing if row["hidden_size"] == width and row["learning_rate"] == rate]
        assert len(grid) == 2
        best |= {(row["hidden_size"], row["num_hidden_layers"]): float(row["negative_log_likelihood"]) for row in grid}
    finalists = sorted(best, key=best.get)[:3]
    again = [(row["hidden_size"], row["num_hidden_layers"], row["seed"]) for row in confirmed]
    assert sorted(again) == sorted((*size, seed) for size in finalists for seed in "123")
    assert "## Confirmed" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(("width", "heads"), [(8, 2), (24, 6), (10, 2), (6, 2), (7, 1)])
def test_heads_keep_about_the_recipes_four_dimensions_and_divide_the_width(source, tmp_path, width, heads):
    runner = TrialRunner(*parse_exploration(command(source, "size", tmp_path)[1:]))
    assert runner.fields({"hidden_size": width})["num_attention_heads"] == heads
    assert runner.fields({"hidden_size": width, "num_attention_heads": 1})["num_attention_heads"] == 1


def test_a_rate_at_which_training_diverges_is_left_behind(source, tmp_path):
    bounds = tmp_path / "bounds.yaml"
    bounds.write_text("hidden_size: [8]\nnum_hidden_layers: [1, 2, 3]\nlearning_rate: [1e-2, 1e30]\n")
    main(command(source, "size", tmp_path / "out", "--bounds", str(bounds)))
    states = {(float(row["learning_rate"]), row["state"]) for row in rows(tmp_path / "out")}
    assert states == {(1e-2, "complete"), (1e30, "diverged")}
    assert len(rows(tmp_path / "out")) == 2 + 2 + 3 * 3  # two rates, two sizes more, three of them three times


def test_the_rows_that_confirm_take_no_part_in_anything_else(source, tmp_path):
    runner = TrialRunner(*parse_exploration(command(source, "size", tmp_path)[1:]))
    parts = [set(row_numbers(part).tolist()) for part in runner.splits.values()]
    assert [len(part) for part in parts] == [120, 40, 40]
    assert set.union(*parts) == set(range(200))
    spec = Spec("ViT", runner.fields({}), 1e-2, seed=3, fraction=0.5)
    half = runner._images(spec)
    assert len(half) == 60 and set(row_numbers(half).tolist()) < parts[0]
    other = runner._images(Spec("ViT", {}, 1e-2, seed=4, fraction=0.5))
    assert row_numbers(half).tolist() != row_numbers(other).tolist()
    labels = [sum(label == k for label in half["label"][:]) for k in range(10)]
    assert labels == [6] * 10
    once, again = runner.train(spec), runner.train(spec)
    assert (once["negative_log_likelihood"], once["curve"]) == (again["negative_log_likelihood"], again["curve"])
    assert once["train_images"] == 60


def test_a_choice_is_measured_on_the_rows_for_choosing_and_confirmed_on_the_others(source, tmp_path, monkeypatch):
    runner = TrialRunner(*parse_exploration(command(source, "size", tmp_path)[1:]))
    rows = {name: row_numbers(split).tolist() for name, split in runner.splits.items()}
    original, measured = trial.predict_logits, []

    def recorded(classifier, split, *others, **more):
        measured.append(row_numbers(split).tolist())
        return original(classifier, split, *others, **more)

    monkeypatch.setattr(trial, "predict_logits", recorded)
    for confirming in (False, True):
        runner.train(Spec("ViT", runner.fields({}), 1e-2, confirming=confirming))
    assert measured == [rows["validation"], rows["confirm"]] and not set(measured[0]) & set(measured[1])


def test_all_parts_see_as_many_images_and_evaluations_are_not_counted_as_training(source, tmp_path, monkeypatch):
    step, evaluate, seen = ViTScratchTrainer.training_step, ViTScratchTrainer.evaluation_loop, []

    def slow_step(self, model, inputs, *others, **more):
        seen.append(len(inputs["labels"]))
        time.sleep(0.05)
        return step(self, model, inputs, *others, **more)

    def slow_evaluation(self, *others, **more):
        time.sleep(0.2)
        return evaluate(self, *others, **more)

    monkeypatch.setattr(ViTScratchTrainer, "training_step", slow_step)
    monkeypatch.setattr(ViTScratchTrainer, "evaluation_loop", slow_evaluation)
    runner = TrialRunner(*parse_exploration(command(source, "size", tmp_path, "--num_train_epochs", "3")[1:]))
    for fraction in (0.25, 0.5, 1.0):
        seen.clear()
        start = time.perf_counter()
        found = runner.train(Spec("ViT", runner.fields({}), 1e-2, fraction=fraction))
        elapsed = time.perf_counter() - start
        assert sum(seen) == 3 * 120
        assert found["images_per_second"] < 20 / 0.05
        assert found["seconds"] < elapsed - 5 * 0.2


def test_the_study_of_data(source, tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "SEEDS", (1,))
    main(command(source, "data", tmp_path, "--patch_size", "4", "--augmentation", "digits"))
    found = rows(tmp_path)
    families = ("plain ViT", "ViT with convolutional stem", "CNN")
    assert len(found) == 3 * 2 + 3 * 2 * 2
    for family in families:
        confirmed = [row for row in found if row["family"] == family and row["confirming"] == "True"]
        points = {(row["fraction"], row["augmented"], row["seed"]) for row in confirmed}
        assert points == {(f, a, s) for f in ("0.5", "1.0") for a in ("True", "False") for s in "1"}
        assert len({row["learning_rate"] for row in confirmed}) == 1
        assert {row["train_images"] for row in confirmed} == {"60", "120"}
    assert (tmp_path / "images.png").read_bytes().startswith(b"\x89PNG")
    vits = [row for row in found if row["confirming"] == "False" and row["family"] != "CNN"]
    best = min(vits, key=lambda row: float(row["negative_log_likelihood"]))
    told = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert (told["stem"], told["learning_rate"]) == (best["stem"], float(best["learning_rate"]))
    assert str(told.get("stem_depth", "")) == best["stem_depth"].removesuffix(".0")


@pytest.mark.nightly
def test_two_processes_share_a_study(source, tmp_path):
    storage = f"sqlite:///{tmp_path}/both.db"
    optuna.storages.RDBStorage(storage)  # makes the tables
    fewer = "from hf_vit_scratch.exploration import plans; plans.SEEDS = (1,)"
    told = ("--storage", storage)
    both = [process(source, "size", tmp_path / name, *told, before=fewer) for name in ("one", "two")]
    for running in both:
        _, error = running.communicate()
        assert running.returncode == 0, error
    for name in ("one", "two"):
        found = rows(tmp_path / name)
        assert len(found) == 9
        names = ("hidden_size", "num_hidden_layers", "learning_rate", "seed", "confirming")
        assert len({tuple(row[n] for n in names) for row in found}) == 9


def test_ctrl_c_in_the_study_of_data_leaves_a_report(source, tmp_path):
    running = process(source, "data", tmp_path, "--patch_size", "4")
    wait_for(running, tmp_path / "results.csv")
    running.send_signal(signal.SIGINT)
    _, error = running.communicate()
    assert running.returncode == 130 and "Run the same command again to continue" in error, error
    assert "On the rows for choosing" in (tmp_path / "results.md").read_text()


def test_muons_rate_goes_with_the_learning_rate_and_flags_may_have_dashes(source, tmp_path):
    told = command(source, "search", tmp_path, "--trials", "1", "--muon-learning-rate", "2e-2", "--report-to", "none")
    main([*told, "--muon-stem", "true"])
    (row,) = rows(tmp_path)
    recipe = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert recipe["muon_learning_rate"] == pytest.approx(2 * float(row["learning_rate"]))  # as 2e-2 to 1e-2
    assert recipe["muon_stem"] is True and "report_to" not in recipe


def finding(
    trial: int, seed: int, errors: int, *, width=8, rate=1e-3, confirming=False, curve: tuple = (2.0, 1.0)
) -> dict:
    spec = Spec("ViT", {"hidden_size": width, "num_hidden_layers": 2}, rate, seed, confirming=confirming)
    costs = {"parameters": width, "flops": width, "seconds": 1.0, "seconds_per_epoch": 1.0, "images_per_second": 1.0}
    return {
        **{"trial": trial, "state": "complete", "spec": vars(spec), "value": errors / 100, **costs},
        **{"train_images": 10, "peak_memory_mb": None, "hardware": "one", "errors": errors, "num_images": 200},
        **{"negative_log_likelihood": errors / 100, "curve": list(curve)},
    }


def test_the_report_has_the_spread_over_seeds_and_says_which_curves_still_fell(tmp_path):
    found = [finding(0, 0, 9, curve=(1.0, 0.96)), finding(1, 0, 5, width=16, curve=(1.0, 0.94))]
    found += [finding(2 + seed, seed, errors, width=16, confirming=True) for seed, errors in enumerate((4, 6, 11))]
    settings = {"study": "size", "data": "digits", "images": [10, 200, 200], "recipe": {"num_train_epochs": 2.0}}
    write_findings(found, tmp_path, settings)
    table = (tmp_path / "results.md").read_text()
    confirmed, choosing = table.partition("## Confirmed")[2].split("## On the rows")
    assert "| 16 | 16 | 0.0 | 1.0 | 1 |  | 3 | 7.0 ± 3.6 | 3.50 ± 1.80% | 0.0700 ± 0.0361 | 3 |" in confirmed
    assert "| 8 | 8 | 0.0 | 1.0 | 1 |  | 1 | 9 | 4.50% | 0.0900 |  |" in choosing
    assert "| 1 | 5 | 2.50% | 0.0500 | 1 |" in choosing
    assert "In 4 of 5 trainings" in table
    best = (tmp_path / "best.yaml").read_text()
    assert "5 wrong of 200 on the rows that it was chosen on" in best and "7.0 ± 3.6 wrong of 200 other rows" in best
    assert yaml.safe_load(best)["hidden_size"] == 16
    write_findings(found + [{**found[4], "hardware": "another", "seconds_per_epoch": 9.0}], tmp_path, settings)
    again = (tmp_path / "results.md").read_text()
    assert "| 16 | 16 | 0.0 | 1.0 | 1 |  | 4 | 8.0 ± 3.6 |" in again  # seconds of the first machine alone


def test_the_plot_has_each_size_once_with_its_best_learning_rate_and_all_that_is_confirmed(tmp_path, monkeypatch):
    found = [finding(0, 0, 9), finding(1, 0, 5, rate=2e-3), finding(2, 0, 7, rate=4e-3), finding(3, 0, 6, width=16)]
    found += [finding(4 + seed, seed, 8, rate=2e-3, confirming=True) for seed in (1, 2)]
    drawn = []
    monkeypatch.setattr(report, "plot_sizes", lambda setups, file: drawn.append(setups))
    write_plots(found, tmp_path, "size")
    points = zip(drawn[0].hidden_size, drawn[0].errors, drawn[0].confirming, strict=True)
    assert sorted(points) == [(8, 5, False), (8, 8, True), (16, 6, False)]


def test_the_plot_of_images_has_a_line_for_each_family_and_bars_over_seeds_in_the_panel_of_its_augmentation(
    tmp_path, monkeypatch
):
    found = []
    for seed, family, augmented, images, errors in [
        *((seed, "CNN", True, 20, errors) for seed, errors in enumerate((8, 12, 16))),
        *((seed, "CNN", True, 10, 20) for seed in (1, 2)),
        (1, "plain ViT", False, 10, 80),
        (1, "CNN", False, 10, 40),
    ]:
        one = finding(len(found), seed, errors, confirming=True)
        one["spec"] |= {"family": family, "augmented": augmented, "fraction": images / 20}
        found.append(one | {"train_images": images})
    chosen = finding(len(found), 0, 2)  # on the rows for choosing: not in the plot
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *file, **how: drawn.append(figure))
    write_plots([*found, chosen], tmp_path, "data")
    lines = {
        (panel.get_title(), container.get_label()): container
        for panel in drawn[0].axes
        for container in panel.containers
    }
    points = {name: container[0].get_xydata().round(6).tolist() for name, container in lines.items()}
    assert points == {
        ("with augmentation", "CNN"): [[10, 10], [20, 6]],
        ("without", "CNN"): [[10, 20]],
        ("without", "plain ViT"): [[10, 40]],
    }
    (bars,) = lines["with augmentation", "CNN"][2]
    assert [part[:, 1].round(6).tolist() for part in bars.get_segments()] == [[10, 10], [4, 8]]
    colours = {name: container[0].get_color() for name, container in lines.items()}
    assert colours["with augmentation", "CNN"] == colours["without", "CNN"] != colours["without", "plain ViT"]


def test_the_pareto_front():
    points = pd.DataFrame({"flops": [3, 1, 2, 2, 3, 4], "error_rate": [0.2, 0.5, 0.6, 0.4, 0.3, 0.2]})
    front = pareto_front(points, "flops")
    assert list(zip(front.flops, front.error_rate, strict=True)) == [(1, 0.5), (2, 0.4), (3, 0.2)]


def test_a_hopeless_trial_is_stopped_early(source, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.pruners.PercentilePruner, "prune", lambda self, study, trial: trial.number == 1)
    main(command(source, "search", tmp_path, "--trials", "2"))
    assert [row["state"] for row in rows(tmp_path)] == ["complete", "stopped early"]
    assert rows(tmp_path)[1]["errors"] == ""


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("search", ["--max_parameters", "10"], "no size is within the bounds and limits: max_parameters 10"),
        ("size", ["--max_flops", "1e2"], "no size is within the bounds and limits"),
        ("search", ["--trials", "0"], "trials must be at least 1"),
        ("search", ["--max_flops", "-1"], "max_flops must be above 0"),
        ("search", ["--max_steps", "5"], "max_steps"),
        ("search", ["--teacher_epochs", "1"], "teacher_epochs must be 0: explore"),
        ("search", ["--num_train_epochs", "0"], "num_train_epochs must be above 0"),
        ("search", ["--validation_size", "0"], "validation_size must be above 0"),
        ("search", ["--bounds", "{folder}/unknown.yaml"], "unknown depth; expected hidden_size"),
        ("search", ["--bounds", "{folder}/empty.yaml"], "hidden_size must be a list, or low and high, of values like"),
        ("search", ["--bounds", "{folder}/crossed.yaml"], "num_hidden_layers must be"),
        ("search", ["--bounds", "{folder}/list.yaml"], "must be a mapping of names to values, got list"),
        ("search", ["--bounds", "{folder}/excluding.yaml"], "no size is within the bounds"),
        ("search", ["--bounds", "{folder}/missing.yaml"], "missing.yaml"),
        ("search", ["--storage", "sqlite:////nowhere/at/all.db"], "no trials can be stored in sqlite:////nowhere"),
        ("search", ["--storage", "trials"], "no trials can be stored in trials"),
        ("search", ["--storage", "oracle+cx_oracle://me:secret@host/db"], "stored in host/db: No module named"),
        ("search", ["--storage", "oracle+cx_oracle://host/db"], "Install the driver of that database."),
        ("search", ["--hiden_size", "8"], "--hiden_size"),
        ("data", ["--patch_size", "7"], "needs a patch_size that is a power of 2"),
        ("search", ["--model_name_or_path", "x"], "explore trains from scratch"),
        ("search", ["--ema_decay", "1.5"], "ema_decay"),
        ("search", ["--push_to_hub", "true", "--hub_model_id", "alice/x"], "push_to_hub: explore trains many models"),
        ("search", ["--per_device_train_batch_size", "150"], "120 training images are less than a batch of 150"),
        ("search", ["--bounds", "{folder}/step.yaml"], "num_hidden_layers must be"),
        ("data", ["--bounds", "{folder}/fraction.yaml"], "fraction must be a list of values like 0.05, got [5, 100]"),
        ("data", ["--max_flops", "1e9"], "max_parameters and max_flops are for the studies search and size"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(source, tmp_path, capsys, kind, more, words):
    for name, text in {
        "unknown": "depth: [1]",
        "empty": "hidden_size: []",
        "step": "num_hidden_layers: {low: 1, high: 4, step: '2'}",
        "fraction": "fraction: [5, 100]",
        "crossed": "num_hidden_layers: {low: 3, high: 1}",
        "list": "[1, 2]",
        "excluding": "hidden_size: [10]\nnum_attention_heads: [3]",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    told = command(source, kind, tmp_path / "out", *(word.format(folder=tmp_path) for word in more))
    assert words in refused(capsys, *told)
    assert not (tmp_path / "out" / "results.csv").exists()


def test_an_unknown_study_is_refused(source, tmp_path, capsys):
    line = refused(capsys, "explore", "--data", str(source / "digits.zip"), "--study", "depth", *FLAGS)
    assert "study must be one of search, size, data, got 'depth'" in line


def test_a_study_with_other_settings_is_refused_and_nothing_of_it_is_lost(source, tmp_path, capsys):
    main(command(source, "search", tmp_path, "--trials", "1"))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for more in (["--fold", "1"], ["--seed", "5"], ["--crop_fraction", "0.9"]):
        assert f"holds a study with {more[0][2:]}" in refused(
            capsys, *command(source, "search", tmp_path, "--trials", "2", *more)
        )
    assert "holds a study with study 'search'" in refused(capsys, *command(source, "size", tmp_path))
    line = refused(capsys, *command(source, "search", tmp_path, "--trials", "2", "--num_train_epochs", "2"))
    assert "--output_dir holds a study with num_train_epochs 1.0, and this command asks for 2.0" in line
    assert "Choose another --output_dir" in line
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_of_something_else_is_refused(source, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert "holds files that do not belong to a study" in refused(capsys, *command(source, "search", tmp_path))
    assert os.listdir(tmp_path) == ["README.md"]
