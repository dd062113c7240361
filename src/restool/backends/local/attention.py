"""Attention over trees: many continuations of one beginning, laid end to end without padding.

Registered with transformers as one more attention implementation, so that any model written against its attention
interface uses it. A forward pass that is given a `Forest` attends by it; every other one is plain `sdpa`.

- A prefix attends to itself: causal attention without a mask.
- The branches of a tree attend to the prefix and, causally, to themselves: one batch of rows, padded within the tree.

Compared with one row and a mask over all pairs of tokens, a tree of eight answers costs half, and no mask grows with
the square of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "restool_trees"
# What a layer may ask of attention that is not computed here; a model that asks for it is not packed.
_UNKNOWN = ("softcap", "s_aux", "sliding_window", "position_bias")


@dataclass(frozen=True)
class Plot:
    """One tree in the row of all tokens: ``begin`` to ``fork`` is the prefix, then come its branches.

    ``place_BL``: where the tokens of B branches lie (padding repeats a branch's last), ``mask_LS``: which of prefix and
    branch each may attend to, ``back_N``: which of the B * L places hold the tokens, in order. None without branches.
    """

    begin: int
    fork: int
    place_BL: Tensor | None = None
    mask_LS: Tensor | None = None
    back_N: Tensor | None = None


Forest = list[Plot]


def plot(begin: int, prefix: int, branches: list[int], device: torch.device) -> Plot:
    """The plot of a tree with a prefix and branches of these lengths, at ``begin`` in the row.

    A single branch just continues its prefix: both together are one causal sequence.
    """
    if len(branches) == 1:
        return Plot(begin, begin + prefix + branches[0])
    fork = begin + prefix
    longest = max(branches)
    length_B1 = torch.tensor(branches)[:, None]
    start_B1 = fork + length_B1.cumsum(0) - length_B1
    column_L = torch.arange(longest)
    is_token_BL = column_L < length_B1
    place_BL = start_B1 + column_L.minimum(length_B1 - 1)
    causal_LL = column_L[:, None] >= column_L
    mask_LS = torch.cat([torch.ones(longest, prefix, dtype=torch.bool), causal_LL], 1)
    back_N = is_token_BL.flatten().nonzero()[:, 0]
    return Plot(begin, fork, place_BL.to(device), mask_LS.to(device), back_N.to(device))


def install(model: PreTrainedModel) -> None:
    """Make ``model`` use this implementation. Raises ValueError where it was not written for such."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    forest: Forest | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers: (1, heads, N, size) query, (1, key-value heads, N, size) key and value to
    (1, N, heads, size)."""
    if forest is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if unknown := [name for name in _UNKNOWN if options.get(name) is not None]:
        raise ValueError(f"attention with {', '.join(unknown)} is not supported over trees")
    shares = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shares, 1) if shares > 1 else x for x in (key, value))
    scale = options.get("scaling")
    pieces = []
    for tree in forest:
        prefix = [x[:, :, tree.begin : tree.fork] for x in (query, key, value)]
        mixed = functional.scaled_dot_product_attention(*prefix, is_causal=True, scale=scale)
        pieces.append(mixed[0].transpose(0, 1))
        if tree.place_BL is not None:
            pieces.append(_branches(tree, (query, key, value), prefix, scale))
    return torch.cat(pieces)[None], None


def _branches(tree: Plot, states: tuple[Tensor, ...], prefix: list[Tensor], scale: float | None) -> Tensor:
    """(tokens of the branches, heads, size)"""
    assert tree.place_BL is not None
    assert tree.back_N is not None
    query, key, value = (_at(x, tree.place_BL) for x in states)
    key, value = (
        torch.cat([shared.expand(len(own), -1, -1, -1), own], 2)
        for shared, own in ((prefix[1], key), (prefix[2], value))
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=tree.mask_LS, scale=scale)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, tree.back_N)


def _at(states: Tensor, place_BL: Tensor) -> Tensor:
    """(1, heads, N, size) at some places: (B, heads, L, size)."""
    heads, size = states.shape[1], states.shape[3]
    rows = states[0].transpose(0, 1).reshape(-1, heads * size)
    # As an embedding: its backward pass adds whole rows, that of indexing goes element by element.
    return functional.embedding(place_BL, rows).unflatten(2, (heads, size)).transpose(1, 2)
