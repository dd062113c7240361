"""The tables of the report: numbers of `tables` laid out for reading, as plain dicts for the template."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from restool.analysis import findings, tables
from restool.analysis.claims import NOT_RUN, UNKNOWN
from restool.analysis.experiment import Experiment

Table = dict[str, Any]
"""title, head (list of str), rows (lists of cells), caption, csv (name of the table with the data, or None), folded"""

Columns = tuple[tuple[str, str], ...]  # (mode, metric)

_EXACT: Columns = (("greedy", "tool_exact"), ("sampled", "tool_exact"), ("sampled", "reward"))
_HEADLINE: Columns = (*_EXACT, ("greedy", "format"), ("sampled", "tokens"))
_TRAINING: Columns = tuple(("sampled", metric) for metric in tables.TRAINING)
_FLAWLESS: Columns = (("greedy", "flawless_tool_exact"), ("sampled", "flawless_tool_exact"))
_PARTS: Columns = tuple(
    (mode, f"right_{part}") for mode in ("greedy", "sampled") for part in ("name", "think", "arguments")
)


def results(experiment: Experiment, frames: dict[str, pd.DataFrame]) -> list[Table]:
    """Everything about held-out items: methods, gains, differences, regression check, parts, kinds, transfer."""
    split = tables.main_split(experiment)
    method, gain, difference = frames["methods"], frames["gains"], frames["differences"]
    by_part = difference["metric"].str.startswith("right_").astype(bool)
    over_seeds = "Mean over seeds [95 % t-interval over seeds]; the same items for every run."
    made = [
        _wide(experiment, method, split, _HEADLINE, "Methods", over_seeds),
        _wide(experiment, method, "train", _TRAINING, "During training", _OVER_STEPS),
        _wide(experiment, gain, split, _EXACT, "After training minus before", "Before is what training started from."),
        _differences(difference[~by_part], "Paired differences", folded=False),
        _differences(difference[by_part], "Paired differences by part of the answer", folded=True),
        _wide(experiment, gain, split, _FLAWLESS, "Regression check: prompts without a flaw", _REGRESSION),
        _wide(experiment, method, split, _PARTS, "Which part is right", _RIGHT),
        _wide(experiment, method, split, _kinds(method, split), "By kind of prompt", _KINDS),
        _wide(experiment, method, "transfer", _EXACT, "Transfer: tools that RL never saw", over_seeds),
    ]
    return [table for table in made if table is not None]


_OVER_STEPS = (
    "Means over the steps of a run, then over seeds [95 % t-interval over seeds]. Rewards compare between methods of "
    "one reward only; gradient norms depend on a method's normaliser. Explained variance is of the returns, by the "
    "critic's values before each step's updates; 0 is a critic that knows nothing."
)
_REGRESSION = "After minus before, on prompts where no demonstration could be flawed: they must not get worse."
_RIGHT = "Share right, on prompts where a demonstration could have been wrong in that part."
_KINDS = "Share exact, greedy. No-tool prompts count as exact when the format is right."


def _kinds(frame: pd.DataFrame, split: str | None) -> Columns:
    here = frame[frame["split"] == split]["metric"]
    return tuple(("greedy", metric) for metric in dict.fromkeys(here) if metric.startswith("exact_"))


def _wide(
    experiment: Experiment, frame: pd.DataFrame, split: str | None, columns: Columns, title: str, caption: str
) -> Table | None:
    """Methods down, metrics across; None if there is nothing to show."""
    chosen = frame[frame["split"] == split]
    here = set(zip(chosen["mode"], chosen["metric"], strict=True))
    columns = tuple(column for column in columns if column in here)
    if not columns:
        return None
    is_change = "before" in frame
    groups = sorted(chosen.groupby(tables.GROUP, sort=False), key=lambda item: _place(experiment, item[0]))
    several = len({key[:2] for key, _ in groups if key[1] != "none"}) > 1
    rows, items = [], set()
    for (model, schedule, method), group in groups:
        cells = group.set_index(["mode", "metric"])
        items |= {int(cells.loc[column, "n_items"]) for column in columns if column in cells.index}
        label = f"{method} ({model}, {schedule})" if several else method
        rows.append([label, *(_cell(cells, column, is_change) for column in columns), str(group["n_seeds"].max())])
    count = f"{min(items)} to {max(items)}" if len(items) > 1 else str(*items)
    return {
        "title": title,
        "head": ["method", *(findings.name(metric, mode) for mode, metric in columns), "seeds"],
        "rows": rows,
        "caption": f"{caption} {'Steps' if split == 'train' else 'Items'}: {count}.",
        "csv": "gains" if is_change else "methods",
        "folded": False,
    }


def _place(experiment: Experiment, key: tuple[str, str, str]) -> tuple[int, int, str]:
    models = list(dict.fromkeys(run.model for run in experiment.runs))
    return models.index(key[0]), experiment.methods.index(key[2]), key[1]


def _cell(cells: pd.DataFrame, column: tuple[str, str], is_change: bool) -> Any:
    if column not in cells.index:
        return ""
    row = cells.loc[column]
    digits = 1 if column[1] == "tokens" else 3
    sign = "+" if is_change else ""
    return _value(row["mean"], row["low"], row["high"], digits, sign)


def _value(mean: Any, low: Any, high: Any, digits: int = 3, sign: str = "") -> Any:
    if pd.isna(mean):
        return ""
    number = f"{mean:{sign}.{digits}f}"
    if pd.isna(low):
        return number
    return Markup(f'{number} <span class="interval">[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]</span>')


def _differences(frame: pd.DataFrame, title: str, *, folded: bool) -> Table | None:
    if frame.empty:
        return None
    several = len(frame[["model", "schedule"]].drop_duplicates()) > 1
    rows = []
    for row in frame.itertuples():
        where = f" ({row.model}, {row.schedule})" if several else ""
        detectable = "" if pd.isna(row.detectable) else f"{row.detectable:.3f}"
        difference = _value(row.mean, row.low, row.high, 3, "+")
        label, metric = f"{row.a} - {row.b}{where}", findings.name(row.metric, row.mode)
        tests = [_p(row.p), _p(row.p_holm), detectable, str(row.n_seeds)]
        rows.append([label, metric, difference, *tests, findings.verdict(row)])
    head = ["difference", "metric", "mean [95 % t-interval]", "p", "Holm's p", "could have shown", "seeds", "verdict"]
    return {"title": title, "head": head, "rows": rows, "caption": _PAIRED, "csv": "differences", "folded": folded}


_PAIRED = (
    "Same seed against same seed: same prompts, common random numbers. Holm's correction is over the comparisons of "
    "one metric. 'Could have shown': the true difference that a paired t-test with this many seeds and this spread "
    "finds four times in five. Intervals cover RL seeds; all runs share one starting checkpoint and one set of items."
)


def _p(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def claims(frame: pd.DataFrame) -> Table:
    """The paper's claims beside ours."""
    rows = []
    for row in frame.itertuples():
        unknown = "unknown" if row.status == UNKNOWN else ""
        paper = unknown if pd.isna(row.paper) else f"{row.paper:.2f}"
        ours = "" if row.status == NOT_RUN else _value(row.ours, row.low, row.high, 2)
        counts = f"{row.n_seeds} / {row.n_items}" if row.n_seeds else ""
        gap = "" if pd.isna(row.gap) else f"{row.gap:+.2f}"
        status = Markup('<span class="status {}">{}</span>').format(row.status.replace(" ", "-"), row.status)
        rows.append([row.claim, paper, ours, gap, counts, status, row.why, row.source])
    head = ["claim", "paper", "ours", "gap", "seeds / items", "status", "why", "source of the paper's value"]
    caption = (
        "Percent, or percentage points for differences. A value is reproduced if it lies in our 95 % interval over "
        "seeds; a difference if our interval lies wholly on the paper's side of zero. Only the model that a claim "
        "names counts."
    )
    title = "The paper's claims"
    return {"title": title, "head": head, "rows": rows, "caption": caption, "csv": "claims", "folded": False}


