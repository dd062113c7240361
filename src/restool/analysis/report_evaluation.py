"""The report's section on evaluation: what goes wrong where, wrong answers to read, and items seen in training.

Prompts and answers are what models and data sets wrote: hostile until the template has escaped them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from restool import files
from restool.analysis import evaluated, summary_text
from restool.analysis.answers_text import visible
from restool.analysis.experiment import Experiment, Run

Table = dict[str, Any]

KINDS_SHOWN = 7
FOLDED_ROWS = 24
"""Tables with more rows than this are folded."""
EXAMPLES_SHOWN = 8
OTHER = "other"


def context(experiment: Experiment) -> dict[str, Any]:
    """``failures``: tables by benchmark; ``examples``: wrong answers by benchmark and method; ``seen``: a table;
    ``contaminated``: one sentence a benchmark that has such items, for the head of the page."""
    found = _evaluations(experiment)
    return {
        "failures": [table for name, runs in found.items() if (table := failures(name, runs))],
        "examples": [group for name, runs in found.items() for group in examples(name, runs)],
        "seen": seen(found),
        "contaminated": [text for name, runs in found.items() if (text := flag(name, [one for _, one in runs]))],
    }


def _evaluations(experiment: Experiment) -> dict[str, list[tuple[Run, dict[str, Any]]]]:
    """Benchmark -> the runs that have a result of it, with its summary."""
    found: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in experiment.runs:
        for benchmark in run.evaluations:
            summary = run.summary(benchmark)
            if summary is not None and not summary.get("not_run"):
                found.setdefault(benchmark, []).append((run, summary))
    return found


# ---------------------------------------------------------------------------------------------------- failures


def failures(benchmark: str, runs: Sequence[tuple[Run, dict[str, Any]]]) -> Table | None:
    """Methods and categories down, kinds of failure across, in percent of the items; seeds are pooled."""
    cells: dict[tuple[str, str], Counter[str]] = {}
    labels = _labels(runs)
    for run, _ in runs:
        for item in run.items(benchmark):
            cells.setdefault((labels[run.id], evaluated.part(item)), Counter())[_kind(item)] += 1
    totals = sum(cells.values(), Counter())
    del totals[RIGHT]
    if not totals:
        return None
    shown = [kind for kind, _ in totals.most_common(KINDS_SHOWN)]
    more = [OTHER] if len(totals) > len(shown) else []
    rows = [_failure_row(method, category, counts, shown, bool(more)) for (method, category), counts in cells.items()]
    return {
        "title": benchmark,
        "head": ["method", "category", "answers", "right", *shown, *more],
        "rows": rows,
        "caption": "Percent of the answers, seeds of a method pooled; the first fault of an answer counts. "
        + ("Right: by the released rules. " if benchmark == "api-bank" else ""),
        "csv": None,
        "folded": len(rows) > FOLDED_ROWS,
    }


RIGHT = ""


def _kind(item: dict[str, Any]) -> str:
    """The kind of failure of an item, `RIGHT` for none."""
    known = item.get("failure_kind") if "failure_kind" in item else None if item.get("correct", True) else "wrong"
    return RIGHT if known is None else str(known)


def _failure_row(method: str, category: str, counts: Counter[str], shown: list[str], more: bool) -> list[Any]:
    n = sum(counts.values())
    rest = n - counts[RIGHT] - sum(counts[kind] for kind in shown)
    values = [*(counts[kind] for kind in shown), *([rest] if more else [])]
    return [method, category, str(n), f"{100 * counts[RIGHT] / n:.1f}", *(_heat(value, n) for value in values)]


def _heat(count: int, n: int) -> Any:
    """A share in percent, on a ground that is the darker the larger it is."""
    if not count:
        return ""
    share = count / n
    return Markup('<span class="heat" style="--share:{:.2f}">{:.1f}</span>').format(share, 100 * share)


def _labels(runs: Sequence[tuple[Run, dict[str, Any]]]) -> dict[str, str]:
    """Run id -> its method, and its model where there are several."""
    several = len({run.model for run, _ in runs}) > 1
    return {run.id: f"{run.method} ({run.model})" if several else run.method for run, _ in runs}


# ---------------------------------------------------------------------------------------------------- examples


def examples(benchmark: str, runs: Sequence[tuple[Run, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Wrong answers of the first run of every method, with the end of the prompt and what was expected."""
    groups = []
    labels = _labels(runs)
    first = {labels[run.id]: run for run, _ in reversed(runs)}
    for label in dict.fromkeys(labels.values()):
        run = first[label]
        rows = files.read_json_lines(run.directory.evaluation(benchmark) / "examples.jsonl")
        if rows:
            chosen = _one_of_each_first(rows)[:EXAMPLES_SHOWN]
            groups.append({"title": f"{benchmark}: {run.id}", "examples": [_example(row) for row in chosen]})
    return groups


