"""The one value that token-weight schemes read: a batch of sampled answers.

Shape suffixes: B answers, T token positions (the longest answer), t tokens of one answer, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnswerBatch:
    """Answers with everything that a weight scheme may need; nothing here is changed after it is made.

    The first four fields are always there; a scheme whose record lists a need (``entropy``, ``beta``, ...) reads the
    field of that name. A batch of demonstrations (SFT) has only the first four.
    """

    texts: list[str]  # cumulative decoding of the sampled ids, special tokens kept
    offsets: list[Tensor]  # per answer (t, 2): start and end character of every sampled token
    mask_BT: Tensor  # bool: sampled positions, the stop token included
    region_BT: Tensor  # int8: `regions.Region`
    group_B: Tensor | None = None  # long: answers to the same prompt
    reward_B: Tensor | None = None  # total
    format_B: Tensor | None = None
    correctness_B: Tensor | None = None
    length_B: Tensor | None = None  # the length score (0 without the switch WITHLENGTH)
    logprob_BT: Tensor | None = None  # float32, of the policy that sampled
    entropy_BT: Tensor | None = None  # nats, of the distribution sampled from
    step: float = 0.0  # reference step (`schedules.clock`)
    progress: float = 0.0  # share of this run's steps, in [0, 1]
    seed: int = 0  # differs from step to step; read by random controls only
    entropy_R: Tensor | None = None  # running mean entropy by region; None: measured on this batch
    beta_R: Tensor | None = None  # gradient variance per token by region, measured on answers not in this batch

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Tensor) -> AnswerBatch:
        """The same batch with only the answers ``rows`` (long indices), in that order."""
        picked = rows.tolist()
        changes: dict[str, object] = {
            "texts": [self.texts[row] for row in picked],
            "offsets": [self.offsets[row] for row in picked],
        }
        per_answer = ("mask_BT", "region_BT", "group_B", "reward_B", "format_B", "correctness_B", "length_B")
        for name in (*per_answer, "logprob_BT", "entropy_BT"):
            value = getattr(self, name)
            if isinstance(value, torch.Tensor):
                changes[name] = value[rows]
        return replace(self, **changes)
