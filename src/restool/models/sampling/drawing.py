"""One token per row from logits and a uniform random number."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor


def uniforms(rows: int, positions: int, seed: int) -> Tensor:
    """One number in (0, 1] for every (row, position), float32 on the CPU, shape (positions, rows).

    A function of seed, row, number of rows and position alone: neither the model, nor the batching, nor the
    other rows' answers, nor a later length limit change a row's numbers. Methods that are trained on the same
    prompts with the same seed hence sample with common random numbers.
    """
    generator = numpy.random.Generator(numpy.random.Philox(seed))
    return torch.from_numpy(1.0 - generator.random((positions, rows), dtype=numpy.float32))


def draw(logits_BV: Tensor, uniform_B: Tensor | None, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, log-probabilities and entropies, each (B,); ``uniform_B`` None takes the likeliest token.

    The token is the inverse of the cumulative distribution at the uniform number. Because that number is
    above zero and at most one, a token of probability zero is never chosen.
    """
    logits_BV = logits_BV.float()
    if uniform_B is not None and temperature != 1.0:
        logits_BV = logits_BV / temperature
    shifted_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    mass_BV = shifted_BV.exp()
    if uniform_B is None:
        total_B1 = mass_BV.sum(-1, keepdim=True)
        ids_B1 = logits_BV.argmax(-1, keepdim=True)
    else:
        cumulative_BV = mass_BV.cumsum(-1)
        total_B1 = cumulative_BV[:, -1:]
        ids_B1 = torch.searchsorted(cumulative_BV, uniform_B[:, None] * total_B1)
        ids_B1.clamp_(max=logits_BV.shape[-1] - 1)  # only logits that are not numbers lead beyond the end
    log_total_B1 = total_B1.log()
    logprob_B1 = shifted_BV.gather(-1, ids_B1) - log_total_B1
    entropy_B1 = log_total_B1 - (mass_BV * shifted_BV).sum(-1, keepdim=True) / total_B1
    return ids_B1[:, 0], logprob_B1[:, 0], entropy_B1[:, 0]
