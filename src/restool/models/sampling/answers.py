"""What a sampler returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """Answers to P prompts, ``samples`` each: B = P * samples rows, all answers of a prompt side by side.

    ``logprob_BT`` and ``entropy_BT`` (nats, float32, zero outside ``mask_BT``) describe the distribution that
    was sampled from, that is, after the temperature; greedy answers are described at temperature 1. The tensors
    lie on the model's device; T is the longest answer.
    """

    ids: list[list[int]]  # a sampled stop token is the last id of its row
    finished: list[bool]  # a stop token was sampled, rather than the length limit reached
    logprob_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor
    prompts: list[list[int]]
    samples: int


def collect(
    ids_BT: Tensor,
    logprob_BT: Tensor,
    entropy_BT: Tensor,
    length_B: Tensor,
    finished_B: Tensor,
    prompts: list[list[int]],
    samples: int,
) -> Answers:
    """Cut the buffers of all rows (B, max_new_tokens) to the longest answer and mask what lies behind each."""
    longest = int(length_B.max()) if len(length_B) else 0
    mask_BT = torch.arange(longest, device=length_B.device) < length_B[:, None]
    lengths = length_B.tolist()
    return Answers(
        ids=[row[:length] for row, length in zip(ids_BT[:, :longest].tolist(), lengths, strict=True)],
        finished=finished_B.tolist(),
        logprob_BT=logprob_BT[:, :longest].masked_fill(~mask_BT, 0.0),
        entropy_BT=entropy_BT[:, :longest].masked_fill(~mask_BT, 0.0),
        mask_BT=mask_BT,
        prompts=prompts,
        samples=samples,
    )
