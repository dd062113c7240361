"""A decoder of its own for models of the Qwen3 architecture, several times faster than the library's.

Where the time goes, and what is done about it:

- The prompt's keys and values are computed once per prompt and never copied: all rows of a prompt attend to
  them in one matrix product, and to their own tokens in a second one, under one softmax.
- Prompts are read without padding: their tokens lie end to end, and attention alone goes prompt by prompt.
- Finished rows are dropped, keeping the batch a rectangle of prompts and rows.
- Small float32 models are read into fused matrices with the norms' weights folded in (`weights.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from restool.models.sampling.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.models.qwen3 import Qwen3ForCausalLM

# Finished rows are dropped when at least this share of the rectangle falls away: dropping copies the cache.
_WORTH_DROPPING = 0.15
# Prompt tokens that go through the layers at once: few enough for a processor's cache, many for a GPU.
_READ_TOGETHER = {"cpu": 2048, "cuda": 16384}
# Rotary embeddings whose angles depend on the position alone, not on the length of the text.
_STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")


def supports(model: PreTrainedModel) -> bool:
    """Whether this decoder computes exactly what ``model`` does."""
    config = model.config
    return (
        type(model).__name__ == "Qwen3ForCausalLM"
        and not config.attention_bias
        and not config.use_sliding_window
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in _STATIC_ROTATIONS
    )


class Qwen3Decoder:
    """Suffixes: P prompts, N rows of each, R = P * N, K key-value heads, G query heads to each, D head size."""

    def __init__(self, model: Qwen3ForCausalLM):
        self._model = model
        self._kv_heads = model.config.num_key_value_heads
        self._groups = model.config.num_attention_heads // self._kv_heads
        self._head_dim = model.config.head_dim
        self.refresh()

    def refresh(self) -> None:
        self._weights = Weights(self._model)

    def size(self, prompt_tokens: int, prompts: int, samples: int, max_new_tokens: int) -> int:
        return prompts * (prompt_tokens + samples * max_new_tokens)

    def start(self, prompts: list[list[int]], samples: int, max_new_tokens: int) -> Tensor:
        weights = self._weights
        device = weights.embedding.device
        lengths = [len(prompt) for prompt in prompts]
        self._shape = (len(prompts), samples)
        self._length = 0  # answer tokens in the cache
        self._place_P = torch.tensor(lengths, device=device)
        self._mask_prompts()
        heads = (len(weights.layers), 2, len(prompts), self._kv_heads)
        dtype = weights.embedding.dtype
        self._prompt = torch.zeros(*heads, max(lengths), self._head_dim, dtype=dtype, device=device)
        self._suffix = torch.empty(*heads, samples, max_new_tokens, self._head_dim, dtype=dtype, device=device)
        return torch.cat([self._read(prompts, part) for part in _parts(lengths, _READ_TOGETHER.get(device.type, 2048))])

    def advance(self, ids_R: Tensor) -> Tensor:
        weights = self._weights
        prompts, rows = self._shape
        cosine, sine = weights.rotation(self._place_P)
        cosine, sine = cosine[:, :, None], sine[:, :, None]  # (layers, P, 1, heads, D)
        state = weights.embedding[ids_R]
        self._length += 1
        for index, layer in enumerate(weights.layers):
            query, key, value = layer.attend_with(state, cosine[index], sine[index], (prompts, rows))
            mixed = self._attend(index, query, key, value)
            state = layer.transform(state, mixed)
        self._place_P = self._place_P + 1
        return weights.logits(state)

    def shrink(self, alive_R: Tensor) -> Tensor | None:
        prompts, rows = self._shape
        alive_PN = alive_R.view(prompts, rows)
        alive_P = alive_PN.sum(1)
        kept_P = alive_P.nonzero()[:, 0]
        width = int(alive_P.max())
        if len(kept_P) * width > (1 - _WORTH_DROPPING) * prompts * rows:
            return None
        order = alive_PN[kept_P].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
        self._select(kept_P, order)
        return (kept_P[:, None] * rows + order).flatten()

    def _select(self, kept_P: Tensor, order_PN: Tensor) -> None:
        """Keep these prompts, and of each of them these rows."""
        if len(kept_P) < self._shape[0]:
            self._place_P = self._place_P[kept_P]
            self._prompt = self._prompt[:, :, kept_P, :, : int(self._place_P.max()) - self._length]
            self._mask_prompts()
        old = self._suffix
        self._shape = (len(kept_P), order_PN.shape[1])
        self._suffix = old.new_empty(*old.shape[:2], len(kept_P), old.shape[3], self._shape[1], *old.shape[5:])
        heads_K = torch.arange(self._kv_heads, device=old.device)
        picked = old[..., : self._length, :][:, :, kept_P[:, None, None], heads_K[:, None], order_PN[:, None]]
        self._suffix[..., : self._length, :] = picked

    def _mask_prompts(self) -> None:
        """(P * K, 1, longest): zero at prompt tokens, minus infinity behind shorter prompts; None if all equal."""
        length_P = self._place_P - self._length
        longest = int(length_P.max())
        if bool((length_P == longest).all()):
            self._mask = None
            return
        behind = torch.arange(longest, device=length_P.device) >= length_P[:, None]
        mask_PL = torch.zeros(behind.shape, dtype=self._weights.embedding.dtype, device=length_P.device)
        mask_PL.masked_fill_(behind, -torch.inf)
        self._mask = mask_PL.repeat_interleave(self._kv_heads, 0)[:, None]

    def _attend(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of every row to its prompt and to its own tokens: (R, heads * D)."""
        (prompts, rows), length = self._shape, self._length
        shared, own = prompts * self._kv_heads, prompts * self._kv_heads * rows
        cached = self._suffix[index]
        cached[0, :, :, :, length - 1] = key.transpose(1, 2)
        cached[1, :, :, :, length - 1] = value.transpose(1, 2)
        own_keys, own_values = cached[..., :length, :].flatten(1, 3)
        keys, values = self._prompt[index].flatten(1, 2)
        # (P, N, K, G, D) -> (P, K, N, G, D): rows of one prompt and key-value head side by side
        query = query.unflatten(2, (self._kv_heads, self._groups)).transpose(1, 2).contiguous()
        by_prompt = query.view(shared, rows * self._groups, -1)
        if self._mask is None:
            score_prompt = torch.bmm(by_prompt, keys.transpose(1, 2))
        else:
            score_prompt = torch.baddbmm(self._mask, by_prompt, keys.transpose(1, 2))
        score_own = torch.bmm(query.view(own, self._groups, -1), own_keys.transpose(1, 2))
        longest = keys.shape[1]
        score = torch.cat([score_prompt, score_own.view(shared, rows * self._groups, length)], -1)
        share = functional.softmax(score, -1, dtype=torch.float32).to(query.dtype)
        mixed = torch.bmm(share[..., longest:].view(own, self._groups, length), own_values)
        mixed = torch.baddbmm(mixed.view(shared, rows * self._groups, -1), share[..., :longest], values)
        return mixed.view(prompts, self._kv_heads, rows, -1).transpose(1, 2).reshape(prompts * rows, -1)

    def _read(self, prompts: list[list[int]], part: range) -> Tensor:
        """Fill the prompt cache of some prompts; the logits (prompts, V) behind their last tokens."""
        weights = self._weights
        device = weights.embedding.device
        lengths = [len(prompts[place]) for place in part]
        ids_N = torch.tensor(list(itertools.chain.from_iterable(prompts[place] for place in part)), device=device)
        cosine, sine = weights.rotation(torch.cat([torch.arange(length, device=device) for length in lengths]))
        state = weights.embedding[ids_N]
        for index, layer in enumerate(weights.layers):
            query, key, value = layer.attend_with(state, cosine[index], sine[index], (len(state),))
            mixed = torch.empty_like(query)
            bounds = itertools.pairwise(itertools.accumulate(lengths, initial=0))
            for place, (begin, end) in zip(part, bounds, strict=True):
                heads = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
                mixed[begin:end] = self._read_one(self._prompt[index, :, place], *heads).transpose(0, 1)
            state = layer.transform(state, mixed.flatten(1))
        last_P = torch.tensor(lengths, device=device).cumsum(0) - 1
        return weights.logits(state[last_P])

    @staticmethod
    def _read_one(cache: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within one prompt, (heads, length, D); its keys and values go into ``cache``."""
        cache[0, :, : key.shape[1]], cache[1, :, : key.shape[1]] = key, value
        mixed = functional.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            is_causal=True,
            scale=1.0,  # the queries carry it
            enable_gqa=True,
        )
        return mixed[0]


def _parts(lengths: list[int], limit: int) -> Iterator[range]:
    """Runs of consecutive prompts of at most ``limit`` tokens together, or of one prompt."""
    begin, tokens = 0, 0
    for place, length in enumerate(lengths):
        if place > begin and tokens + length > limit:
            yield range(begin, place)
            begin, tokens = place, 0
        tokens += length
    yield range(begin, len(lengths))
