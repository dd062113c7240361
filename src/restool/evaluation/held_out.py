"""Held-out tasks of the training data: one greedy and one sampled answer to every prompt.

Calls are judged apart from format: ``tool_exact`` asks only whether the calls equal the label's, whatever is
around them. Prompts whose demonstrations could not be flawed are also counted separately (``flawless``): there
training has nothing to correct and must not break anything.

Sampled answers use common random numbers: the same for every model that shares the tokenizer, so that paired
differences are free of sampling noise where the models agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from restool import files
from restool.core import rewards
from restool.data.rows import Row, read_rows
from restool.evaluation import answering, items
from restool.settings import RunSettings

BENCHMARK = "held-out"
MODES = ("greedy", "sampled")
CORRECT = 3.0
"""Correctness of equal calls under the unscheduled reward."""
FORMULA = (
    "category accuracy = exact: format right and calls equal to the label's (none, where it calls none); "
    "tool_exact: calls equal to the label's, over rows whose label calls tools; "
    "reward: mean of the unscheduled reward (format 0 to 1, correctness -3 to 3; no tools: format only); "
    "flawless_*: rows in which no demonstration flaw was possible"
)


def evaluate(
    model: answering.Answerer, prepared: Path, out: Path, settings: RunSettings, *, report: Callable[[str], None]
) -> dict[str, Any]:
    """Answer and score every held-out split of ``prepared`` with ``model``; write the three files below ``out``."""
    manifest = files.read_json(prepared / "manifest.json")
    rows: list[dict[str, Any]] = []
    for split in manifest["held_out_splits"]:
        prompts = read_rows(prepared, split)
        if not prompts:
            continue
        for mode in MODES:
            report(f"{BENCHMARK}: {split}, {mode}, {len(prompts)} prompts")
            questions = [answering.Question.of(f"{mode}/{row.id}", row.system, row.user) for row in prompts]
            found = answering.collect(
                model, questions, decoding(settings, mode), settings.eval.seed, out / "answers.jsonl", report=report
            )
            rows += [item(row, split, mode, found[f"{mode}/{row.id}"]) for row in prompts]
    summary = summarize(rows) | {
        "data_sha256": {split: manifest["files"][split]["sha256"] for split in manifest["held_out_splits"]},
        "decoding": {mode: decoding(settings, mode).model_dump() for mode in MODES},
        "seed": settings.eval.seed,
        "model": model.fingerprint,
        "source": model.description,
        "complete": True,
    }
    return items.write(out, rows, summary)


def decoding(settings: RunSettings, mode: str) -> Any:
    """Settings of ``mode``: those of held-out decoding, with temperature 0 for ``greedy``."""
    chosen = settings.eval.held_out
    return chosen.model_copy(update={"temperature": 0.0}) if mode == "greedy" else chosen


def item(row: Row, split: str, mode: str, answer: answering.GeneratedAnswer) -> dict[str, Any]:
    """One scored answer. ``right`` says which parts are right where a demonstration could have been flawed."""
    reward = rewards.score(answer.text, row.ground_truth, preset="rest_unscheduled")
    tool = "<tool_call>" in row.ground_truth
    tool_exact = tool and reward.correctness == CORRECT
    return {
        "id": row.id,
        "split": split,
        "mode": mode,
        "kind": row.kind,
        "opportunities": list(row.opportunities),
        "format": reward.format,
        "correctness": reward.correctness,
        "total": reward.total,
        # The format check lets a call pass beside the response that the label asks for; that is not exact.
        "exact": reward.format == 1.0 and (tool_exact if tool else "<tool_call>" not in answer.text),
        "tool": tool,
        "tool_exact": tool_exact,
        "right": _rightness(row, answer.text),
        "parse_failure": _unreadable(answer.text),
        "over_length": answer.over_length,
        "tokens": answer.tokens,
        "finished": answer.finished,
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Categories ``<split>/<mode>`` and, below that, the metrics named in `FORMULA`."""
    categories, aggregates, intervals = {}, {}, {}
    for name, group in _groups(rows):
        categories[name] = items.category(group, "exact")
        for metric, value in _metrics(group).items():
            aggregates[f"{name}/{metric}"] = value
        tools = [row for row in group if row["tool"]]
        intervals[f"{name}/tool_exact"] = items.wilson(sum(row["tool_exact"] for row in tools), len(tools))
    return {
        "benchmark": BENCHMARK,
        "version": "1",
        "formula": FORMULA,
        "categories": categories,
        "aggregates": aggregates,
        "intervals": intervals,
    }


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
