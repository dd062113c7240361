"""The span faults of the released weighting, each to be switched on alone.

Without a fault these are the weights of `restool.core.weights.fixed`; with all of them they are `released`, so the
list is complete. Both ends are tested.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from restool.core import parsing, released, spans
from restool.core.batch import AnswerBatch
from restool.core.normalisers import normalise_positive
from restool.core.regions import Region, region_spans

FAULTS = {
    "end": "token that holds a span's last character left out",
    "start": "token that straddles a span's beginning left out",
    "first_call": "first call of a block only",
    "keys": 'first `"name"` and first arguments key in the text, whoever\'s they are',
    "patterns": "blocks by pattern: closed ones only, literal tags in a thought begin blocks",
}
_BLOCKS = {kind: re.compile(f"<{kind}>(.*?)</{kind}>", re.DOTALL) for kind in ("think", "response", "tool_call")}
_CALL_BLOCK = re.compile(r"(?:<tool_call>|<toolcall>)(.*?)(?:</tool_call>|</toolcall>)", re.DOTALL)
_NAME = re.compile(r'"name"\s*:\s*"([^"]+)"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')

Found = tuple[Region, int, int]


def faulty_spans(text: str, faults: Iterable[str]) -> list[Found]:
    """Weighted character spans of one answer: those of `fixed` with the given faults of the released code.

    No fault: the spans of `restool.core.regions`. All: those of `restool.core.released`.
    """
    faults = set(faults)
    answer = parsing.parse(text)
    found = [(region, *span) for region, span in region_spans(answer)]
    blocks = [block.content for block in answer.blocks if block.kind == "tool_call"]
    if "patterns" in faults:
        found = _pattern_spans(text)
        blocks = [parsing.Span(*match.span(1)) for match in _CALL_BLOCK.finditer(text)]
    if faults & {"patterns", "first_call", "keys"}:
        found = [entry for entry in found if entry[0] not in (Region.NAME, Region.ARGUMENTS)]
        for block in blocks:
            found += _call_spans(text, block, faults)
    return [entry for entry in found if entry[0] != Region.RESPONSE and entry[2] > entry[1]]


def _pattern_spans(text: str) -> list[Found]:
    found: list[Found] = []
    for kind, pattern in _BLOCKS.items():
        for match in pattern.finditer(text):
            found += [(Region.FORMAT, match.start(), match.start(1)), (Region.FORMAT, match.end(1), match.end())]
            if kind == "think":
                found.append((Region.THINK, *match.span(1)))
    return found


def _call_spans(text: str, block: parsing.Span, faults: set[str]) -> list[Found]:
    calls = parsing.find_calls(text, block)
    if "keys" not in faults:
        kept = calls[:1] if "first_call" in faults else calls
        pairs = [(Region.NAME, call.name) for call in kept] + [(Region.ARGUMENTS, call.arguments) for call in kept]
        return [(region, *span) for region, span in pairs if span]
    if "first_call" in faults:
        pieces = [(block.start, block.end)]
    else:  # every call searched for by itself
        ends = [max(span.end for span in call if span) for call in calls]
        pieces = list(itertools.pairwise([block.start, *ends]))
    found: list[Found] = []
    for start, end in pieces:
        piece = text[start:end]
        if name := _NAME.search(piece):
            found.append((Region.NAME, start + name.start(1), start + name.end(1)))
        if key := _ARGUMENTS.search(piece):
            braced = released.braced(piece, piece.find("{", key.end()))
            if braced:
                found.append((Region.ARGUMENTS, start + braced[0], start + braced[1]))
    return found


def faulty_weights(batch: AnswerBatch, faults: Iterable[str]) -> Tensor:
    """(B, T) normalised weights of `fixed` with the given faults; all of them together are `released`."""
    faults = set(faults)
    constant = {
        Region.FORMAT: released.TAG,
        Region.NAME: released.NAME,
        Region.THINK: released.think_weight(batch.step),
        Region.ARGUMENTS: released.arguments_weight(batch.step),
    }
    line = spans.lay_out(batch.texts, batch.offsets)
    found = [(row, *span) for row, text in enumerate(batch.texts) for span in faulty_spans(text, faults)]
    raw_N = torch.zeros(len(line.start_N))
    for region in (Region.THINK, Region.FORMAT, Region.ARGUMENTS, Region.NAME):  # the more specific ones later
        of_region = [(row, start, end) for row, kind, start, end in found if kind == region]
        if not of_region:
            continue
        value_N = _tokens(line, *zip(*of_region, strict=True), faults) * constant[region]
        by_pattern = "patterns" in faults  # then blocks may overlap, and the largest weight wins
        raw_N = torch.maximum(raw_N, value_N) if by_pattern else torch.where(value_N > 0, value_N, raw_N)
    return normalise_positive(line.to_batch(raw_N, batch.mask_BT.shape[1]), batch.mask_BT)


def _tokens(
    line: spans.TokenLine, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int], faults: set[str]
) -> Tensor:
    """(N,) bool: tokens of spans, by the right rule or by the released one at either end."""
    low, high = spans.span_characters(line, rows, starts, ends)
    row = torch.as_tensor(rows)
    begin, stop = line.first_B[row], (line.first_B + line.count_B)[row]
    if "start" in faults:  # the first token that begins in the span
        first = torch.maximum(torch.searchsorted(line.start_N, low), begin)
    else:  # the token that holds the span's first character
        first = torch.maximum(torch.searchsorted(line.end_N, low, right=True), begin)
    if "end" in faults:  # up to, without, the token that holds the last character
        behind = torch.minimum(torch.maximum(torch.searchsorted(line.end_N, high), begin), stop)
    else:
        behind = torch.minimum(torch.searchsorted(line.start_N, high), stop)
    behind = torch.maximum(behind, torch.minimum(first + 1, stop))  # never fewer than one token
    return spans.fill(len(line.start_N), first, behind)
