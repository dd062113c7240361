"""Log-probabilities of many continuations of one beginning, the beginning computed once.

A *tree* is a shared prefix (RL: the prompt; SFT: the tool list that several demonstrations have in common) with
branches (the sampled answers; question and answer). Packed, the tokens of all trees lie end to end in one row without
padding, and attention goes tree by tree (`attention`). For models that cannot be packed (`can_pack` asks the model
itself) every branch becomes a row of its own behind a copy of the prefix.

Shape suffixes: R rows, W columns, B branches, T target tokens of the longest branch, N target tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from restool.backends.local import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Packed and plain log-probabilities agree to 1e-5 (float32); attention that ignores the trees shows in the first digit.
_SAME, _SAME_HALF = 1e-3, 0.25


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
    begins: list[int]  # where each tree begins, counting the tokens row by row
    before_N: Tensor  # the token that predicts each target, counted likewise
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
        """``packed=None``: pack if the model can be packed (it then keeps the attention that this needs)."""
        self.model = model
        self.temperature = temperature
        self.packed = can_pack(model) if packed is None else packed
        if self.packed:
            attention.install(model)

    def micro_batches(self, trees: Iterable[Tree], micro_tokens: int) -> Iterator[list[Tree]]:
        """Divide ``trees`` so that each part has at most ``micro_tokens``, padding included.

        Trees of similar size go together; one too large for a pass is cut between branches. A single branch that is
        longer still goes alone.
        """
        pieces = [piece for tree in trees for piece in self.pieces(tree, micro_tokens)]
        batch: list[Tree] = []
        size = 0
        for piece in sorted(pieces, key=lambda piece: (-piece.tokens, piece.rows)):
            more = piece.tokens if self.packed or not batch else batch[0].tokens  # unpacked: padded to the longest
            if batch and size + more > micro_tokens:
                yield batch
                batch, size, more = [], 0, piece.tokens
            batch.append(piece)
            size += more
        if batch:
            yield batch

    def pieces(self, tree: Tree, micro_tokens: int) -> Iterator[Tree]:
        """``tree`` cut where it is too large, or between all branches if they are not packed."""
        start, size = 0, len(tree.prefix)
        for end, branch in enumerate(tree.branches):
            if end > start and (not self.packed or size + len(branch) > micro_tokens):
                yield tree.part(start, end)
                start, size = end, len(tree.prefix)
            size += len(branch)
        yield tree.part(start, len(tree.branches))

    def __call__(self, trees: list[Tree], *, entropy: bool = False) -> Scored:
        """Score what `micro_batches` yields: B branches in order, T the most targets of one."""
        batch, logits_NV = self.outputs(trees)
        logits_NV = logits_NV.float()
        log_p_NV = (logits_NV / self.temperature if self.temperature != 1 else logits_NV).log_softmax(-1)
        place_N = batch.place_N.to(log_p_NV.device)
        logprob_N = log_p_NV.gather(1, batch.target_N.to(log_p_NV.device)[:, None])[:, 0]
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1) if entropy else None
        return Scored(
            torch.tensor([row for tree in trees for row in tree.rows]),
            spread(logprob_N, place_N, batch.shape),
            None if entropy_N is None else spread(entropy_N, place_N, batch.shape),
        )

    def outputs(self, trees: list[Tree]) -> tuple[Batch, Tensor]:
        """What the model's head says before each target token: (N, V)."""
        self.model.train(self.model.is_activation_checkpointing and torch.is_grad_enabled())
        batch = lay_out(trees, None if self.packed else max(tree.tokens for tree in trees))
        return batch, (self._packed_outputs if self.packed else self._plain_outputs)(trees, batch)

    def _packed_outputs(self, trees: list[Tree], batch: Batch) -> Tensor:
        device = self.model.device
        forest = [
            attention.plot(begin, len(tree.prefix), [len(branch) for branch in tree.branches], device)
            for begin, tree in zip(batch.begins, trees, strict=True)
        ]
        output = self.model(
            input_ids=batch.ids_RW.to(device),
            # Four-dimensional, so that transformers takes it as it is and builds none; attention reads the forest.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            position_ids=batch.position_RW.to(device),
            use_cache=False,
            logits_to_keep=batch.before_N.to(device),
            forest=forest,
        )
        return output.logits[0]

    def _plain_outputs(self, trees: list[Tree], batch: Batch) -> Tensor:
        device = self.model.device
        length_R1 = torch.tensor([[tree.tokens] for tree in trees])
        output = self.model(
            input_ids=batch.ids_RW.to(device),
            attention_mask=(torch.arange(batch.ids_RW.shape[1]) < length_R1).long().to(device),
            use_cache=False,
        )
        return output.logits.flatten(0, 1).index_select(0, batch.before_N.to(device))


