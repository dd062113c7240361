"""The figures of an experiment: PNG and SVG, the data of each as CSV, title and caption in an index.

One set per model and schedule; the first set has plain names (:data:`NAMES`), further ones end in
``-<model>-<schedule>``. A figure whose data is missing is not drawn, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from restool import files
from restool.analysis import entropy, provenance, tables
from restool.analysis.drawing import (
    BLUE,
    DASHES,
    ORANGE,
    REGION_COLOURS,
    STYLE,
    WIDTH,
    Missing,
    Picture,
    Subject,
    band,
    curves,
    legend,
    lines,
    outer_labels,
)
from restool.analysis.entropy import REGIONS
from restool.analysis.experiment import Experiment

# ---------------------------------------------------------------------------------------------------- figures


def entropy_training(subject: Subject) -> Picture:
    frame = entropy.by_region(subject.experiment)
    data = curves(subject, frame, ["method", "region", "step"])
    regions = [region for region in REGIONS if region in set(data["region"])]
    figure = Figure(figsize=(WIDTH, 5.4))
    panels = figure.subplots(2, 3, sharex=True).flat
    for axes, region in zip(panels, regions, strict=False):
        lines(axes, subject, data[data["region"] == region])
        axes.set_title(region, color=REGION_COLOURS[region], fontweight="bold")
        axes.set_ylim(bottom=0)
    for axes in list(panels)[len(regions) :]:
        axes.remove()
    outer_labels(figure, "training step", "token entropy (nats)")
    legend(figure, figure.axes[0])
    caption = (
        "Mean entropy of the sampled tokens of each region, every token counted once whatever its weight. "
        f"{band(subject)} Each panel has its own scale."
    )
    return Picture(figure, "Token entropy by region over training", caption, data, subject.runs_in(frame))


def entropy_start(subject: Subject) -> Picture:
    data = subject.of(entropy.at_start(subject.experiment))
    if data.empty:
        raise Missing("no entropies of training step 1")
    mean = data.groupby("region")["value"].mean().reindex([r for r in REGIONS if r in set(data["region"])])
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    axes.barh(mean.index, mean, color=[REGION_COLOURS[region] for region in mean.index], height=0.62)
    axes.scatter(data["value"], data["region"], s=14, color="black", zorder=3, label="one seed's first batch")
    edge = max(mean.max(), data["value"].max())
    for position, (region, value) in enumerate(mean.items()):
        end = max(value, data.loc[data["region"] == region, "value"].max())
        axes.text(end + 0.012 * edge, position, f"{value:.3f}", va="center")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, edge * 1.12)
    axes.set_xlabel("mean token entropy (nats)")
    legend(figure, axes)
    caption = (
        "Mean entropy of sampled tokens by region in the first batch, before any update: the checkpoint that RL "
        "starts from. Bars: mean over the first batches of all seeds (dots); methods that sample the same batch "
        "count once."
    )
    shown = data[["run", "region", "value"]]
    return Picture(figure, "Token entropy by region before RL", caption, shown, subject.runs_in(data))


def gradient_variance(subject: Subject) -> Picture:
    record = subject.experiment.variance
    if record is None:
        raise Missing("gradient variance was not measured (restool analyze variance)")
    if not record["weightings"]:
        raise Missing(f"only {record['prompts_with_signal']} of {record['prompts']} prompts had reward spread")
    data = pd.DataFrame(record["weightings"])
    figure = Figure(figsize=(WIDTH, 1.9 + 0.34 * len(data)))
    panels = figure.subplots(1, 3, sharey=True)
    contents = (
        ("variance", "variance_ratio", "variance within prompts,\nrelative to uniform", 1),
        ("direction", "cosine", "cosine to the mean gradient\nunder uniform weights", 1),
        ("signal", "snr", f"signal-to-noise ratio of a step\nof {record['batch']} answers", 0),
    )
    for axes, (prefix, column, label, rule) in zip(panels, contents, strict=True):
        low, high = (data[f"{column.split('_')[0]}_{end}"] for end in ("low", "high"))
        colours = [ORANGE if fitted else BLUE for fitted in data["fitted"]]
        axes.hlines(data["title"], low, high, color=colours, linewidth=2)
        axes.scatter(data[column], data["title"], color=colours, s=28, zorder=3)
        axes.axvline(rule, color="black", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_title(prefix)
    panels[0].set_xlim(left=0)
    panels[0].invert_yaxis()
    handles = [mpl.lines.Line2D([], [], color=c, marker="o", linewidth=2) for c in (BLUE, ORANGE)]
    labels = ["given beforehand", "fitted on one half of the prompts, measured on the other"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    caption = (
        "Policy gradient of single answers at the checkpoint that RL starts from: "
        f"{record['prompts_with_signal']} prompts with reward spread out of {record['prompts']}, {record['samples']} "
        "answers each. All weightings have mean weight 1. A lower variance alone is no gain: weight on near-certain "
        "tokens lowers variance and signal together, so read the three panels as one. Lines: 95 % bootstrap intervals "
        "over prompts; a signal-to-noise interval that holds zero means that the mean gradient itself is not resolved."
    )
    measured_on = provenance.measured_on(subject.experiment)
    return Picture(figure, "Gradient variance and signal by weighting", caption, data, measured_on)


def reward_training(subject: Subject) -> Picture:
    parts = {"reward/total": "total", "reward/format": "format", "reward/correctness": "correctness"}
    title = "Reward of sampled answers over training"
    return _metric_panels(subject, parts, title, "reward", _reward_note(subject))


def dynamics(subject: Subject) -> Picture:
    parts = {
        "length/mean": "answer length (tokens)",
        "clip/fraction": "clipped share of tokens",
        "grad/norm": "gradient norm",
    }
    note = "Norms of methods with other weights are on other scales."
    return _metric_panels(subject, parts, "Answer length, clipping and gradient norm over training", None, note)


def weights_training(subject: Subject) -> Picture:
    frame = entropy.by_region(subject.experiment, "weight")
    data = curves(subject, frame, ["method", "region", "step"], window=1)
    methods = [method for method in subject.methods if method in set(data["method"])]
    columns = min(4, len(methods))
    rows = -(-len(methods) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + 2.4 * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(grid.flat, methods, strict=False):
        chosen = data[data["method"] == method]
        for region in REGIONS:
            line = chosen[chosen["region"] == region]
            dash = DASHES[REGIONS.index(region) % len(DASHES)]  # lines that coincide stay visible
            axes.plot(line["step"], line["mean"], color=REGION_COLOURS[region], linestyle=dash, label=region)
        axes.set_title(method)
    for axes in list(grid.flat)[len(methods) :]:
        axes.remove()
    figure.axes[0].set_ylim(bottom=-0.05)
    outer_labels(figure, "training step", "mean weight")
    legend(figure, figure.axes[0])
    caption = (
        "Weight of a token as it enters the loss, averaged over the region's tokens and over seeds. Under the released "
        "span rules a region's mean includes the tokens that those rules leave at zero."
    )
    return Picture(figure, "Token weight by region over training", caption, data, subject.runs_in(frame))


def before_after(subject: Subject) -> Picture:
    split = tables.main_split(subject.experiment)
    gains = subject.of(tables.gains(subject.experiment, subject.scores))
    shown = {
        ("greedy", "tool_exact"): ("greedy: tool-exact", "share of prompts that need a tool"),
        ("sampled", "reward"): ("sampled: total reward", "reward, -3 to 4"),
    }
    chosen = [
        gains[(gains["split"] == split) & (gains["mode"] == mode) & (gains["metric"] == metric)]
        for mode, metric in shown
    ]
    data = pd.concat(chosen)
    if data.empty:
        raise Missing("no held-out results before and after training")
    methods = [method for method in subject.methods if method in set(data["method"])]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * len(methods)))
    for axes, cell, (title, unit) in zip(figure.subplots(1, 2, sharey=True), chosen, shown.values(), strict=True):
        cell = cell.set_index("method").reindex(methods)
        error = [(cell["mean"] - cell["low"]).fillna(0), (cell["high"] - cell["mean"]).fillna(0)]
        axes.barh(methods, cell["after"], color=[subject.colour(m) for m in methods], height=0.6)
        axes.errorbar(cell["after"], methods, xerr=error, fmt="none", ecolor="black", elinewidth=1.4, capsize=3)
        axes.vlines(cell["before"], [i - 0.36 for i in range(len(methods))], [i + 0.36 for i in range(len(methods))],
                    color="black", linewidth=2.2, label="before RL")  # fmt: skip
        edge = max((cell["after"] + error[1]).max(), cell["before"].max())
        for place, (after, gain) in enumerate(zip(cell["after"], cell["mean"], strict=True)):
            axes.text(edge * 1.03, place, f"{after:.3f}  ({gain:+.3f})", va="center", fontsize=9)
        axes.set_xlim(min(0, cell["before"].min(), cell["after"].min()), edge * 1.42)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        axes.set_xlabel(unit)
    figure.axes[0].invert_yaxis()
    legend(figure, figure.axes[0])
    caption = (
        f"Held-out prompts (split {split}, up to {int(data['n_items'].max())} items), mean over {subject.seeds}; in "
        "brackets the gain over the model that RL started from (black line). Whiskers: 95 % t-interval of the gain "
        "over seeds, same items for all."
    )
    scores = subject.scores[(subject.scores["split"] == split) & subject.scores["method"].isin(methods)]
    runs = provenance.with_starts(subject.experiment, subject.runs_in(scores))
    return Picture(figure, "Held-out results before and after RL", caption, data, runs)


def paired_differences(subject: Subject) -> Picture:
    reference = subject.experiment.settings.reference
    data = subject.of(tables.differences(subject.experiment, subject.scores))
    data = data[(data["b"] == reference) & ~data["metric"].str.startswith("right_").astype(bool)]
    if data.empty:
        raise Missing(f"no method to set against {reference}")
    cells = list(data.groupby(["split", "mode", "metric"], sort=False))
    methods = list(dict.fromkeys(data["a"]))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(methods)))
    for axes, (cell, rows) in zip(figure.subplots(1, len(cells), sharey=True, squeeze=False).flat, cells, strict=True):
        rows = rows.set_index("a").reindex(methods)
        axes.axvline(0, color="black", linewidth=0.9)
        for place, (method, row) in enumerate(rows.iterrows()):
            axes.plot([row["low"], row["high"]], [place, place], color=subject.colour(method), linewidth=2)
            axes.plot(row["mean"], place, "o", color=subject.colour(method), markersize=6)
        axes.set_title(_metric_title(*cell), fontsize=9.5)
        axes.locator_params(axis="x", nbins=4)
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(axis="y", visible=False)
    figure.axes[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel(f"difference from {reference}, same seed", fontsize=10)
    caption = (
        f"Each method minus {reference} at the same seed (same prompts, common random numbers), {subject.seeds}. "
        "Lines: 95 % t-interval; one that crosses zero means that these seeds do not tell the two apart. The "
        "intervals are not corrected for looking at several; the table gives Holm's p-values."
    )
    scores = subject.scores[subject.scores["method"].isin([*methods, reference])]
    return Picture(figure, f"Paired differences from {reference}", caption, data, subject.runs_in(scores))


FIGURES: dict[str, Callable[[Subject], Picture]] = {
    "before_after": before_after,
    "paired_differences": paired_differences,
    "reward_training": reward_training,
    "entropy_start": entropy_start,
    "entropy_training": entropy_training,
    "weights_training": weights_training,
    "gradient_variance": gradient_variance,
    "dynamics": dynamics,
}
NAMES = tuple(FIGURES)


def write_all(experiment: Experiment) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Draw everything; returns (name -> title, caption, files, runs and commits, name -> why it was not drawn)."""
    drawn, missing = {}, {}
    for number, subject in enumerate(subjects(experiment)):
        suffix = "" if number == 0 else f"-{subject.model}-{subject.schedule}"
        for name, draw in FIGURES.items():
            if number and name == "gradient_variance":
                continue  # measured once an experiment
            try:
                with mpl.rc_context(STYLE):
                    drawn[name + suffix] = _save(experiment, name + suffix, draw(subject))
            except Missing as reason:
                missing[name + suffix] = str(reason)
    return drawn, missing


