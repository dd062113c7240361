"""Saved views: what MLflow's pages show of an experiment when somebody opens an address of ours.

MLflow 3.17 keeps a shared view as a tag of its experiment: ``mlflow.sharedViewState.<key>`` holds the state of the runs
page (filter, order, columns, grouping, charts) as JSON, and ``?viewStateShareKey=<key>`` opens it. A view of ours
groups runs by method, so that every chart has one line a method, the mean over its seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from restool import algorithms
from restool.analysis.experiment import Experiment, Run

COMPARED = "compared"
"""Tag of the runs that an experiment's own view shows; its value is the experiment's name."""
MOST_COMPARED = 6
"""Methods that a chart shows legibly."""
CURVES = ("reward/total", "reward/correctness", "entropy/mean", "entropy/arguments", "length/mean", "grad/norm")
_TAG = "mlflow.sharedViewState."
_KIND = "workflowType=machine_learning"  # MLflow's menus for training, not for chat applications
_OURS = "Methods side by side"


@dataclass(frozen=True)
class View:
    """``filter`` chooses runs (MLflow's search syntax), which make one line for each of ``groups``.

    ``groups``: values of the tags ``group_by``; ``scores``: metrics with a bar chart; ``sections``: names of the folded
    sections that hold all other metrics.
    """

    key: str
    filter: str
    group_by: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    scores: tuple[str, ...]
    sections: tuple[str, ...]

    def tags(self) -> dict[str, str]:
        """The tag of MLflow's experiment that is this view."""
        return {_TAG + self.key: json.dumps(self.state())}

    def state(self) -> dict[str, Any]:
        ours = "restool-compared"
        charts = [_line(name, ours) for name in CURVES] + [_bar(name, ours) for name in self.scores]
        return {
            "searchFilter": self.filter,
            "orderByKey": "tags.`method`",
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": ["tags.`method`", "tags.`seed`", "metrics.`reward/total`"],
            "runsHiddenMode": "SHOW_ALL",
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": name} for name in self.group_by],
            },
            "groupsExpanded": {self._group_id(values): False for values in self.groups},
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "isAccordionReordered": True,
            "compareRunSections": [
                _section(ours, _OURS, is_open=True),
                *(_section(f"restool-{name}", name, is_open=False) for name in self.sections),
            ],
            "compareRunCharts": charts,
        }

    def _group_id(self, values: tuple[str, ...]) -> str:
        return ",".join(f"tag.{name}.{value}" for name, value in zip(self.group_by, values, strict=True))


def compared(experiment: Experiment) -> list[str]:
    """The methods of the experiment's own view: all, or, of many, the reference and those with ResT's weights."""
    methods = [method for method in experiment.methods if method in {run.method for run in experiment.rl_runs}]
    if len(methods) <= MOST_COMPARED:
        return methods
    records = {run.method: algorithms.get(run.settings.method.algorithm) for run in experiment.rl_runs}
    rest = algorithms.get("rest_released").paper
    chosen = [m for m in methods if records[m].paper == rest and records[m].weights != "uniform"]
    return [m for m in methods if m == experiment.settings.reference or m in chosen]


def of_experiment(experiment: Experiment) -> View:
    """The view that every import saves, under the experiment's name."""
    return _view(experiment, experiment.name, f"tags.{COMPARED} = '{experiment.name}'")


def of_runs(experiment: Experiment, methods: Sequence[str], run_ids: Sequence[str]) -> View:
    """A view of chosen methods, of which MLflow knows the runs by ``run_ids``."""
    named = ", ".join(f"'{run_id}'" for run_id in run_ids)
    return _view(experiment, "-".join([experiment.name, *methods]), f"attributes.run_id IN ({named})")


def path(experiment_id: str, view: View) -> str:
    """The part of the view's address after the server's."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={view.key}&compareRunsMode=CHART&{_KIND}"


def note(experiment: Experiment, experiment_id: str, view: View) -> str:
    """Description of the experiment in MLflow (Markdown)."""
    settings = experiment.settings
    link = f"[{', '.join(compared(experiment))} side by side]({path(experiment_id, view)})"
    return f"**{settings.title}**\n\n{settings.note}\n\n{link}"


def _view(experiment: Experiment, key: str, chosen: str) -> View:
    runs = experiment.rl_runs
    several = [tag for tag in ("model", "schedule") if len({getattr(run, tag) for run in runs}) > 1]
    group_by = (*several, "method")
    groups = dict.fromkeys(tuple(getattr(run, tag) for tag in group_by) for run in experiment.runs)
    return View(key, chosen, group_by, tuple(groups), tuple(_scores(runs)), tuple(_sections(runs)))


def _scores(runs: Sequence[Run]) -> list[str]:
    """The first aggregate of each benchmark, its headline."""
    found: dict[str, str] = {}
    for run in runs:
        for name in run.evaluations:
            aggregates = (run.summary(name) or {}).get("aggregates", {})
            headline = next((key for key, value in aggregates.items() if isinstance(value, int | float)), None)
            if headline is not None:
                found.setdefault(name, f"{name}/{headline}")
    return list(found.values())


def _sections(runs: Sequence[Run]) -> list[str]:
    """MLflow puts every further metric into a section named by what is before the last slash: folded, in our order."""
    names = dict.fromkeys(name for run in runs for row in run.metrics[:1] for name in row)
    return list(dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name))


def _section(uuid: str, name: str, *, is_open: bool) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": is_open,
        "isReordered": True,
        "deleted": False,
        "isGenerated": not is_open,
    }


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"restool-{metric}",
        "metricKey": metric,
        "displayName": metric,
        "metricSectionId": section,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str, section: str) -> dict[str, Any]:
    return _chart("LINE", metric, section) | {
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "displayPoints": False,
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _bar(metric: str, section: str) -> dict[str, Any]:
    return _chart("BAR", metric, section)
