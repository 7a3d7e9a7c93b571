"""The report of an exploration: tables as CSV and Markdown, plots, and the best size as a recipe."""

from pathlib import Path

import pandas as pd
import yaml

from ..output_folder import write_text
from .plots import plot_images_needed, plot_sizes

CSV_NAME, TABLE_NAME, BEST_NAME = "results.csv", "results.md", "best.yaml"
SIZES_PLOT, IMAGES_PLOT = "sizes.png", "images.png"
_STILL_FALLING = 0.05  # relative fall of the negative log-likelihood in the last fifth of a training


def summary(findings: list[dict]) -> str:
    """The best ViT so far on the rows for choosing, as a short text."""
    complete = [one for one in findings if one["state"] == "complete" and not one["spec"]["confirming"]]
    complete = [one for one in complete if "ViT" in one["spec"]["family"]]
    if not complete:
        return "none finished yet"
    best = min(complete, key=lambda one: one["value"])
    fields = best["spec"]["fields"]
    size = [str(fields[name]) for name in ("hidden_size", "num_hidden_layers") if name in fields]
    return f"best {'x'.join(size) or best['spec']['family']}, {best['errors']} wrong of {best['num_images']:,}"


def write_findings(findings: list[dict], folder: Path, settings: dict) -> None:
    """Write a CSV table with a line per trial, a Markdown table with a line per setup, and the best ViT as a recipe.

    Args:
        findings: results of [`explore`], one for each trial.
        folder: folder for the files.
        settings: settings of the exploration: study, data, number of images of each split, recipe.
    """
    if not findings:
        return
    table, setting = _table(findings)
    write_text(folder / CSV_NAME, table.to_csv(index=False))
    setups = _setups(table, setting)
    write_text(folder / TABLE_NAME, _markdown(table, setups, setting, settings))
    if (best := _best(setups)) is not None:
        write_text(folder / BEST_NAME, _recipe(best, setups, setting, len(table), settings))


def write_plots(findings: list[dict], folder: Path, study: str) -> None:
    """Plot the error rate against the cost, or, in the study of data, against the number of training images."""
    if not findings:
        return
    table, setting = _table(findings)
    setups = _setups(table, setting)
    if study == "data":
        setups = setups[setups.confirming]
        plot, name = plot_images_needed, IMAGES_PLOT
    else:  # for each size only its best learning rate
        setups = setups.sort_values("nll").drop_duplicates([one for one in setting if one != "learning_rate"])
        plot, name = plot_sizes, SIZES_PLOT
    if not setups.empty:
        plot(setups, folder / name)


def _table(findings: list[dict]) -> tuple[pd.DataFrame, list[str]]:
    """A table with a row for each trial; and the names of the columns that define a setup, without the seed."""
    rows, fields = [], {}
    for finding in findings:
        spec, curve = finding["spec"], finding.get("curve")
        own = {
            name: "-".join(map(str, value)) if isinstance(value, list) else value
            for name, value in spec["fields"].items()
        }
        fields |= dict.fromkeys(own)
        rows.append(
            {
                **{name: finding[name] for name in ("trial", "state")},
                **{name: value for name, value in spec.items() if name != "fields"},
                **own,
                **{name: value for name, value in finding.items() if name not in ("spec", "value", "curve")},
                "error_rate": finding["errors"] / finding["num_images"] if curve else None,
                "still_falling": bool(curve[-1] < (1 - _STILL_FALLING) * curve[-2]) if curve else None,
            }
        )
    return pd.DataFrame(rows), ["family", *fields, "learning_rate", "fraction", "augmented", "confirming"]


def _setups(table: pd.DataFrame, setting: list[str]) -> pd.DataFrame:
    """A row for each setup with completed trials: means and standard deviations over its seeds."""
    complete = table[table.state == "complete"]
    if complete.empty:
        return pd.DataFrame(columns=[*setting, "nll"])
    costs = ["seconds_per_epoch", "images_per_second", "peak_memory_mb", "seconds"]
    first = complete.groupby(setting, dropna=False, sort=False).hardware.transform("first")
    # If several machines have worked on a setup, use times of the first, since a mean over machines has no meaning.
    complete = complete.assign(**complete[costs].where(complete.hardware == first))
    means = ("parameters", "flops", *costs, "train_images", "num_images", "errors", "error_rate")
    setups = complete.groupby(setting, dropna=False, sort=False).agg(
        seeds=("seed", "count"),
        hardware=("hardware", "first"),
        **{name: (name, "mean") for name in means},
        errors_std=("errors", "std"),
        error_rate_std=("error_rate", "std"),
        nll=("negative_log_likelihood", "mean"),
        nll_std=("negative_log_likelihood", "std"),
        falling=("still_falling", "sum"),
    )
    return setups.reset_index()


