"""Log-probabilities of many continuations of one beginning, the beginning computed once.

A *tree* is a shared prefix (RL: the prompt; SFT: the tool list that several demonstrations have in common) with
branches (the sampled answers; question and answer). Packed, a tree is one row of tokens:

    prefix | branch 1 | branch 2 | ...        attention: own branch and prefix      positions: as if alone

which any Hugging Face model computes that honours a four-dimensional attention mask. For the others
(`honours_tree_mask` asks the model itself) every branch becomes a row of its own behind a copy of the prefix.

Shape suffixes: R packed rows, W columns, B branches, T target tokens of the longest branch, N all target tokens,
K columns with logits, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAME = 1e-3  # packed and plain log-probabilities agree to 1e-5; a mask that is ignored shows in the first digit


@dataclass(frozen=True)
class Tree:
    """``branches[i]`` follows ``prefix``; its last ``targets[i]`` tokens are predicted; ``rows[i]`` is the caller's
    name for it, the row of the batch that its log-probabilities belong to."""

    prefix: list[int]
    branches: list[list[int]]
    targets: list[int]
    rows: list[int]

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))

    def part(self, start: int, end: int) -> Tree:
        cut = slice(start, end)
        return replace(self, branches=self.branches[cut], targets=self.targets[cut], rows=self.rows[cut])


@dataclass(frozen=True)
class Batch:
    """Trees laid out for one forward pass."""

    ids_RW: Tensor
    position_RW: Tensor
    segment_RW: Tensor  # 0 prefix, i + 1 branch i, -1 padding
    keep: int  # how many of the last columns need logits
    logit_N: Tensor  # index into the (R * K) logits: what predicts a target
    target_N: Tensor
    place_N: Tensor  # index into the (B * T) result
    shape: tuple[int, int]  # (B, T)


@dataclass(frozen=True)
class Scored:
    """``rows_B``: the batch rows that the branches stand for; padding of the (B, T) tensors is 0."""

    rows_B: Tensor
    logprob_BT: Tensor
    entropy_BT: Tensor | None


class TokenScorer:
    """Computes log-probabilities of target tokens, with gradient where the caller has it enabled."""

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0, packed: bool | None = None):
        """``packed=None``: pack if the model honours a tree mask."""
        self.model = model
        self.temperature = temperature
        self.packed = honours_tree_mask(model) if packed is None else packed

    def micro_batches(self, trees: Iterable[Tree], micro_tokens: int) -> Iterator[list[Tree]]:
        """Divide ``trees`` so that each part's rows times columns is at most ``micro_tokens``.

        Rows of similar length go together; a tree too large for one pass is cut between branches. A single branch
        that is longer still goes alone.
        """
        rows = [piece for tree in trees for piece in self._rows(tree, micro_tokens)]
        batch: list[Tree] = []
        for row in sorted(rows, key=lambda row: (-row.tokens, row.rows)):
            if batch and (len(batch) + 1) * batch[0].tokens > micro_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _rows(self, tree: Tree, micro_tokens: int) -> Iterator[Tree]:
        """``tree`` cut into packed rows."""
        start, size = 0, len(tree.prefix)
        for end, branch in enumerate(tree.branches):
            if end > start and (not self.packed or size + len(branch) > micro_tokens):
                yield tree.part(start, end)
                start, size = end, len(tree.prefix)
            size += len(branch)
        yield tree.part(start, len(tree.branches))

    def __call__(self, trees: list[Tree], *, entropy: bool = False) -> Scored:
        """Score what `micro_batches` yields: B branches in order, T the most targets of one."""
        batch = lay_out(trees)
        logits_NV = self._logits(batch).index_select(0, batch.logit_N.to(self.model.device)).float()
        log_p_NV = (logits_NV / self.temperature if self.temperature != 1 else logits_NV).log_softmax(-1)
        place_N = batch.place_N.to(log_p_NV.device)
        logprob_N = log_p_NV.gather(1, batch.target_N.to(log_p_NV.device)[:, None])[:, 0]
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1) if entropy else None
        return Scored(
            torch.tensor([row for tree in trees for row in tree.rows]),
            _spread(logprob_N, place_N, batch.shape),
            None if entropy_N is None else _spread(entropy_N, place_N, batch.shape),
        )

    def _logits(self, batch: Batch) -> Tensor:
        """(R * K, V)"""
        model, device = self.model, self.model.device
        if self.packed:
            mask = tree_mask(batch.segment_RW.to(device))
            if model.config._attn_implementation == "eager":  # adds the mask instead of selecting by it
                mask = torch.zeros(mask.shape, dtype=model.dtype, device=device).masked_fill_(
                    ~mask, torch.finfo(model.dtype).min
                )
        else:
            mask = (batch.segment_RW >= 0).long().to(device)
        options = {"logits_to_keep": batch.keep} if _takes_logits_to_keep(model) else {}
        logits_RKV = model(
            input_ids=batch.ids_RW.to(device),
            attention_mask=mask,
            position_ids=batch.position_RW.to(device),
            use_cache=False,
            **options,
        ).logits[:, -batch.keep :]
        return logits_RKV.reshape(-1, logits_RKV.shape[-1])


def lay_out(trees: list[Tree]) -> Batch:
    """Rows side by side, padded on the right; all index arithmetic of a forward pass, without work per token."""
    width = max(tree.tokens for tree in trees)
    first = min(len(tree.prefix) for tree in trees) - 1  # the earliest column that predicts a target
    longest = max(max(tree.targets) for tree in trees)
    ids_RW = numpy.zeros((len(trees), width), dtype=numpy.int64)
    position_RW, segment_RW = numpy.zeros_like(ids_RW), numpy.full_like(ids_RW, -1)
    logit, place, target = [], [], []
    number = 0
    for row, tree in enumerate(trees):
        begin = len(tree.prefix)
        ids_RW[row, :begin], segment_RW[row, :begin] = tree.prefix, 0
        position_RW[row, :begin] = numpy.arange(begin)
        for index, (branch, count) in enumerate(zip(tree.branches, tree.targets, strict=True), 1):
            end = begin + len(branch)
            ids_RW[row, begin:end], segment_RW[row, begin:end] = branch, index
            position_RW[row, begin:end] = len(tree.prefix) + numpy.arange(len(branch))
            before = numpy.arange(end - count, end) - 1
            if count == len(branch):
                before[:1] = len(tree.prefix) - 1  # a branch's first token is predicted by the prefix's last
            logit.append(row * (width - first) + before - first)
            target.append(ids_RW[row, end - count : end])
            place.append(number * longest + numpy.arange(count))
            begin, number = end, number + 1
    join = [torch.from_numpy(numpy.concatenate(parts)) for parts in (logit, target, place)]
    grids = [torch.from_numpy(grid) for grid in (ids_RW, position_RW, segment_RW)]
    return Batch(*grids, width - first, *join, (number, longest))


def tree_mask(segment_RW: Tensor) -> Tensor:
    """(R, 1, W, W) bool: column i may attend to column j. Padding attends to something, so that no row is empty."""
    columns = torch.arange(segment_RW.shape[1], device=segment_RW.device)
    earlier_WW = columns[:, None] >= columns
    allowed_RWW = (segment_RW[:, None, :] == 0) | (segment_RW[:, :, None] == segment_RW[:, None, :])
    return (allowed_RWW & earlier_WW)[:, None]


@torch.no_grad()
def honours_tree_mask(model: PreTrainedModel) -> bool:
    """Whether the model's packed log-probabilities equal those of plain rows, tried on a few tokens.

    Attention implementations that take no such mask, recurrent layers and sliding windows shorter than the
    example show here; windows of the configuration are refused as such.
    """
    text = model.config.get_text_config()
    if any("sliding" in kind for kind in getattr(text, "layer_types", None) or ()):
        return False
    ids = [token % text.vocab_size for token in range(7, 7 + 5 * 31, 5)]
    tree = Tree(ids[:9], [ids[9:16], ids[16:25], ids[25:]], [7, 9, 6], [0, 1, 2])
    plain = TokenScorer(model, packed=False)
    rows = list(plain._rows(tree, 10_000))
    try:
        packed_BT = TokenScorer(model, packed=True)([tree]).logprob_BT
    except (RuntimeError, ValueError, TypeError, IndexError):  # whatever a model without such masks raises
        return False
    tolerance = _SAME if model.dtype == torch.float32 else 0.25
    return bool((packed_BT - plain(rows).logprob_BT).abs().max() < tolerance)


def _takes_logits_to_keep(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _spread(value_N: Tensor, place_N: Tensor, shape: tuple[int, int]) -> Tensor:
    return value_N.new_zeros(shape[0] * shape[1]).index_copy(0, place_N, value_N).view(shape)