def benchmarks(frame: pd.DataFrame) -> list[Table]:
    """Two tables a benchmark: the totals (and what was not run, and why), then every category, folded."""
    head = ["run", "category", "right", "accuracy [Wilson 95 %]", "unparsable / too long", "seen in training"]
    made = []
    for benchmark, group in frame.groupby("benchmark", sort=False):
        is_total = group["category"].map(lambda name: pd.isna(name) or name.startswith("="))
        for part, title, folded in (
            (group[is_total], benchmark, False),
            (group[~is_total], f"{benchmark}: all categories", True),
        ):
            rows = [_benchmark_row(row) for row in part.itertuples()]
            caption = "Intervals over items. Totals (=) follow the formula in the run's summary.json."
            if rows:
                table = {"title": title, "head": head, "rows": rows, "caption": caption}
                made.append(table | {"csv": "benchmarks", "folded": folded})
    return made


def _benchmark_row(row: Any) -> list[Any]:
    category = "" if pd.isna(row.category) else row.category
    reason = "" if pd.isna(row.not_run) or not row.not_run else f"not run: {row.not_run}"
    right = "" if pd.isna(row.correct) else f"{int(row.correct)} "
    count = "" if pd.isna(row.n) else f"{right}/ {int(row.n)}"  # a total weighs its items: no count of right ones
    failures = "" if pd.isna(row.parse_failures) else f"{int(row.parse_failures)} / {int(row.over_length or 0)}"
    return [row.run, category, count, reason or _value(row.accuracy, row.low, row.high), failures, _seen(row)]


def _seen(row: Any) -> str:
    """``contaminated: 3 of 400 items (0.412 without)``; "" where nothing was checked."""
    if pd.isna(row.contaminated):
        return ""
    if not row.contaminated:
        return "0"
    rest = "" if pd.isna(row.accuracy_of_rest) else f" ({row.accuracy_of_rest:.3f} without)"
    return f"contaminated: {int(row.contaminated)} of {int(row.n)} items{rest}"


def lemma2(experiment: Experiment) -> Table | None:
    """Score norm against entropy, by region; None if the variance was not measured."""
    record = experiment.variance
    if record is None:
        return None
    rows = [
        [name, str(row["tokens"]), f"{row['expected']:.4f}", f"{row['bound']:.4f}", str(row["violations"]),
         f"{row['sampled']:.4f} ± {row['standard_error']:.4f}" if "sampled" in row else ""]
        for name, row in record["lemma2"].items()
    ]  # fmt: skip
    head = [
        "region",
        "tokens",
        "mean 1 - sum p²",
        "mean bound 1 - e^-H",
        "tokens above the bound",
        "mean |score|² drawn",
    ]
    caption = (
        "Lemma 2 at the checkpoint that RL starts from. The drawn mean (± standard error) estimates the expectation "
        "over all tokens only: which region a token lies in depends on the draw."
    )
    return {"title": "Score norm and entropy (Lemma 2)", "head": head, "rows": rows, "caption": caption, "csv": None}
