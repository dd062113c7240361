"""Held-out tasks of the training data: one greedy and one sampled answer to every prompt.

Calls are judged apart from format: ``tool_exact`` asks only whether the calls equal the label's, whatever is
around them. Prompts whose demonstrations could not be flawed are also counted separately (``flawless``): there
training has nothing to correct and must not break anything.

Sampled answers use common random numbers: the same for every model that shares the tokenizer, so that paired
differences are free of sampling noise where the models agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from restool import files
from restool.core import rewards
from restool.data.rows import Row, read_rows
from restool.evaluation import failures, items
from restool.evaluation.tasks import Source, Task
from restool.settings import DecodingSettings

MODES = ("greedy", "sampled")
CORRECT = "exact"
METRICS = {
    "tool_exact": {"field": "tool_exact", "where": {"tool": True}},
    "flawless_tool_exact": {"field": "tool_exact", "where": {"tool": True, "opportunities": []}},
    "reward": {"field": "total", "kind": "number"},
    "format": {"field": "format", "kind": "number"},
}
FORMULA = (
    "category accuracy = exact: format right and calls equal to the label's (none, where it calls none); "
    "tool_exact: calls equal to the label's, over rows whose label calls tools; "
    "reward: mean of the unscheduled reward (format 0 to 1, correctness -3 to 3; no tools: format only); "
    "flawless_*: rows in which no demonstration flaw was possible"
)
EQUAL_CALLS = 3.0
"""Correctness of equal calls under the unscheduled reward."""


def tasks(source: Source) -> list[Task]:
    """Every prompt of every held-out split, once a mode."""
    found = []
    for split in files.read_json(source.prepared / "manifest.json")["held_out_splits"]:
        rows = read_rows(source.prepared, split)
        found += [task(row, split, mode) for mode in MODES for row in rows]
    return found


def task(row: Row, split: str, mode: str) -> Task:
    where = f"{split}/{mode}"
    return Task(
        f"{mode}/{row.id}", row.system, row.user, row.ground_truth, category=where, round=where, item=row.id, given=row
    )


def decoding(source: Source, name: str) -> DecodingSettings:
    """Settings of a round ``split/mode``: those of held-out decoding, with temperature 0 for ``greedy``."""
    chosen = source.settings.eval.held_out
    return chosen.model_copy(update={"temperature": 0.0}) if name.endswith("/greedy") else chosen


def judge(task: Task, text: str) -> dict[str, Any]:
    """One scored answer. ``right`` says which parts are right where a demonstration could have been flawed."""
    row: Row = task.given
    split, _, mode = task.category.rpartition("/")
    reward = rewards.score(text, row.ground_truth, preset="rest_unscheduled")
    tool = "<tool_call>" in row.ground_truth
    tool_exact = tool and reward.correctness == EQUAL_CALLS
    # The format check lets a call pass beside the response that the label asks for; that is not exact.
    exact = reward.format == 1.0 and (tool_exact if tool else "<tool_call>" not in text)
    calls = failures.calls_of(text)
    kind, why = (None, None) if exact else _reason(row, text, calls, reward.format)
    return {
        "split": split,
        "mode": mode,
        "kind": row.kind,
        "opportunities": list(row.opportunities),
        "format": reward.format,
        "correctness": reward.correctness,
        "total": reward.total,
        "exact": exact,
        "tool": tool,
        "tool_exact": tool_exact,
        "right": _rightness(row, text),
        "parse_failure": _unreadable(text),
        "parsed": calls,
        "failure_kind": kind,
        "why": why,
    }


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By ``<split>/<mode>``, the metrics named in `FORMULA`; intervals of what is a share of right answers."""
    aggregates, intervals = {}, {}
    for name, group in _groups(rows):
        for metric, value in _metrics(group).items():
            aggregates[f"{name}/{metric}"] = value
        tools = [row for row in group if row["tool"]]
        flawless = [row for row in tools if not row["opportunities"]]
        intervals[f"{name}/exact"] = items.wilson(sum(row["exact"] for row in group), len(group))
        intervals[f"{name}/tool_exact"] = items.wilson(sum(row["tool_exact"] for row in tools), len(tools))
        right = sum(row["tool_exact"] for row in flawless)
        intervals[f"{name}/flawless_tool_exact"] = items.wilson(right, len(flawless))
    return {"aggregates": aggregates, "intervals": intervals}


def _reason(row: Row, text: str, calls: list[failures.Call], form: float) -> failures.Reason:
    """Why an answer is not exact: its calls, else its form."""
    if _unreadable(text):
        return failures.UNREADABLE, "neither a tool call nor a response"
    found = failures.difference(calls, failures.calls_of(row.ground_truth))
    if found is None or found[0] == failures.WRONG:
        told = "the calls are right" if form < 1.0 else "the calls are right, but not as the reward reads them"
        return failures.FORMAT, f"{told}, the form is not what was asked for"
    return found


def _groups(rows: list[dict[str, Any]]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    names = dict.fromkeys((row["split"], row["mode"]) for row in rows)
    for split, mode in names:
        yield f"{split}/{mode}", [row for row in rows if (row["split"], row["mode"]) == (split, mode)]


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    tools = [row for row in rows if row["tool"]]
    flawless = [row for row in rows if not row["opportunities"]]
    result = {
        "tool_exact": _mean(tools, "tool_exact"),
        "exact": _mean(rows, "exact"),
        "format": _mean(rows, "format"),
        "reward": _mean(rows, "total"),
        "correctness": _mean(tools, "correctness"),
        "flawless_tool_exact": _mean([row for row in flawless if row["tool"]], "tool_exact"),
        "flawless_exact": _mean(flawless, "exact"),
        "finished": _mean(rows, "finished"),
        "tokens": _mean(rows, "tokens"),
    }
    for part in ("name", "think", "arguments"):
        known = [float(row["right"][part]) for row in rows if part in row["right"]]
        if known:
            result[f"right_{part}"] = fmean(known)
    for kind in sorted({row["kind"] for row in rows}):
        result[f"exact_{kind}"] = _mean([row for row in rows if row["kind"] == kind], "exact")
    return result


def _mean(rows: list[dict[str, Any]], field: str) -> float | None:
    return fmean(float(row[field]) for row in rows) if rows else None


def _rightness(row: Row, text: str) -> dict[str, bool]:
    if not row.opportunities:
        return {}
    from restool.data.synthetic import rightness

    return rightness(row.meta, text)


def _unreadable(text: str) -> bool:
    return "<tool_call>" not in text and "<response>" not in text
