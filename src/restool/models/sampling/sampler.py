"""The sampling loop, common to all models.

Prompts are sorted by length and answered in batches of bounded size. A decoder (`generic.GenericDecoder`,
`qwen3.Qwen3Decoder`) holds the key-value cache of a batch and turns the last token of every row into the
logits of the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from restool.core.errors import ModelError
from restool.models.sampling import drawing
from restool.models.sampling.answers import Answers, collect

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DEFAULT_BATCH_TOKENS = 32_768


class Decoder(Protocol):
    """The state of one batch: ``len(prompts) * samples`` rows, the answers of a prompt side by side."""

    def start(self, prompts: list[list[int]], samples: int, max_new_tokens: int) -> Tensor:
        """Read the prompts; the logits (P, V) of each one's first answer token."""
        ...

    def advance(self, ids_R: Tensor) -> Tensor:
        """Append one token to every row; the logits (R, V) of the next."""
        ...

    def shrink(self, alive_R: Tensor) -> Tensor | None:
        """Drop finished rows if that pays: the kept rows' indices (all living, perhaps some others), or None."""
        ...

    def size(self, prompt_tokens: int, prompts: int, samples: int, max_new_tokens: int) -> int:
        """Cached tokens of a batch whose longest prompt has ``prompt_tokens``."""
        ...

    def refresh(self) -> None:
        """Read the model's weights again."""
        ...


class Sampler:
    """Generates answers with a model whose weights may change between calls."""

    def __init__(self, decoder: Decoder, stop_ids: Iterable[int], vocabulary: int, device: torch.device):
        self._decoder = decoder
        self._device = device
        self._is_stop_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._is_stop_V[[token for token in stop_ids if token < vocabulary]] = True

    def refresh(self) -> None:
        """Read the model's weights again. `generate` does so itself at its start."""
        self._decoder.refresh()

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int,
        seed: int,
        batch_tokens: int | None = None,
    ) -> Answers:
        """Answer each prompt ``samples`` times; ``temperature`` 0 takes the likeliest token each time.

        ``batch_tokens`` bounds the tokens held in the key-value cache at once (one prompt always fits). It
        changes speed and memory; the answers depend on it by floating-point rounding at most.
        """
        if not all(prompts):
            raise ModelError("a prompt has no tokens; check the chat template")
        self.refresh()
        rows = len(prompts) * samples
        uniform_TB = drawing.uniforms(rows, max_new_tokens, seed).to(self._device) if temperature > 0 else None
        output = _Output((max_new_tokens, rows), self._device)
        limit = batch_tokens or DEFAULT_BATCH_TOKENS
        for batch in self._batches(prompts, samples, max_new_tokens, limit):
            row_R = (torch.tensor(batch)[:, None] * samples + torch.arange(samples)).flatten().to(self._device)
            self._answer([prompts[p] for p in batch], samples, row_R, uniform_TB, temperature, output)
        return output.answers(prompts, samples)

    def _batches(self, prompts: list[list[int]], samples: int, max_new_tokens: int, limit: int) -> Iterator[list[int]]:
        """Indices of prompts, similar lengths together, longest first."""
        batch: list[int] = []
        longest = 0
        for index in sorted(range(len(prompts)), key=lambda p: (-len(prompts[p]), p)):
            longest = longest or len(prompts[index])
            if batch and self._decoder.size(longest, len(batch) + 1, samples, max_new_tokens) > limit:
                yield batch
                batch, longest = [], len(prompts[index])
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()  # the output's buffers come from outside, so that training can use them
    def _answer(
        self,
        prompts: list[list[int]],
        samples: int,
        row_R: Tensor,
        uniform_TB: Tensor | None,
        temperature: float,
        output: _Output,
    ) -> None:
        """Answer one batch; ``row_R`` are the places of its rows in the output."""
        positions = output.ids_TB.shape[0]
        logits_RV = self._decoder.start(prompts, samples, positions).repeat_interleave(samples, 0)
        alive_R = torch.ones(len(row_R), dtype=torch.bool, device=self._device)
        for position in range(positions):
            uniform_R = None if uniform_TB is None else uniform_TB[position, row_R]
            ids_R, logprob_R, entropy_R = drawing.draw(logits_RV, uniform_R, temperature)
            stopped_R = self._is_stop_V[ids_R]
            output.write(position, row_R, ids_R, logprob_R, entropy_R, alive_R, stopped_R)
            alive_R = alive_R & ~stopped_R
            if position + 1 == positions or not alive_R.any():
                break
            if (kept := self._decoder.shrink(alive_R)) is not None:
                row_R, alive_R, ids_R = row_R[kept], alive_R[kept], ids_R[kept]
            logits_RV = self._decoder.advance(ids_R)


class _Output:
    """Buffers of all rows, position by position; rows behind their stop token are overwritten at will."""

    def __init__(self, shape: tuple[int, int], device: torch.device):
        self.ids_TB = torch.zeros(shape, dtype=torch.long, device=device)
        self.logprob_TB = torch.zeros(shape, device=device)
        self.entropy_TB = torch.zeros(shape, device=device)
        self.length_B = torch.zeros(shape[1], dtype=torch.long, device=device)
        self.finished_B = torch.zeros(shape[1], dtype=torch.bool, device=device)

    def write(
        self,
        position: int,
        row_R: Tensor,
        ids_R: Tensor,
        logprob_R: Tensor,
        entropy_R: Tensor,
        alive_R: Tensor,
        stopped_R: Tensor,
    ) -> None:
        self.ids_TB[position, row_R] = ids_R
        self.logprob_TB[position, row_R] = logprob_R
        self.entropy_TB[position, row_R] = entropy_R
        self.length_B[row_R] += alive_R
        self.finished_B[row_R] |= alive_R & stopped_R

    def answers(self, prompts: list[list[int]], samples: int) -> Answers:
        answers = collect(
            self.ids_TB.T,
            self.logprob_TB.T,
            self.entropy_TB.T,
            self.length_B,
            self.finished_B,
            prompts,
            samples,
        )
        if not answers.logprob_BT.isfinite().all():
            raise ModelError("the model's probabilities are not numbers: its weights have diverged or are damaged")
        return answers


def make_sampler(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stop_ids: Iterable[int]) -> Sampler:
    """The fastest sampler for ``model``: the Qwen3 decoder of this package, else one on top of transformers."""
    from restool.models.sampling.generic import GenericDecoder
    from restool.models.sampling.qwen3 import Qwen3Decoder, supports

    if supports(model):
        decoder: Decoder = Qwen3Decoder(model)
    else:
        decoder = GenericDecoder(model, tokenizer.pad_token_id or 0)
    return Sampler(decoder, stop_ids, model.config.get_text_config().vocab_size, model.device)
