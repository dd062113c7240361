"""From prompts to scored answers.

The random numbers of a step's sampling depend on (seed, step) alone, as its prompts do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restool.backends import answers as records
from restool.backends.local.packing import Tree
from restool.backends.local.session import Session
from restool.backends.seeds import derived_seed
from restool.core import rewards
from restool.core.batch import AnswerBatch
from restool.core.errors import ConfigurationError
from restool.data.rows import Row, read_rows
from restool.models import chat
from restool.models.offsets import Decoder
from restool.models.sampling import make_sampler


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
        opening = chat.opening(session.tokenizer, thinking=session.settings.model.thinking)
        self._decoder = Decoder(session.tokenizer, stops, opening)
        self._rows = read_rows(prepared, "train")
        if len(self._rows) < self._rl.prompts:
            raise ConfigurationError(
                f"training.rl.prompts={self._rl.prompts}, but {prepared} has only {len(self._rows)} training rows"
            )

    def rows(self, step: int) -> list[Row]:
        """The prompts of step 1, 2, ..."""
        return [self._rows[i] for i in records.prompts_of_step(len(self._rows), step, self.settings)]

    def sample(self, step: int) -> Sampled:
        rows = self.rows(step)
        thinking = self.settings.model.thinking
        pairs = [(row.system, row.user) for row in rows]
        kept = self.settings.data.kept_ids
        prompts = chat.prompt_ids_batch(self._tokenizer, pairs, thinking=thinking, last=kept)
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
        samples = self._rl.samples
        decoded = self._decoder.decode_batch(sampled.ids)
        completions = [d.completion for d in decoded]
        labels = [row.ground_truth for row in sampled.rows for _ in range(samples)]
        batch = records.answer_batch(
            decoded,
            records.rewards_of(completions, labels, sampled.step, self.settings),
            torch.arange(len(sampled.rows)).repeat_interleave(samples),
            sampled.mask_BT,
            logprob_BT=sampled.logprob_BT,
            entropy_BT=sampled.entropy_BT,
            step=sampled.step,
            settings=self.settings,
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