def lay_out(trees: list[Tree], width: int | None) -> Batch:
    """All index arithmetic of a forward pass, without work per token.

    ``width``: one row for each tree, padded on the right to that many columns; None: all trees in one row, end to end.
    """
    sizes = [tree.tokens if width is None else width for tree in trees]
    begins = [0, *itertools.accumulate(sizes)]
    ids, position = numpy.zeros((2, begins[-1]), dtype=numpy.int64)
    longest = max(max(tree.targets) for tree in trees)
    before, target, place = [], [], []
    number = 0
    for begin, tree in zip(begins, trees, strict=False):
        prefix, fork = len(tree.prefix), begin + len(tree.prefix)
        ids[begin:fork], position[begin:fork] = tree.prefix, numpy.arange(prefix)
        start = fork
        for branch, count in zip(tree.branches, tree.targets, strict=True):
            end = start + len(branch)
            ids[start:end], position[start:end] = branch, prefix + numpy.arange(len(branch))
            previous = numpy.arange(end - count, end) - 1
            if count == len(branch):
                previous[0] = fork - 1  # a branch's first token is predicted by the prefix's last
            before.append(previous)
            target.append(ids[end - count : end])
            place.append(number * longest + numpy.arange(count))
            start, number = end, number + 1
    grids = [torch.from_numpy(grid).view(1 if width is None else len(trees), -1) for grid in (ids, position)]
    indices = [torch.from_numpy(numpy.concatenate(parts)) for parts in (before, target, place)]
    return Batch(*grids, begins[:-1], *indices, (number, longest))


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model's packed log-probabilities equal those of plain rows, tried on a few tokens.

    Models that were not written against transformers' attention interface and recurrent layers show here; sliding
    windows, which are longer than any example, are refused by the configuration. The model keeps the attention of
    this package if it can be packed, and else the one it had.
    """
    text = model.config.get_text_config()
    if any("sliding" in kind for kind in getattr(text, "layer_types", None) or ()):
        return False
    ids = [token % text.vocab_size for token in range(7, 7 + 5 * 31, 5)]
    trees = [
        Tree(ids[:9], [ids[9:16], ids[16:25], ids[25:]], [7, 9, 6], [0, 1, 2]),
        Tree(ids[:3], [ids[3:9]], [2], [3]),
    ]
    plain = TokenScorer(model, packed=False)
    expected_BT = plain([row for tree in trees for row in plain.pieces(tree, 0)]).logprob_BT
    before = model.config._attn_implementation
    try:
        packed_BT = TokenScorer(model, packed=True)(trees).logprob_BT
        same = bool((packed_BT - expected_BT).abs().max() < (_SAME if model.dtype == torch.float32 else _SAME_HALF))
    except Exception:  # whatever a model that knows nothing of this raises
        same = False
    if not same:
        model.set_attn_implementation(before)
    return same


def spread(value_N: Tensor, place_N: Tensor, shape: tuple[int, int]) -> Tensor:
    """Values of all targets in the (B, T) form of a batch (its ``place_N`` and ``shape``); the rest is 0."""
    return value_N.new_zeros(shape[0] * shape[1]).index_copy(0, place_N, value_N).view(shape)
