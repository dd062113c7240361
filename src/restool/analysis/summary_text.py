"""A summary for a person at a terminal: every category with its interval, what went wrong, and what was seen before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Summary = dict[str, Any]

_FAULTS = {
    "parse_failures": "unreadable",
    "over_length": "too long",
    "force_quits": "force quits",
    "errors": "errors",
}


def print_summary(console: Console, summary: Summary) -> None:
    """The categories as a table, then the totals, one a line."""
    console.print(_table(summary))
    for name, value in summary["aggregates"].items():
        console.print(escape(_total(summary, name, value)))
    for line in (*contamination(summary), *_incomplete(summary)):
        console.print(escape(line))


def _table(summary: Summary) -> Table:
    seen = (summary.get("contamination") or {}).get("categories") or {}
    shown = any(category["contaminated"] for category in seen.values())
    faults = [key for key in _FAULTS if any(c.get(key) for c in summary["categories"].values())]
    table = Table(
        title=escape(summary["benchmark"]), box=box.SIMPLE, title_justify="left", title_style="bold", padding=(0, 1)
    )
    table.add_column("category", overflow="fold")
    for head in ("n", "correct", "accuracy [95 %]", *(_FAULTS[key] for key in faults)):
        table.add_column(head, justify="right", no_wrap=True)
    if shown:
        table.add_column("seen", justify="right")
        table.add_column("accuracy of the rest", justify="right")
    for name, c in summary["categories"].items():
        cells = [escape(name), str(c["n"]), str(c["correct"]), share(c), *(str(c[key]) for key in faults)]
        if shown:
            cells += [str(seen[name]["contaminated"]), f"{share(seen[name]['rest'])}, n {seen[name]['rest']['n']}"]
        table.add_row(*cells)
    return table


def share(counts: dict[str, Any]) -> str:
    """``0.412 [0.380, 0.446]``; empty without items."""
    if counts["accuracy"] is None:
        return ""
    low, high = counts["interval"]
    return f"{counts['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _total(summary: Summary, name: str, value: Any) -> str:
    if value is None:
        return f"{name}: not complete"
    interval = (summary.get("intervals") or {}).get(name)
    number = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{name}: {number}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def contamination(summary: Summary) -> Iterator[str]:
    """What is known of items that the model was trained on, one line (and one for duplicates)."""
    found = summary.get("contamination")
    if not found:
        return
    if not found["checked"]:
        yield f"contamination: not checked: {found['reason']}"
    elif not found["trained_on"]:
        yield "contamination: none, the model was trained on nothing here (its pretraining is not known)"
    else:
        told = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in found["kinds"].items())
        yield f"contaminated: {found['contaminated']} of {found['items']} items (shared with training: {told})"
    if found["duplicates"]:
        yield f"duplicates: {found['duplicates']} of {found['items']} items repeat an earlier one"


def _incomplete(summary: Summary) -> Iterator[str]:
    if summary.get("missing"):
        yield f"{summary['missing']} answers are missing and count as wrong"
    if not summary["complete"]:
        yield "not complete: not every item of the benchmark was scored"
