"""How every figure is drawn: palette, style, what one set of figures is about, curves with bands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from restool.analysis import entropy, tables
from restool.analysis.entropy import REGIONS
from restool.analysis.experiment import Experiment

# Okabe and Ito's palette, told apart by people with any kind of colour vision.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#767676"
REGION_COLOURS = dict(zip(REGIONS, (BLUE, VERMILLION, GREEN, PURPLE, SKY, GREY), strict=True))
_METHOD_COLOURS = {
    "grpo": BLUE,
    "rest_released": VERMILLION,
    "rest_fixed": GREEN,
    "masked_uniform": ORANGE,
    "sft": GREY,
    "base": GREY,
}
_SPARE = (PURPLE, SKY, "#000000", YELLOW, GREY)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "restool",
    "svg.fonttype": "path",
    "figure.facecolor": "white",
}
WIDTH = 9.6  # inches, the report's column


class Missing(Exception):
    """The data of a figure is not there; the message says which."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure; ``data`` is what it shows, in long form, ``runs`` the ids of the runs that it is made from."""

    figure: Figure
    title: str
    caption: str
    data: pd.DataFrame
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """One model and schedule of an experiment: what one set of figures is about."""

    experiment: Experiment
    model: str
    schedule: str

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame[(frame["model"] == self.model) & (frame["schedule"] == self.schedule)]

    def runs_in(self, frame: pd.DataFrame) -> tuple[str, ...]:
        """The runs of this subject that a frame has rows of."""
        return tuple(dict.fromkeys(self.of(frame)["run"]))

    @cached_property
    def methods(self) -> list[str]:
        trained = {run.method for run in self.experiment.rl_runs}
        return [method for method in self.experiment.methods if method in trained]

    @cached_property
    def scores(self) -> pd.DataFrame:
        return tables.scores(self.experiment)

    def colour(self, method: str) -> str:
        others = [name for name in self.methods if name not in _METHOD_COLOURS]
        return _METHOD_COLOURS.get(method) or _SPARE[others.index(method) % len(_SPARE)]

    def dash(self, method: str) -> Any:
        return DASHES[self.methods.index(method) % len(DASHES)]

    @property
    def seeds(self) -> str:
        runs = [run for run in self.experiment.rl_runs if (run.model, run.schedule) == (self.model, self.schedule)]
        count = len({run.seed for run in runs if run.is_done})
        return "one seed" if count == 1 else f"{count} seeds"


def curves(subject: Subject, frame: pd.DataFrame, by: list[str], window: int | None = None) -> pd.DataFrame:
    """Running mean over ``window`` steps of each run, then mean and range over seeds."""
    frame = subject.of(frame)
    if frame.empty:
        raise Missing("no metrics of RL steps")
    window = _window(frame) if window is None else window
    one_line = frame.sort_values("step").groupby([column for column in ("run", "region") if column in frame])
    smooth = one_line["value"].transform(lambda values: values.rolling(window, min_periods=1).mean())
    raw = frame.groupby(by, sort=False)["value"].mean().rename("unsmoothed_mean").reset_index()
    return entropy.over_seeds(frame.assign(value=smooth), by).merge(raw, on=by)


def _window(frame: pd.DataFrame) -> int:
    return max(1, round(frame["step"].max() / 10)) if len(frame) else 1


def lines(axes: Axes, subject: Subject, data: pd.DataFrame) -> None:
    """One line and band a method."""
    for method in subject.methods:
        line = data[data["method"] == method].sort_values("step")
        if line.empty:
            continue
        colour, dash = subject.colour(method), subject.dash(method)
        axes.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(line["step"], line["mean"], color=colour, linestyle=dash, label=method)


def band(subject: Subject) -> str:
    """The sentence that a caption says about lines and bands."""
    width = _window(subject.of(entropy.metric(subject.experiment, "reward/total")))
    smooth = f"running mean over {width} steps, " if width > 1 else ""
    return f"Lines: {smooth}mean over {subject.seeds}; bands: lowest and highest seed."


def outer_labels(figure: Figure, x: str, y: str | None) -> None:
    """Axis labels on the left and bottom panels alone."""
    for axes in figure.axes:
        place = axes.get_subplotspec()
        axes.xaxis.get_major_locator().set_params(integer=True)  # steps
        if place.is_last_row():
            axes.set_xlabel(x)
        if y and place.is_first_col():
            axes.set_ylabel(y)


def legend(figure: Figure, axes: Axes) -> None:
    """One legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, max(1, len(labels))))
