"""What an exploration leaves: a table as CSV and Markdown, plots, and the best size as a recipe."""

from pathlib import Path

import pandas as pd
import yaml

from ..output_folder import write_text
from .plots import plot_images_needed, plot_sizes

CSV_NAME, TABLE_NAME, BEST_NAME = "results.csv", "results.md", "best.yaml"
SIZES_PLOT, IMAGES_PLOT = "sizes.png", "images.png"
_STILL_FALLING = 0.05  # so much of its negative log-likelihood went in the last fifth of a training


def summary(findings: list[dict]) -> str:
    """The best ViT so far on the rows for choosing, in a few words."""
    complete = [one for one in findings if one["state"] == "complete" and not one["spec"]["confirming"]]
    complete = [one for one in complete if "ViT" in one["spec"]["family"]]
    if not complete:
        return "none finished yet"
    best = min(complete, key=lambda one: one["value"])
    fields = best["spec"]["fields"]
    size = [str(fields[name]) for name in ("hidden_size", "num_hidden_layers") if name in fields]
    return f"best {'x'.join(size) or best['spec']['family']}, {best['errors']} wrong of {best['num_images']:,}"


def write_findings(findings: list[dict], folder: Path, settings: dict) -> None:
    """The table as CSV, a trial a line, and as Markdown, a setup a line; the best ViT as a recipe.

    Args:
        findings: of [`explore`], a trial each.
        folder: where the files go.
        settings: of the exploration: study, data, rows, recipe.
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
    """Error against cost, or for the study of data, once something is confirmed, against the number of images."""
    if not findings:
        return
    table, setting = _table(findings)
    setups = _setups(table, setting)
    if study == "data":
        setups = setups[setups.confirming]
        plot, name = plot_images_needed, IMAGES_PLOT
    else:  # of a size that was tried with several learning rates the best
        setups = setups.sort_values("nll").drop_duplicates([one for one in setting if one != "learning_rate"])
        plot, name = plot_sizes, SIZES_PLOT
    if not setups.empty:
        plot(setups, folder / name)


def _table(findings: list[dict]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each trial; and the columns that say what was trained, alike in rows that differ in the seed alone."""
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
    """A row for each setup that was trained to the end: means over its seeds, and the spread of what was measured."""
    complete = table[table.state == "complete"]
    if complete.empty:
        return pd.DataFrame(columns=[*setting, "nll"])
    costs = ["seconds_per_epoch", "images_per_second", "peak_memory_mb", "seconds"]
    first = complete.groupby(setting, dropna=False, sort=False).hardware.transform("first")
    # Several machines may have worked at it: a mean over them would be the time on none.
    complete = complete.assign(**complete[costs].where(complete.hardware == first))
    means = ("parameters", "flops", *costs, "train_images", "num_images", "errors", "error_rate")
    found = complete.groupby(setting, dropna=False, sort=False).agg(
        seeds=("seed", "count"),
        hardware=("hardware", "first"),
        **{name: (name, "mean") for name in means},
        errors_std=("errors", "std"),
        error_rate_std=("error_rate", "std"),
        nll=("negative_log_likelihood", "mean"),
        nll_std=("negative_log_likelihood", "std"),
        falling=("still_falling", "sum"),
    )
    return found.reset_index()


def _best(setups: pd.DataFrame) -> pd.Series | None:
    """The ViT that did best on the rows for choosing; those for confirming choose nothing."""
    vits = setups[setups.family.str.contains("ViT") & ~setups.confirming.astype(bool)]
    return None if vits.empty else vits.loc[vits.nll.idxmin()]


def _recipe(best: pd.Series, setups: pd.DataFrame, setting: list[str], trials: int, settings: dict) -> str:
    """The recipe that was given, with what was found best in it."""
    about = ("family", "fraction", "augmented", "confirming")
    fields = {name: _plain(best[name]) for name in setting if name not in about and not pd.isna(best[name])}
    recipe = {**settings["recipe"], **fields}
    if fields.get("stem") == "patch":
        recipe = {name: value for name, value in recipe.items() if name not in ("stem_depth", "stem_width")}
    if recipe.get("muon_learning_rate"):  # it went up and down with the other
        recipe["muon_learning_rate"] *= recipe["learning_rate"] / settings["recipe"]["learning_rate"]
    same = setups[setups.confirming.astype(bool) & (setups.fraction == 1) & setups.augmented.astype(bool)]
    for name in ("family", "learning_rate", *fields):
        same = same[same[name] == best[name]]
    lines = [
        f"The best of {trials} trials of `vit-scratch explore`, study {settings['study']}, on {settings['data']}:",
        f"{best.errors:.0f} wrong of {best.num_images:,.0f} on the rows that it was chosen on, which flatters it.",
    ]
    for _, row in same.iterrows():
        wrong = _spread(row.errors, row.errors_std, ".1f")
        lines.append(f"{wrong} wrong of {row.num_images:,.0f} others, over {row.seeds} seeds.")
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(recipe, sort_keys=False)


def _plain(value):
    """Of numpy and pandas, which turn integers into floats where a row has none."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _markdown(table: pd.DataFrame, setups: pd.DataFrame, setting: list[str], settings: dict) -> str:
    train, validation, confirm = settings["images"]
    states = ", ".join(f"{count} {state}" for state, count in table.state.value_counts().items())
    hardware = sorted(set(setups.hardware)) if len(setups) else []
    lines = [
        f"# {settings['study']}: {settings['data']}",
        "",
        f"Trained on {train:,} images or a part of them, all seeing as many as in "
        f"{settings['recipe']['num_train_epochs']:g} epochs of all. Choices were made on {validation:,} held-out "
        f"images; what is confirmed was measured on {confirm:,} others. Trials: {states}. Hardware: "
        f"{'; '.join(hardware) or 'none yet'}. Times are without evaluation and compilation, memory is what the "
        "training took beyond what the process had.",
        "",
        "The best of many on the rows that it was chosen on looks better than it is; what is confirmed does not.",
    ]
    if len(setups) and (falling := int(setups.falling.sum())):
        lines += [
            "",
            f"In {falling} of {setups.seeds.sum()} trainings the negative log-likelihood fell by more than "
            f"{_STILL_FALLING:.0%} in the last fifth (marked: falling). A rate that falls to 0 makes for that; what "
            "a longer schedule would bring, it does not say.",
        ]
    varied = [name for name in setting if name != "confirming" and table[name].nunique(dropna=False) > 1]
    varied += ["hardware"] if len(hardware) > 1 else []
    for confirming, title in ((True, "Confirmed"), (False, "On the rows for choosing")):
        part = setups[setups.confirming == confirming].sort_values("nll")
        if part.empty:
            continue
        head = [*varied, "parameters", "MFLOP an image", "s an epoch", "images/s", "peak MB", "seeds", "wrong"]
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
