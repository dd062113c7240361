"""Character spans -> token positions for whole batches, from the offsets of the sampled ids.

All answers are laid end to end, so that one `searchsorted` places every span of every answer. Nothing is tokenised
again: re-tokenised text need not give back the ids that were sampled, and it is the slowest part of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from restool.core.errors import DataError


@dataclass(frozen=True)
class TokenLine:
    """The N tokens of B answers laid end to end; answer b starts at character ``base_B[b]``, token ``first_B[b]``."""

    start_N: Tensor
    end_N: Tensor
    base_B: Tensor
    first_B: Tensor
    count_B: Tensor

    def to_batch(self, value_N: Tensor, width: int) -> Tensor:
        """(B, width): the values of every answer's first ``width`` tokens, zero behind them."""
        value_BT = value_N.new_zeros(len(self.count_B), width)
        kept_B = self.count_B.clamp(max=width)
        if bool((kept_B < self.count_B).any()):
            row_N = torch.repeat_interleave(self.count_B)
            position_N = torch.arange(len(value_N)) - self.first_B[row_N]
            value_N = value_N[position_N < width]
        return value_BT.masked_scatter_(torch.arange(width) < kept_B[:, None], value_N)


def lay_out(texts: Sequence[str], offsets: Sequence[Tensor]) -> TokenLine:
    """Check the offsets against their texts and lay them end to end.

    ``offsets[b]`` is (t, 2), t >= 0. Raises DataError, naming the answer, where offsets do not belong to their text:
    not ascending, beyond its end, or short of it (white space apart, which some tokenizers leave out).
    """
    if len(texts) != len(offsets):
        raise DataError(f"{len(texts)} texts but {len(offsets)} offset tensors: give one offset tensor per text")
    length_B = torch.tensor([len(text) for text in texts], dtype=torch.long)
    count_B = torch.tensor([len(pairs) for pairs in offsets], dtype=torch.long)
    columns = [pairs.reshape(-1, 2).t() for pairs in offsets]
    pairs_2N = (torch.cat(columns, 1) if columns else torch.zeros(2, 0)).long()
    first_B = count_B.cumsum(0) - count_B
    base_B = length_B.cumsum(0) - length_B
    base_N = torch.repeat_interleave(base_B, count_B, output_size=pairs_2N.shape[1])
    start_N, end_N = pairs_2N.add_(base_N)  # in place: new memory is what takes the time here
    line = TokenLine(start_N, end_N, base_B, first_B, count_B)
    if not _fits(line, length_B):
        _tell_misfit(texts, length_B, count_B, first_B, start_N - base_N, end_N - base_N)
    _check_ends(texts, line, length_B)
    # A token of no width holds later bytes of the character before it (see models.offsets): it shares that character.
    is_empty_N = start_N == end_N
    if bool(is_empty_N.any()):
        start_N.sub_((is_empty_N & (start_N > base_N)).long())
    return line


def _fits(line: TokenLine, length_B: Tensor) -> bool:
    """Whether all offsets ascend within their texts: on the line, where each text begins behind the one before, they
    then ascend from the first to the last."""
    start_N, end_N = line.start_N, line.end_N
    filled_B = line.count_B > 0
    first, last = line.first_B[filled_B], (line.first_B + line.count_B - 1)[filled_B]
    base, behind = line.base_B[filled_B], (line.base_B + length_B)[filled_B]
    return bool(
        (start_N[first] >= base).all()
        & (end_N[last] <= behind).all()
        & (end_N >= start_N).all()
        & (start_N[1:] >= start_N[:-1]).all()
        & (end_N[1:] >= end_N[:-1]).all()
    )


def _tell_misfit(
    texts: Sequence[str], length_B: Tensor, count_B: Tensor, first_B: Tensor, start_N: Tensor, end_N: Tensor
) -> None:
    """Raise DataError with the first token whose offsets do not fit."""
    is_wrong_N = (start_N < 0) | (end_N < start_N) | (end_N > torch.repeat_interleave(length_B, count_B))
    falls_N = (start_N[1:] < start_N[:-1]) | (end_N[1:] < end_N[:-1])
    later_firsts = first_B[1:][(first_B[1:] > 0) & (first_B[1:] < len(start_N))]
    falls_N[later_firsts - 1] = False
    is_wrong_N[1:] |= falls_N
    token = int(is_wrong_N.nonzero()[0])
    row = int(torch.searchsorted(first_B + count_B, torch.tensor(token), right=True))
    pair = (int(start_N[token]), int(end_N[token]))
    raise DataError(
        f"answer {row}: the offsets of token {token - int(first_B[row])}, {pair}, do not fit its text of "
        f"{len(texts[row])} characters (they must ascend and stay within it); pass the offsets of this very text"
    )


def _check_ends(texts: Sequence[str], line: TokenLine, length_B: Tensor) -> None:
    last_B = torch.zeros_like(length_B)
    filled_B = line.count_B > 0
    last_B[filled_B] = line.end_N[(line.first_B + line.count_B - 1)[filled_B]] - line.base_B[filled_B]
    for row in (last_B < length_B).nonzero().flatten().tolist():
        if texts[row][int(last_B[row]) :].strip():
            raise DataError(
                f"answer {row}: its offsets end at character {int(last_B[row])} but its text has {len(texts[row])}; "
                "pass the offsets of this very text"
            )


def cover(line: TokenLine, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> Tensor:
    """(N,) bool: tokens with at least one character in any of the spans; spans are (answer, start, end)."""
    low, high = span_characters(line, rows, starts, ends)
    first = torch.searchsorted(line.end_N, low, right=True)
    behind = torch.searchsorted(line.start_N, high)
    row = torch.as_tensor(rows, dtype=torch.long)
    first = torch.maximum(first, line.first_B[row])
    behind = torch.minimum(behind, (line.first_B + line.count_B)[row])
    return fill(len(line.start_N), first, behind)


def span_characters(
    line: TokenLine, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Spans as positions on the line."""
    base = line.base_B[torch.as_tensor(rows, dtype=torch.long)]
    return torch.as_tensor(starts, dtype=torch.long) + base, torch.as_tensor(ends, dtype=torch.long) + base


def fill(size: int, first: Tensor, behind: Tensor) -> Tensor:
    """(size,) bool: True in every range first..behind (exclusive)."""
    is_range = behind > first
    step = torch.zeros(size + 1, dtype=torch.int32)
    one = torch.ones(int(is_range.sum()), dtype=torch.int32)
    step.index_add_(0, first[is_range], one)
    step.index_add_(0, behind[is_range], -one)
    return torch.cumsum(step, 0, dtype=step.dtype, out=step)[:-1] > 0
