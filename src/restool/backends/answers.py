"""What every backend does with sampled answers: which prompts a step sees, reward, batch for the weights, records.

Both backends call these functions, so that the same answers get the same rewards, regions and weights in both. Prompts
depend on (data, seed, step) alone: runs of different methods with the same seed are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restool.backends.seeds import derived_seed
from restool.core import rewards, schedules
from restool.core.batch import AnswerBatch
from restool.core.errors import ConfigurationError
from restool.core.regions import Region, region_ids_batch
from restool.core.rewards import Reward
from restool.data.rows import Row
from restool.models.offsets import Decoded
from restool.settings import RunSettings

_SHOWN_PROMPTS = 2


def prompts_of_step(count: int, step: int, settings: RunSettings) -> list[int]:
    """Which of ``count`` rows step 1, 2, ... sees: every epoch a new order, its incomplete last step left out (as
    released)."""
    prompts = settings.training.rl.prompts
    if count < prompts:
        raise ConfigurationError(f"training.rl.prompts={prompts}, but there are only {count} training rows")
    epoch, place = divmod(step - 1, count // prompts)
    generator = torch.Generator().manual_seed(derived_seed(settings.seed, "prompts", epoch))
    return torch.randperm(count, generator=generator).tolist()[place * prompts : (place + 1) * prompts]


def reference_step(step: int, settings: RunSettings) -> float:
    """The clock that reward and weights of a training step read."""
    schedule = settings.schedule
    return schedules.clock(
        step, settings.training.rl.steps, clock=schedule.clock, shape=schedule.shape, horizon=schedule.horizon
    )


def rewards_of(completions: Sequence[str], labels: Sequence[str], step: int, settings: RunSettings) -> list[Reward]:
    """The rewards of training step ``step``."""
    reward = settings.reward
    at = reference_step(step, settings)
    return rewards.score_batch(completions, labels, preset=reward.preset, step=at, **reward.switches)


def answer_batch(
    decoded: Sequence[Decoded],
    scores: Sequence[Reward],
    group_B: Tensor,
    mask_BT: Tensor,
    *,
    logprob_BT: Tensor,
    entropy_BT: Tensor,
    step: int,
    settings: RunSettings,
) -> AnswerBatch:
    """Everything that token weights and advantages read, of the answers of training step ``step``."""
    texts, offsets = [d.text for d in decoded], [d.offsets for d in decoded]
    return AnswerBatch(
        texts=texts,
        offsets=offsets,
        mask_BT=mask_BT,
        region_BT=region_ids_batch(texts, offsets, mask_BT.shape[1]),
        group_B=group_B,
        reward_B=torch.tensor([s.total for s in scores]),
        format_B=torch.tensor([s.format for s in scores]),
        correctness_B=torch.tensor([s.correctness for s in scores]),
        length_B=torch.tensor([s.length for s in scores]),
        logprob_BT=logprob_BT,
        entropy_BT=entropy_BT,
        step=reference_step(step, settings),
        progress=step / settings.training.rl.steps,
        seed=derived_seed(settings.seed, "weights", step) & 0xFFFF_FFFF,
    )


def metrics(batch: AnswerBatch, exact: Sequence[bool], weight_BT: Tensor) -> dict[str, float]:
    """Means over a step's answers; by region over its tokens (a region that no answer has is left out)."""
    length_B = batch.mask_BT.sum(1)
    _, group_B = torch.unique(batch.group_B, return_inverse=True)
    spread_G = torch.full((2, int(group_B.max()) + 1), -torch.inf)  # of the reward and of its negative
    for row, reward_B in enumerate((batch.reward_B, -batch.reward_B)):
        spread_G[row].scatter_reduce_(0, group_B, reward_B, "amax")
    found = {
        "reward/total": float(batch.reward_B.mean()),
        "reward/format": float(batch.format_B.mean()),
        "reward/correctness": float(batch.correctness_B.mean()),
        "reward/length": float(batch.length_B.mean()),
        "reward/exact": sum(exact) / len(exact),
        "signal/groups": float((spread_G.sum(0) > 0).float().mean()),
        "entropy/mean": float(batch.entropy_BT[batch.mask_BT].mean()),
        "length/mean": float(length_B.float().mean()),
        "length/max": int(length_B.max()),
        "schedule/reference_step": batch.step,
        "tokens": int(length_B.sum()),
    }
    for region in Region:
        of_region_BT = (batch.region_BT == region) & batch.mask_BT
        if of_region_BT.any():
            found[f"entropy/{region.name.lower()}"] = float(batch.entropy_BT[of_region_BT].mean())
            found[f"weight/{region.name.lower()}"] = float(weight_BT[of_region_BT].mean())
    return found


def shown(
    step: int,
    rows: Sequence[Row],
    ids: Sequence[list[int]],
    batch: AnswerBatch,
    weight_BT: Tensor,
    advantage_BT: Tensor,
) -> list[dict[str, Any]]:
    """The answers to the first prompts, for rollouts.jsonl; the answers to one prompt stand side by side."""
    samples = len(ids) // len(rows)
    return [
        {
            "step": step,
            "prompt": row.user,
            "system": row.system,
            "answers": [
                _shown_answer(batch, b, ids[b], row, weight_BT, advantage_BT)
                for b in range(index * samples, (index + 1) * samples)
            ],
        }
        for index, row in enumerate(rows[:_SHOWN_PROMPTS])
    ]


def _shown_answer(
    batch: AnswerBatch, b: int, ids: list[int], row: Row, weight_BT: Tensor, advantage_BT: Tensor
) -> dict[str, Any]:
    length = len(ids)
    return {
        "text": batch.texts[b],
        "ids": ids,
        "offsets": batch.offsets[b].tolist(),
        "regions": batch.region_BT[b, :length].tolist(),
        "weights": _rounded(weight_BT[b, :length]),
        "reward": float(batch.reward_B[b]),
        "format": float(batch.format_B[b]),
        "correctness": float(batch.correctness_B[b]),
        "length": float(batch.length_B[b]),
        "advantage": float(advantage_BT[b, :length].mean()),
        "ground_truth": row.ground_truth,
    }


def _rounded(values: Tensor) -> Sequence[float]:
    return [round(value, 4) for value in values.tolist()]
