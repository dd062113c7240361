"""From prompts to scored answers, and what is logged about them.

Which prompts a step sees and the random numbers of its sampling depend on (data, seed, step) alone: runs of different
methods with the same seed are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restool.backends.local.packing import Tree
from restool.backends.local.session import Session, derived_seed
from restool.core import rewards, schedules
from restool.core.batch import AnswerBatch
from restool.core.errors import ConfigurationError
from restool.core.regions import Region, region_ids_batch
from restool.data.rows import Row, read_rows
from restool.models import chat
from restool.models.offsets import Decoder
from restool.models.sampling import make_sampler

_SHOWN_PROMPTS = 2


@dataclass(frozen=True)
class Rollouts:
    """One step's answers, ``samples`` to each prompt, side by side. All tensors lie on the CPU."""

    rows: list[Row]
    prompts: list[list[int]]
    ids: list[list[int]]
    completions: list[str]
    exact: list[bool]
    batch: AnswerBatch

    def total_tokens(self, row: int) -> int:
        """Tokens of an answer and its prompt."""
        return len(self.prompts[row * len(self.prompts) // len(self.ids)]) + len(self.ids[row])

    def trees(self, keep_B: Tensor) -> list[Tree]:
        """A tree for every prompt, with those of its answers that ``keep_B`` (bool) marks."""
        samples = len(self.ids) // len(self.prompts)
        trees = []
        for index, prompt in enumerate(self.prompts):
            members = [b for b in range(index * samples, (index + 1) * samples) if keep_B[b]]
            if members:
                answers = [self.ids[b] for b in members]
                trees.append(Tree(prompt, answers, [len(answer) for answer in answers], members))
        return trees


class Collector:
    """Samples and scores the answers of one step after another."""

    def __init__(self, session: Session, prepared: Path):
        self.settings = session.settings
        self._rl = session.settings.training.rl
        self._tokenizer = session.tokenizer
        stops = chat.stop_ids(session.tokenizer)
        self._sampler = make_sampler(session.model, session.tokenizer, stops)
        self._decoder = Decoder(session.tokenizer, stops)
        self._rows = read_rows(prepared, "train")
        if len(self._rows) < self._rl.prompts:
            raise ConfigurationError(
                f"training.rl.prompts={self._rl.prompts}, but {prepared} has only {len(self._rows)} training rows"
            )

    def rows(self, step: int) -> list[Row]:
        """The prompts of step 1, 2, ...: every epoch a new order, its incomplete last step left out (as released)."""
        per_epoch = len(self._rows) // self._rl.prompts
        epoch, place = divmod(step - 1, per_epoch)
        generator = torch.Generator().manual_seed(derived_seed(self.settings.seed, "prompts", epoch))
        order = torch.randperm(len(self._rows), generator=generator).tolist()
        return [self._rows[i] for i in order[place * self._rl.prompts : (place + 1) * self._rl.prompts]]

    def sample(self, step: int) -> Sampled:
        rows = self.rows(step)
        thinking = self.settings.model.thinking
        pairs = [(row.system, row.user) for row in rows]
        prompts = chat.prompt_ids_batch(self._tokenizer, pairs, thinking=thinking)
        answers = self._sampler.generate(
            prompts,
            samples=self._rl.samples,
            temperature=self._rl.temperature,
            max_new_tokens=self._rl.max_new_tokens,
            seed=derived_seed(self.settings.seed, "sampling", step),
        )
        # Cloned: what is made under inference mode cannot take part in a gradient.
        kept = [tensor.cpu().clone() for tensor in (answers.mask_BT, answers.logprob_BT, answers.entropy_BT)]
        return Sampled(step, rows, prompts, answers.ids, *kept)

    def score(self, sampled: Sampled) -> Rollouts:
        """Decode, find the regions, reward."""
        settings, samples = self.settings, self._rl.samples
        reference_step = schedules.clock(
            sampled.step,
            self._rl.steps,
            clock=settings.schedule.clock,
            shape=settings.schedule.shape,
            horizon=settings.schedule.horizon,
        )
        decoded = self._decoder.decode_batch(sampled.ids)
        texts, offsets = [d.text for d in decoded], [d.offsets for d in decoded]
        completions = [d.completion for d in decoded]
        labels = [row.ground_truth for row in sampled.rows for _ in range(samples)]
        scores = rewards.score_batch(
            completions, labels, preset=settings.reward.preset, step=reference_step, **settings.reward.switches
        )
        batch = AnswerBatch(
            texts=texts,
            offsets=offsets,
            mask_BT=sampled.mask_BT,
            region_BT=region_ids_batch(texts, offsets, sampled.mask_BT.shape[1]),
            group_B=torch.arange(len(sampled.rows)).repeat_interleave(samples),
            reward_B=torch.tensor([s.total for s in scores]),
            format_B=torch.tensor([s.format for s in scores]),
            correctness_B=torch.tensor([s.correctness for s in scores]),
            logprob_BT=sampled.logprob_BT,
            entropy_BT=sampled.entropy_BT,
            step=reference_step,
            progress=sampled.step / self._rl.steps,
            seed=derived_seed(settings.seed, "weights", sampled.step) & 0xFFFF_FFFF,
        )
        exact = [rewards.is_exact(c, label) for c, label in zip(completions, labels, strict=True)]
        return Rollouts(sampled.rows, sampled.prompts, sampled.ids, completions, exact, batch)


@dataclass(frozen=True)
class Sampled:
    """Answers before anything is known about them."""

    step: int
    rows: list[Row]
    prompts: list[list[int]]
    ids: list[list[int]]
    mask_BT: Tensor
    logprob_BT: Tensor
    entropy_BT: Tensor


def metrics(rollouts: Rollouts, weight_BT: Tensor) -> dict[str, float]:
    """Means over a step's answers; by region over its tokens (a region that no answer has is left out)."""
    batch = rollouts.batch
    length_B = batch.mask_BT.sum(1)
    reward_GS = batch.reward_B.view(len(rollouts.rows), -1)
    found = {
        "reward/total": float(batch.reward_B.mean()),
        "reward/format": float(batch.format_B.mean()),
        "reward/correctness": float(batch.correctness_B.mean()),
        "reward/exact": sum(rollouts.exact) / len(rollouts.exact),
        "signal/groups": float((reward_GS.amax(1) > reward_GS.amin(1)).float().mean()),
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


def shown(step: int, rollouts: Rollouts, weight_BT: Tensor, advantage_BT: Tensor) -> list[dict[str, Any]]:
    """The answers to the first prompts, for rollouts.jsonl."""
    samples = len(rollouts.ids) // len(rollouts.rows)
    return [
        {
            "step": step,
            "prompt": rollouts.rows[index].user,
            "system": rollouts.rows[index].system,
            "answers": [
                _shown_answer(rollouts, b, rollouts.rows[index], weight_BT, advantage_BT)
                for b in range(index * samples, (index + 1) * samples)
            ],
        }
        for index in range(min(_SHOWN_PROMPTS, len(rollouts.rows)))
    ]


def _shown_answer(rollouts: Rollouts, b: int, row: Row, weight_BT: Tensor, advantage_BT: Tensor) -> dict[str, Any]:
    batch, length = rollouts.batch, len(rollouts.ids[b])
    return {
        "text": batch.texts[b],
        "ids": rollouts.ids[b],
        "offsets": batch.offsets[b].tolist(),
        "regions": batch.region_BT[b, :length].tolist(),
        "weights": _rounded(weight_BT[b, :length]),
        "reward": float(batch.reward_B[b]),
        "format": float(batch.format_B[b]),
        "correctness": float(batch.correctness_B[b]),
        "advantage": float(advantage_BT[b, :length].mean()),
        "ground_truth": row.ground_truth,
    }


def _rounded(values: Tensor) -> Sequence[float]:
    return [round(value, 4) for value in values.tolist()]
