"""Sampled answers on a terminal: the text coloured by region, and below it its parts with their weights.

Answers are a model's words: control characters are shown as symbols, so that none can move the cursor or rename the
window.
"""

from __future__ import annotations

import unicodedata

from rich.console import Console
from rich.table import Table
from rich.text import Text

from restool.analysis.answers import UP, Comparison, Piece, WeighedAnswer, pieces

STYLES = {
    "format": "blue",
    "name": "magenta",
    "arguments": "green",
    "think": "yellow",
    "response": "cyan",
    "other": "white",
}
_MOST_ROWS = 40  # beyond it neighbouring tokens of one region share a row, with the range of their weights


def print_comparison(console: Console, comparison: Comparison) -> None:
    """All answers, then what both weightings do to each region."""
    first, second = (weighting.label for weighting in comparison.weightings)
    console.print(
        f"{visible(comparison.run)}, step {comparison.step} (reference step {comparison.reference_step:g}), "
        f"{len(comparison.answers)} of {comparison.of} written answers\nweights: {first} against {second}",
        markup=False,
    )
    if console.is_terminal:
        console.print(_legend())
    for answer in comparison.answers:
        console.rule(_title(answer), align="left", characters="─")
        console.print(_coloured(answer), soft_wrap=False)
        console.print(_parts(answer, (first, second), console.width))
    if comparison.answers:
        console.rule(characters="─")
        console.print(_spread(comparison))


def visible(text: str) -> str:
    """``text`` with every control, formatting and surrogate character but the newline as a symbol."""
    return "".join(map(_symbol, text))


def _symbol(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def _legend() -> Text:
    text = Text("regions: ")
    for region, style in STYLES.items():
        text.append(region, style=style)
        text.append("  ")
    return text.append("(first weighting: ").append("raised", "bold").append(", ").append("zero", "dim").append(")")


def _title(answer: WeighedAnswer) -> Text:
    return Text(
        f"answer {answer.number}  reward {answer.reward:.2f} = format {answer.format:.2f} + correctness "
        f"{answer.correctness:.2f}  advantage {answer.advantage:+.2f}"
    )


def _style(piece: Piece) -> str:
    low, high = piece.weights[0]
    return STYLES[piece.region] + (" dim" if high == 0 else " bold" if low > UP else "")


def _coloured(answer: WeighedAnswer) -> Text:
    """The whole answer as it was written."""
    text = Text()
    for piece in answer.pieces():
        text.append(visible(piece.text), style=_style(piece))
    return text


def _parts(answer: WeighedAnswer, labels: tuple[str, str], width: int) -> Table:
    """A row for every run of tokens with equal region and weights."""
    rows = answer.pieces()
    if len(rows) > _MOST_ROWS:
        rows = pieces(answer.text, answer.offsets, answer.regions, answer.weights, by_region=True)
    table = _table()
    table.add_column("tokens", justify="right")
    table.add_column("region")
    for label in labels:
        table.add_column(_short(label, 16), justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True)
    room = max(width - 30 - 2 * 16, 20)
    for row in rows:
        text = Text(_short(visible(row.text).replace("\n", "↵"), room), style=_style(row))
        table.add_row(str(row.tokens), Text(row.region, STYLES[row.region]), *map(_weight, row.weights), text)
    return table


def _table(title: str | None = None) -> Table:
    return Table(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="italic"
    )


def _weight(pair: tuple[float, float]) -> str:
    low, high = pair
    return f"{low:.3f}" if low == high else f"{low:.2f} to {high:.2f}"


def _short(text: str, room: int) -> str:
    """At most ``room`` characters; the middle is left out."""
    if len(text) <= room:
        return text
    head = (room - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def _spread(comparison: Comparison) -> Table:
    """By region: share of tokens at zero and raised, and the mean weight, under both weightings."""
    table = _table("by region, over these answers")
    table.add_column("region")
    table.add_column("tokens", justify="right")
    for weighting in comparison.weightings:
        label = _short(weighting.label, 16)
        for name in ("mean", "zero", "raised"):
            table.add_column(f"{label}\n{name}" if name == "mean" else f"\n{name}", justify="right")
    spreads = comparison.spread()
    for region in (*STYLES, "all"):
        if region in spreads[0]:
            first = spreads[0][region]
            cells = [f"{s[region]['mean']:.3f}" for s in spreads]
            shares = [(f"{s[region]['zero']:.0%}", f"{s[region]['raised']:.0%}") for s in spreads]
            columns = [cell for mean, pair in zip(cells, shares, strict=True) for cell in (mean, *pair)]
            table.add_row(Text(region, STYLES.get(region, "")), str(first["tokens"]), *columns)
    return table
