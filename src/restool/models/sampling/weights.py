"""The weights of a Qwen3 model as the sampler reads them.

Two forms. A small float32 model is copied into fused matrices (query, key and value in one; gate and up in one)
that carry the weight of the norm before them: fewer and larger operations. Any other model is read in place,
because a copy would cost its size in memory again and fold the norms with bfloat16 rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers.models.qwen3 import Qwen3ForCausalLM
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

# Most parameters of a model that is copied.
_COPIED = 50_000_000


class Weights:
    """Embedding, layers, output matrix and rotary tables."""

    def __init__(self, model: Qwen3ForCausalLM):
        body = model.model
        self.embedding = body.embed_tokens.weight.detach()
        small = self.embedding.dtype == torch.float32 and model.num_parameters() <= _COPIED
        form = _Fused if small else _Plain
        self.layers = [Layer(layer, form) for layer in body.layers]
        self._head = form(body.norm, model.lm_head)
        self._rotary = body.rotary_emb
        norm = torch.stack([_query_key_norm(layer) for layer in body.layers])[:, None]  # (layers, 1, heads, D)
        first, second = norm.chunk(2, -1)
        # Rotation takes (a, b) to (a cos - b sin, b cos + a sin); the second table multiplies (b, a).
        self._norms = norm, torch.cat([-second, first], -1)

    def rotation(self, place_N: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables with the query and key norms' weights in them, (layers, N, query + key heads, D)."""
        direct, swapped = self._norms
        cosine, sine = self._rotary(direct, place_N[None])
        return direct * cosine[0, :, None], swapped * sine[0, :, None]

    def logits(self, state: Tensor) -> Tensor:
        return self._head(state)


class Layer:
    """One decoder layer without its cache."""

    def __init__(self, layer: Qwen3DecoderLayer, form: type[_Plain] | type[_Fused]):
        attention, feed_forward = layer.self_attn, layer.mlp
        self._head_dim = attention.head_dim
        self._kv_heads = attention.k_proj.weight.shape[0] // attention.head_dim
        self._constant = _constant(attention.q_norm)
        self._in = form(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        self._up = form(layer.post_attention_layernorm, feed_forward.gate_proj, feed_forward.up_proj)
        self._out = attention.o_proj.weight.detach().T
        self._down = feed_forward.down_proj.weight.detach().T

    def attend_with(
        self, state: Tensor, cosine: Tensor, sine: Tensor, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated, scaled queries, rotated keys, and values: (*shape, heads, D) of ``state`` (N, hidden)."""
        joint = self._in(state).view(*shape, -1, self._head_dim)
        turned, value = joint[..., : -self._kv_heads, :], joint[..., -self._kv_heads :, :]
        turned = _unit(turned.float(), self._constant)
        swapped = turned.roll(self._head_dim // 2, -1)
        turned = torch.addcmul(turned * cosine, swapped, sine).to(state.dtype)
        return turned[..., : -self._kv_heads, :], turned[..., -self._kv_heads :, :], value

    def transform(self, state: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and the attention's mixture of values (N, heads * D)."""
        state = torch.addmm(state, mixed, self._out)
        gate, up = self._up(state).chunk(2, -1)
        return torch.addmm(state, functional.silu(gate).mul_(up), self._down)


class _Plain:
    """A norm and the linear maps that read it, outputs side by side."""

    def __init__(self, norm: Qwen3RMSNorm, *linears: torch.nn.Linear):
        self._weight, self._epsilon = norm.weight.detach(), norm.variance_epsilon
        self._matrices = [linear.weight.detach() for linear in linears]

    def __call__(self, state: Tensor) -> Tensor:
        normed = functional.rms_norm(state.float(), self._weight.shape, eps=self._epsilon)
        normed = normed.to(state.dtype) * self._weight
        parts = [functional.linear(normed, matrix) for matrix in self._matrices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Fused:
    """The same as one matrix, with the norm's weight and the root of its size in it."""

    def __init__(self, norm: Qwen3RMSNorm, *linears: torch.nn.Linear):
        scale = norm.weight.detach() * len(norm.weight) ** 0.5
        self._matrix = torch.cat([linear.weight.detach() for linear in linears]) * scale
        self._constant = _constant(norm)

    def __call__(self, state: Tensor) -> Tensor:
        return functional.linear(_unit(state, self._constant), self._matrix)


def _constant(norm: Qwen3RMSNorm) -> Tensor:
    """What the norm adds to the squared length, as a length."""
    size = norm.weight.shape[0]
    return torch.tensor((size * norm.variance_epsilon) ** 0.5, device=norm.weight.device)


def _unit(state: Tensor, constant: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + n eps): the root-mean-square norm without its weight and a factor sqrt(n).

    Three operations where the library's takes six, which at this size cost their call rather than their work.
    """
    return state / torch.hypot(torch.linalg.vector_norm(state, dim=-1, keepdim=True), constant)


def _query_key_norm(layer: Qwen3DecoderLayer) -> Tensor:
    """Weights (query + key heads, D) that complete `_unit`; those of the queries carry the attention's scale."""
    attention = layer.self_attn
    root = attention.head_dim**0.5
    heads = [linear.weight.shape[0] // attention.head_dim for linear in (attention.q_proj, attention.k_proj)]
    query, key = attention.q_norm.weight.detach().float(), attention.k_norm.weight.detach().float()
    return torch.cat([(query * root * attention.scaling).expand(heads[0], -1), (key * root).expand(heads[1], -1)])
