"""A comparison for a person at a terminal of 100 columns: one table a benchmark and metric, and what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = dict[str, Any]

_SHOWN_PATHS = 4


def print_comparison(console: Console, result: Row) -> None:
    """``result``: of `contrasts.compare` or `contrasts.compare_groups`."""
    for name in ("a", "b"):
        console.print(f"[bold]{name.upper()}[/]  {escape(_places(result[name]))}")
    for text in result["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(text)}")
    for benchmark, why in result["refused"].items():
        console.print(f"[red]not compared:[/] {escape(benchmark)}: {escape(why)}")
    for (benchmark, metric), rows in _groups(result["rows"]):
        console.print()
        console.print(_table(f"{benchmark}: {metric}", rows))
        for text in (*_findings(rows), *_contamination(rows)):
            console.print(f"  {escape(text)}")
    console.print()
    for text in result["method"]:
        console.print(f"[dim]{escape(text)}[/]")


def plain(value: Any) -> Any:
    """``value`` with null for what is no number, as JSON demands."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _places(paths: list[str]) -> str:
    shown = ", ".join(paths[:_SHOWN_PATHS]) + (f" and {len(paths) - _SHOWN_PATHS} more" if paths[_SHOWN_PATHS:] else "")
    return f"{shown}  ({len(paths)} runs)" if len(paths) > 1 else shown


def _groups(rows: list[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    for key in dict.fromkeys((row["benchmark"], row["metric"]) for row in rows):
        yield key, [row for row in rows if (row["benchmark"], row["metric"]) == key]


def _table(title: str, rows: list[Row]) -> Table:
    binary, seeds = rows[0]["binary"], "n_seeds" in rows[0]
    unit = ", in %" if binary else ""
    table = Table(
        title=escape(title) + unit, box=box.SIMPLE, title_justify="left", title_style="bold", padding=(0, 1, 0, 0)
    )
    table.add_column("category", overflow="fold", vertical="bottom")
    heads = ["n", "A", "B", "B - A [95 %]", "seeds" if seeds else "only\nA/B" if binary else "", "p", "Holm"]
    for head in (*heads, "could\nshow"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row["is_total"]):
        table.add_row(*_cells(row, binary), style="bold" if row["is_total"] else None)
    return table


def _cells(row: Row, binary: bool) -> list[str]:
    beside = str(row["n_seeds"]) if "n_seeds" in row else f"{row['only_a']}/{row['only_b']}" if binary else ""
    return [
        ("= " if row["is_total"] else "") + escape(row["category"]),
        str(row["n"]),
        number(row["a"], binary),
        number(row["b"], binary),
        f"{number(row['difference'], binary, '+')} {_interval(row, binary)}".rstrip(),
        beside,
        probability(row["p"]),
        probability(row["p_holm"]),
        number(row["detectable"], binary),
    ]


def number(value: float, binary: bool, sign: str = "") -> str:
    """Shares in percent with one digit; other means with three."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:{sign}.1f}" if binary else f"{value:{sign}.3f}"


def probability(value: float) -> str:
    return "" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"


def _interval(row: Row, binary: bool) -> str:
    if math.isnan(row["low"]):
        return ""
    return f"[{number(row['low'], binary, '+')}, {number(row['high'], binary, '+')}]"


def _findings(rows: list[Row]) -> Iterator[str]:
    """One line: where B is higher, where lower, and how many rows show nothing."""
    told = []
    for verdict in ("B is higher", "B is lower"):
        names = [row["category"] for row in rows if row["verdict"] == verdict]
        told += [f"{verdict} in {', '.join(names)}"] if names else []
    silent = sum(row["verdict"].startswith("not distinguishable") for row in rows)
    if silent:
        told.append(f"not distinguishable in {silent} of {len(rows)}" if told else "not distinguishable")
    if not told:
        told.append("no test possible")
    yield "; ".join(told) + "."


def _contamination(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row["contaminated"]:
            text = f"contaminated: {row['contaminated']} of {row['n']} items of {row['category']}"
            rest = row["rest"]
            if rest:
                values = (number(rest[key], row["binary"], "+" if key == "difference" else "")
                          for key in ("a", "b", "difference"))  # fmt: skip
                text += "; on the other {}: A {}, B {}, B - A {}".format(rest["n"], *values)
            yield text + "."