def _one_of_each_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    ranked = []
    for row in rows:
        ranked.append((seen[row["kind"]], len(ranked), row))
        seen[row["kind"]] += 1
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])]


def _example(row: dict[str, Any]) -> dict[str, Any]:
    expected = row["expected"]
    cut = row["answer_characters"] - len(row["answer"])
    return {
        "id": row["id"],
        "category": row["category"],
        "kind": f"{row['kind']} ({row['of']} of them)",
        "why": visible(str(row["why"] or "")).replace(" {'Model Result Index", "\n{'Model Result Index"),
        "prompt": "..." + visible(row["prompt_tail"]),
        "answer": visible(row["answer"]) + (f"\n... and {cut:,} characters more" if cut else ""),
        "expected": None
        if expected is None
        else visible(expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)),
    }


# -------------------------------------------------------------------------------------------------------- seen


def flag(benchmark: str, summaries: Sequence[dict[str, Any]]) -> str | None:
    """``held-out: contaminated: 3 of 400 items (question and tools 3, question 0)``, of the run that has most."""
    records = [one["contamination"] for one in summaries if (one.get("contamination") or {}).get("contaminated")]
    if not records:
        return None
    worst = max(records, key=lambda record: record["contaminated"])
    kinds = ", ".join(f"{kind.replace('_', ' ')} {worst['kinds'][kind]}" for kind in ("question_and_tools", "question"))
    return f"{benchmark}: contaminated: {worst['contaminated']} of {worst['items']} items ({kinds})"


def seen(found: dict[str, list[tuple[Run, dict[str, Any]]]]) -> Table | None:
    """Items that the evaluated model was trained on, by benchmark and run, and the score of the rest."""
    rows = []
    for benchmark, runs in found.items():
        for run, summary in runs:
            rows += _seen_rows(benchmark, run, summary)
    if not rows:
        return None
    return {
        "title": "Items seen in training",
        "head": ["benchmark", "run", "category", "contaminated", "question and tools", "question", "tools only",
                 "score of all", "score of the rest"],
        "rows": rows,
        "caption": "An item is contaminated if its question (normalised) is among the rows that the run, or the run it "
        "started from, was trained on. The same set of tools under another question is counted, but contaminates "
        "nothing. Brackets: Wilson's 95 % interval over items.",
        "csv": None,
        "folded": len(rows) > FOLDED_ROWS,
    }  # fmt: skip


def _seen_rows(benchmark: str, run: Run, summary: dict[str, Any]) -> list[list[Any]]:
    """One row a category that has contaminated items, else one for the benchmark."""
    record = summary.get("contamination")
    if record is None:
        return []
    if not record["checked"]:
        return [[benchmark, run.id, "", f"not checked: {record['reason']}", "", "", "", "", ""]]
    hit = {name: one for name, one in record["categories"].items() if one["contaminated"]}
    if not hit:
        kinds = record["kinds"]
        return [[benchmark, run.id, "all", f"0 of {record['items']}", "0", "0", str(kinds["tools"]), "", ""]]
    return [
        [
            benchmark,
            run.id,
            name,
            Markup('<strong class="seen">contaminated: {} of {} items</strong>').format(
                one["contaminated"], summary["categories"][name]["n"]
            ),
            *(str(one["kinds"][kind]) for kind in ("question_and_tools", "question", "tools")),
            summary_text.share(summary["categories"][name]),
            summary_text.share(one["rest"]),
        ]
        for name, one in hit.items()
    ]
