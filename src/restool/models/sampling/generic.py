"""Decoding with any causal language model of transformers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Finished rows are dropped when at least this share of the rows has finished: selecting rows copies the cache.
_WORTH_DROPPING = 0.25
# Prompts of unequal length need an attention mask of prompts x longest x longest entries.
_MASK_ENTRIES = 2**26


class GenericDecoder:
    """A batch of left-padded prompts behind a dynamic cache; each prompt is read once and then repeated."""

    def __init__(self, model: PreTrainedModel, pad_id: int):
        self._model = model
        self._pad_id = pad_id
        self._accepted = set(inspect.signature(model.forward).parameters)

    def refresh(self) -> None:
        """Nothing is copied from the model."""
        self._model.eval()

    def size(self, prompt_tokens: int, prompts: int, samples: int, max_new_tokens: int) -> int:
        if prompts * prompt_tokens**2 > _MASK_ENTRIES and prompts > 1:
            return 2**62
        return prompts * samples * (prompt_tokens + max_new_tokens)

    def start(self, prompts: list[list[int]], samples: int, max_new_tokens: int) -> Tensor:
        width = max(map(len, prompts))
        ids_PT = torch.tensor([[self._pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
        blank_P1 = torch.tensor([[width - len(prompt)] for prompt in prompts])
        mask_PT = (torch.arange(width) >= blank_P1).long()
        place_PT = (torch.arange(width) - blank_P1).clamp(min=0)
        device = self._model.device
        self._cache = None
        output = self._forward(ids_PT.to(device), mask_PT.to(device), place_PT.to(device))
        if samples > 1:
            self._cache.batch_repeat_interleave(samples)
        self._mask_RT = mask_PT.to(device).repeat_interleave(samples, 0)
        self._place_R1 = place_PT[:, -1:].to(device).repeat_interleave(samples, 0)
        return output

    def advance(self, ids_R: Tensor) -> Tensor:
        self._mask_RT = torch.cat([self._mask_RT, self._mask_RT.new_ones(len(ids_R), 1)], 1)
        self._place_R1 = self._place_R1 + 1
        return self._forward(ids_R[:, None], self._mask_RT, self._place_R1)

    def shrink(self, alive_R: Tensor) -> Tensor | None:
        kept = alive_R.nonzero()[:, 0]
        if len(kept) > (1 - _WORTH_DROPPING) * len(alive_R):
            return None
        self._cache.batch_select_indices(kept)
        self._mask_RT, self._place_R1 = self._mask_RT[kept], self._place_R1[kept]
        return kept

    def _forward(self, ids_RT: Tensor, mask_RT: Tensor, place_RT: Tensor) -> Tensor:
        """Logits (R, V) behind the last column; the cache grows by ``ids_RT``."""
        inputs: dict[str, Any] = {"position_ids": place_RT, "logits_to_keep": 1}
        output = self._model(
            input_ids=ids_RT,
            attention_mask=mask_RT,
            past_key_values=self._cache,
            use_cache=True,
            **{name: value for name, value in inputs.items() if name in self._accepted},
        )
        self._cache = output.past_key_values
        return output.logits[:, -1]