def _best(setups: pd.DataFrame) -> pd.Series | None:
    """The best ViT on the rows for choosing. The rows for confirming are not used for the choice."""
    vits = setups[setups.family.str.contains("ViT") & ~setups.confirming.astype(bool)]
    return None if vits.empty else vits.loc[vits.nll.idxmin()]


def _recipe(best: pd.Series, setups: pd.DataFrame, setting: list[str], trials: int, settings: dict) -> str:
    """The given recipe with the values of the best setup, as YAML with a comment on its results."""
    about = ("family", "fraction", "augmented", "confirming")
    fields = {name: _plain(best[name]) for name in setting if name not in about and not pd.isna(best[name])}
    recipe = {**settings["recipe"], **fields}
    if recipe.get("stem") == "patch":
        recipe = {name: value for name, value in recipe.items() if not name.startswith("stem_")}
    if recipe.get("muon_learning_rate"):  # it was scaled with the learning rate of AdamW
        recipe["muon_learning_rate"] *= recipe["learning_rate"] / settings["recipe"]["learning_rate"]
    same = setups[setups.confirming.astype(bool) & (setups.fraction == 1) & setups.augmented.astype(bool)]
    for name in ("family", "learning_rate", *fields):
        same = same[same[name] == best[name]]
    lines = [
        f"The best of {trials} trials of `vit-scratch explore`, study {settings['study']}, on {settings['data']}:",
        f"{best.errors:.0f} wrong of {best.num_images:,.0f} on the rows that it was chosen on, a biased estimate.",
    ]
    for _, row in same.iterrows():
        wrong = _spread(row.errors, row.errors_std, ".1f")
        lines.append(
            f"{wrong} wrong of {row.num_images:,.0f} other rows (mean and standard deviation over {row.seeds} seeds)."
        )
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(recipe, sort_keys=False)


def _plain(value):
    """A plain Python value. pandas turns integers into floats if the column has missing values."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _markdown(table: pd.DataFrame, setups: pd.DataFrame, setting: list[str], settings: dict) -> str:
    train, validation, confirm = settings["images"]
    states = ", ".join(f"{count} {state}" for state, count in table.state.value_counts().items())
    hardware = sorted(set(setups.hardware)) if len(setups) else []
    lines = [
        f"# {settings['study']}: {settings['data']}",
        "",
        f"Models were trained on {train:,} images or a fraction of them. Every training processes "
        f"{settings['recipe']['num_train_epochs']:g} times as many images as there are to train on. Choices were "
        f"made on {validation:,} held-out images, and chosen setups were confirmed on {confirm:,} other images. "
        f"Trials: {states}. Hardware: {'; '.join(hardware) or 'none yet'}. Times exclude evaluation and compilation. "
        "Memory is the peak during the training, minus the memory of the process before it.",
        "",
        "The error rate of the best setup on the rows for choosing is too optimistic, because it was selected on "
        "them. Confirmed error rates are unbiased.",
    ]
    if len(setups) and (falling := int(setups.falling.sum())):
        lines += [
            "",
            f"In {falling} of {setups.seeds.sum()} trainings the negative log-likelihood fell by more than "
            f"{_STILL_FALLING:.0%} in the last fifth (column: falling). A learning rate that falls to 0 causes this, "
            "so it does not show whether a longer schedule would help.",
        ]
    varied = [name for name in setting if name != "confirming" and table[name].nunique(dropna=False) > 1]
    varied += ["hardware"] if len(hardware) > 1 else []
    for confirming, title in ((True, "Confirmed"), (False, "On the rows for choosing")):
        part = setups[setups.confirming == confirming].sort_values("nll")
        if part.empty:
            continue
        head = [*varied, "parameters", "MFLOP per image", "s per epoch", "images/s", "peak MB", "seeds", "wrong"]
        head += ["error rate", "negative log-likelihood", "falling"]
        lines += ["", f"## {title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for _, row in part.iterrows():
            cells = [
                *(_cell(row[name]) for name in varied),
                f"{row.parameters:,.0f}",
                f"{row.flops / 1e6:,.1f}",
                f"{row.seconds_per_epoch:,.1f}",
                f"{row.images_per_second:,.0f}",
                "" if pd.isna(row.peak_memory_mb) else f"{row.peak_memory_mb:,.0f}",
                f"{row.seeds}",
                _spread(row.errors, row.errors_std, ".0f" if row.seeds == 1 else ".1f"),
                _spread(100 * row.error_rate, 100 * row.error_rate_std, ".2f") + "%",
                _spread(row.nll, row.nll_std, ".4f"),
                f"{row.falling:.0f}" if row.falling else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:g}"
    return str(value)


def _spread(mean: float, std: float, digits: str) -> str:
    return format(mean, digits) + ("" if pd.isna(std) else f" ± {std:{digits}}")
