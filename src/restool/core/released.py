"""Span rules of the released token weighting, reproduced with their faults (recipe/custom/token_weighting.py).

What they do, and what it costs (each is a fault that `weights.fixed` does not have):
- only blocks with both tags are seen; unclosed, cut off or badly formed answers get no weight at all;
- only the first name and the first arguments object of each tool_call block are weighted;
- a parameter called "name" that comes first takes the name's weight;
- a `<tool_call>` mentioned while thinking begins the block there;
- the token that holds a span's last character is left out, unless the span is that one token, and so is a token that
  straddles its beginning;
- stop tokens, response text and JSON glue weigh 0.

Deviations from the released code:
1. Token positions come from the offsets of the sampled ids, found by bisection; the released code tokenises the whole
   text again for every span, which may give other tokens than those that were sampled.
2. Where it raises, this does not. No token begins at or behind a span (its StopIteration): the span is skipped. A span
   reaches beyond the answer's last position (its RuntimeError): the part inside is weighted. Both are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from restool.core import spans

NAME, TAG = 1.2, 1.0
BASE, SLOPE = 0.6, 0.002  # think and arguments: BASE + SLOPE * step, up to their caps
THINK_CAP, ARGUMENTS_CAP = 1.0, 1.2

_TAGS = re.compile(r"<(/?)(think|response|tool_call|toolcall)>")
_NAME = re.compile(r'"name"\s*+:\s*+"([^"]++)"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*+:')
_BRACES = re.compile(r'[{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_DECODE = json.JSONDecoder().raw_decode
_KINDS = ("think", "arguments", "tag", "name")


class RawWeights(NamedTuple):
    """``raw_BT``: float32 before normalisation; ``crashes_B``: spans at which the released code raises."""

    raw_BT: Tensor
    crashes_B: Tensor


def think_weight(step: float) -> float:
    return min(BASE + SLOPE * step, THINK_CAP)


def arguments_weight(step: float) -> float:
    return min(BASE + SLOPE * step, ARGUMENTS_CAP)


def raw_weights(texts: Sequence[str], offsets: Sequence[Tensor], width: int, step: float) -> RawWeights:
    """Weights of a batch before normalisation, (B, width); the largest wins where spans overlap.

    ``offsets[b]``: (t, 2). Raises DataError if offsets do not fit their text.
    """
    line = spans.lay_out(texts, offsets)
    value = {"think": think_weight(step), "arguments": arguments_weight(step), "tag": TAG, "name": NAME}
    found: dict[str, tuple[list[int], list[int], list[int]]] = {kind: ([], [], []) for kind in _KINDS}
    for row, text in enumerate(texts):
        for kind, start, end in weighted_spans(text):
            rows, starts, ends = found[kind]
            rows.append(row)
            starts.append(start)
            ends.append(end)
    raw_N = torch.zeros(len(line.start_N), dtype=torch.float32)
    crashes_B = torch.zeros(len(texts), dtype=torch.long)
    for kind in _KINDS:
        if found[kind][0]:
            inside_N = _released_tokens(line, *found[kind], width, crashes_B)
            raw_N = torch.maximum(raw_N, inside_N.float() * value[kind])
    return RawWeights(line.to_batch(raw_N, width), crashes_B)


def _released_tokens(
    line: spans.TokenLine,
    rows: list[int],
    starts: list[int],
    ends: list[int],
    width: int,
    crashes_B: Tensor,
) -> Tensor:
    """(N,) bool by the released rule: from the first token that begins in the span to before the one that ends it."""
    low, high = spans.span_characters(line, rows, starts, ends)
    row = torch.as_tensor(rows, dtype=torch.long)
    begin, stop = line.first_B[row], (line.first_B + line.count_B)[row]
    first = torch.maximum(torch.searchsorted(line.start_N, low), begin)
    last = torch.minimum(torch.maximum(torch.searchsorted(line.end_N, high), begin), stop)
    behind = torch.maximum(first + 1, last)
    limit = torch.minimum(stop, begin + width)
    has_no_token = first >= stop
    # The released assignment fails where its slice is cut; a slice of one position broadcasts and passes.
    is_cut = ~has_no_token & (behind > begin + width) & (behind - first > 1)
    crashes_B.index_add_(0, row, (has_no_token | is_cut).long())
    return spans.fill(len(line.start_N), torch.where(has_no_token, behind, first), torch.minimum(behind, limit))


def weighted_spans(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of every span that the released patterns find; kind: tag, think, name or arguments."""
    tags = [(m[2], not m[1], *m.span()) for m in _TAGS.finditer(text)]
    found: list[tuple[str, int, int]] = []
    for kind in ("think", "response", "tool_call"):
        for open_start, start, end, close_end in _pairs(tags, (kind,)):
            found += [("tag", open_start, start), ("tag", end, close_end)]
            if kind == "think":
                found.append(("think", start, end))
    for _, start, end, _ in _pairs(tags, ("tool_call", "toolcall")):
        block = text[start:end]
        if name := _NAME.search(block):
            found.append(("name", start + name.start(1), start + name.end(1)))
        if key := _ARGUMENTS.search(block):
            arguments = braced(block, block.find("{", key.end()))
            if arguments:
                found.append(("arguments", start + arguments[0], start + arguments[1]))
    return found


def _pairs(tags: list[tuple[str, bool, int, int]], kinds: tuple[str, ...]) -> list[tuple[int, int, int, int]]:
    """Matches of the lazy pattern opening-content-closing: an opening tag and the next closing one.

    (start of the opening tag, its end, start of the closing tag, its end); one pass, where the pattern itself would
    read the rest of the text again for every opening tag that nothing closes.
    """
    pairs = []
    opened: tuple[int, int] | None = None
    for kind, opens, start, end in tags:
        if kind not in kinds:
            continue
        if opens and opened is None:
            opened = (start, end)
        elif not opens and opened is not None:
            pairs.append((*opened, start, end))
            opened = None
    return pairs


def braced(block: str, start: int) -> tuple[int, int] | None:
    """From the brace at ``start`` to its partner, minding strings; None where there is none."""
    if start < 0:
        return None
    try:  # valid JSON ends where the brace matching ends, and the decoder is written in C
        return start, _DECODE(block, start)[1]
    except (ValueError, RecursionError):
        pass
    depth = 0
    for match in _BRACES.finditer(block, start):
        token = match[0]
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return start, match.end()
    return None