def subjects(experiment: Experiment) -> list[Subject]:
    groups = dict.fromkeys((run.model, run.schedule) for run in experiment.rl_runs)
    return [Subject(experiment, *group) for group in groups]


# ------------------------------------------------------------------------------------------------------ parts


def _save(experiment: Experiment, name: str, picture: Picture) -> dict[str, Any]:
    folder = experiment.analysis / "figures"
    several = len(subjects(experiment)) > 1
    title = picture.title + (f" ({name.split('-', 1)[1]})" if "-" in name else "")
    picture.figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        with files.atomic_path(folder / f"{name}.{kind}") as temporary:
            picture.figure.savefig(temporary, format=kind, **options)
        picture.figure.set_layout_engine("none")  # laid out once: the two files are the same picture
    files.write_text(folder / f"{name}.csv", picture.data.to_csv(index=False))
    paths = {kind: f"analysis/figures/{name}.{kind}" for kind in ("png", "svg", "csv")}
    behind = provenance.behind(experiment, picture.runs)
    return {"title": title, "caption": picture.caption, "one_of_several": several, **paths, **behind}


def _metric_panels(subject: Subject, parts: dict[str, str], title: str, unit: str | None, note: str) -> Picture:
    found = {name: entropy.metric(subject.experiment, name) for name in parts}
    drawn = {name: curves(subject, f, ["method", "step"]) for name, f in found.items() if len(subject.of(f))}
    if not drawn:
        raise Missing(f"no metrics {', '.join(parts)}")
    figure = Figure(figsize=(WIDTH, 3.5))
    for axes, (name, data) in zip(figure.subplots(1, len(drawn), squeeze=False).flat, drawn.items(), strict=True):
        lines(axes, subject, data)
        axes.set_title(parts[name])
    outer_labels(figure, "training step", unit)
    legend(figure, figure.axes[0])
    data = pd.concat([data.assign(metric=name) for name, data in drawn.items()], ignore_index=True)
    runs = tuple(dict.fromkeys(run for frame in found.values() for run in subject.runs_in(frame)))
    return Picture(figure, title, f"{band(subject)} {note}".strip(), data, runs)


def _reward_note(subject: Subject) -> str:
    presets = {run.settings.reward.preset for run in subject.experiment.rl_runs}
    if presets == {"rest"}:
        return "The scheduled reward: its scale moves over training, so a curve may move although the policy does not."
    return "Format lies in [0, 1], correctness in [-3, 3]." if "rest" not in presets else ""


def _metric_title(split: str, mode: str, metric: str) -> str:
    if split == "train":
        return "training reward,\nmean over all steps"
    return f"{mode} {metric.replace('_', '-')},\n{split.replace('_', '-')}"
