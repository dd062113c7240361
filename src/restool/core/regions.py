"""Which part of an answer every sampled token belongs to.

A token may straddle a border (`"get` holds a quote and the beginning of a name). It belongs to the most specific
region that any of its characters lies in: NAME before ARGUMENTS before FORMAT before THINK before RESPONSE before
OTHER. So the token that begins a name, which decides it, is never counted as the glue before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from restool.core import spans
from restool.core.parsing import Answer, Span, parse


class Region(IntEnum):
    """Parts of an answer; the values are stored in ``region_BT``."""

    OTHER = 0  # JSON glue, newlines, stop tokens, text outside every block
    FORMAT = 1  # the six tags
    NAME = 2  # the value of a tool's name, without quotes
    ARGUMENTS = 3  # the arguments object with its braces
    THINK = 4  # content of a think block
    RESPONSE = 5  # content of a response block


# From the least specific up: later ones overwrite earlier ones.
_PRECEDENCE = (Region.RESPONSE, Region.THINK, Region.FORMAT, Region.ARGUMENTS, Region.NAME)


def region_spans(answer: Answer) -> list[tuple[Region, Span]]:
    """The character spans of an answer's regions, OTHER excepted."""
    found = [(Region.FORMAT, tag) for tag in answer.tags]
    for block in answer.blocks:
        if block.kind != "tool_call":
            found.append((Region.THINK if block.kind == "think" else Region.RESPONSE, block.content))
    for call in answer.calls:
        if call.name:
            found.append((Region.NAME, call.name))
        if call.arguments:
            found.append((Region.ARGUMENTS, call.arguments))
    return found


def region_ids(text: str, offsets: Tensor | Sequence[Sequence[int]]) -> list[Region]:
    """The region of every token of one text.

    ``offsets``: (t, 2) start and end character of every token. Raises DataError if they do not fit the text.
    """
    offsets_t2 = torch.as_tensor(offsets, dtype=torch.long).reshape(-1, 2)
    ids = region_ids_batch([text], [offsets_t2], len(offsets_t2))
    return [Region(value) for value in ids[0].tolist()]


def region_ids_batch(texts: Sequence[str], offsets: Sequence[Tensor], width: int) -> Tensor:
    """(B, width) int8 of `Region` values, OTHER in the padding; one offset tensor (t, 2) per text.

    Tokens beyond ``width`` are dropped. Raises DataError if offsets do not fit their text.
    """
    line = spans.lay_out(texts, offsets)
    placed: dict[Region, tuple[list[int], list[int], list[int]]] = {r: ([], [], []) for r in _PRECEDENCE}
    for row, text in enumerate(texts):
        for region, (start, end) in region_spans(parse(text)):
            if end > start:
                rows, starts, ends = placed[region]
                rows.append(row)
                starts.append(start)
                ends.append(end)
    region_N = torch.zeros(len(line.start_N), dtype=torch.int8)
    for region in _PRECEDENCE:
        if placed[region][0]:
            region_N.masked_fill_(spans.cover(line, *placed[region]), int(region))
    return line.to_batch(region_N, width)
