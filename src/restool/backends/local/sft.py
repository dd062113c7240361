"""Supervised fine-tuning: minus the log-probability of the demonstrations' answers, stop token included.

Demonstrations over the same tool list stand side by side and share its computation. The order is a function of
(seed, step) alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restool import algorithms
from restool.algorithms import Algorithm
from restool.backends.local import optimisation
from restool.backends.local.packing import TokenScorer, Tree
from restool.backends.local.session import Session
from restool.backends.seeds import derived_seed
from restool.core.batch import AnswerBatch
from restool.core.errors import DataError
from restool.core.regions import region_ids_batch
from restool.data.rows import Demonstration, read_demonstrations
from restool.models import chat
from restool.models.offsets import Decoder
from restool.settings import SFTSettings


@dataclass(frozen=True)
class Example:
    """A demonstration as ids; ``answer`` ends with the stop token."""

    prompt: list[int]
    answer: list[int]
    group: int
    phase: int

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def train(session: Session, record: Algorithm, prepared: Path) -> None:
    """Train on the demonstrations of ``prepared`` and finish the run."""
    settings = session.settings.training.sft
    examples = _examples(session, read_demonstrations(prepared), settings.max_tokens)
    curriculum = Curriculum(examples, settings, session.settings.seed)
    scorer = TokenScorer(session.model)
    decoder = Decoder(session.tokenizer, chat.stop_ids(session.tokenizer))
    optimiser = optimisation.Optimiser(
        session.model,
        learning_rate=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        gradient_clip=settings.gradient_clip,
    )

    def step(number: int) -> dict[str, float]:
        started = time.perf_counter()
        batch = curriculum.batch(number)
        weight_BT, mask_BT = _weights(record, batch, decoder, session.settings.method.weights)
        share_BT = optimisation.gradient(algorithms.aggregate(record), mask_BT, weight_BT)
        loss = 0.0
        for trees in scorer.micro_batches(trees_of(batch), settings.micro_tokens):
            scored = scorer(trees)
            share = share_BT[scored.rows_B, : scored.logprob_BT.shape[1]].to(scored.logprob_BT.device)
            loss_BT, _ = algorithms.surrogate(record)(scored.logprob_BT, None, None)
            micro = (loss_BT * share).sum()
            micro.backward()
            loss += float(micro.detach())
        factor = learning_rate_factor(settings, number, curriculum.steps)
        norm = optimiser.step(factor)
        tokens = sum(map(len, batch))
        return {
            "loss/sft": loss,
            "grad/norm": norm,
            "learning_rate": settings.learning_rate * factor,
            "tokens": tokens,
            "length/mean": float(mask_BT.sum(1).float().mean()),
            "time/update": time.perf_counter() - started,
            "throughput/tokens_per_second": tokens / (time.perf_counter() - started),
        }

    metrics = session.steps(curriculum.steps, settings.checkpoint_every, {"optimiser": optimiser}, step)
    session.finish(metrics)


class Curriculum:
    """Which demonstrations each step sees.

    The steps fall into stages at ``phase_ends``: first only demonstrations of phase 0, then only of phase 1, then of
    phase 2; with both ends at 0 there is one stage with all of them. In a stage, groups are shuffled once an epoch.
    """

    def __init__(self, examples: Sequence[Example], settings: SFTSettings, seed: int):
        self._batch, self._seed = settings.batch, seed
        self.steps = settings.steps or math.ceil(settings.epochs * len(examples) / settings.batch)
        ends = [round(share * self.steps) for share in settings.phase_ends]
        pools = [list(examples)]
        if ends[1] > 0:
            pools = [[e for e in examples if e.phase == phase] or list(examples) for phase in range(3)]
        self._begins = [0, *ends] if ends[1] > 0 else [0]
        self._pools = [_groups(pool) for pool in pools]

    def batch(self, step: int) -> list[Example]:
        """The demonstrations of step 1, 2, ...; members of a group stand side by side."""
        stage = max(i for i, begin in enumerate(self._begins) if step > begin)
        first = (step - 1 - self._begins[stage]) * self._batch
        size = sum(map(len, self._pools[stage]))
        found: list[Example] = []
        for epoch in range(first // size, (first + self._batch - 1) // size + 1):
            order = self._order(stage, epoch)
            start = max(first - epoch * size, 0)
            found += order[start : first + self._batch - epoch * size]
        return found

    def _order(self, stage: int, epoch: int) -> list[Example]:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "demonstrations", stage, epoch))
        groups = self._pools[stage]
        return [e for index in torch.randperm(len(groups), generator=generator).tolist() for e in groups[index]]


def trees_of(batch: Sequence[Example]) -> list[Tree]:
    """Neighbours of one group share what their prompts have in common; ``rows`` are positions in ``batch``."""
    trees = []
    for members in _groups(list(enumerate(batch)), key=lambda pair: pair[1].group):
        prompts = [example.prompt for _, example in members]
        shared = _common_prefix(prompts)
        branches = [example.prompt[shared:] + example.answer for _, example in members]
        targets = [len(example.answer) for _, example in members]
        trees.append(Tree(prompts[0][:shared], branches, targets, [row for row, _ in members]))
    return trees


def _common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many ids all prompts begin with: those that the first and the last in sorted order share."""
    low, high = min(prompts), max(prompts)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def learning_rate_factor(settings: SFTSettings, step: int, steps: int) -> float:
    return optimisation.warmup_constant_linear(
        step, steps, settings.warmup_steps, settings.constant_fraction, settings.final_learning_rate
    )


def _groups(items: Sequence[Any], key: Any = lambda example: example.group) -> list[list[Any]]:
    """Runs of neighbours with the same key."""
    groups: list[list[Any]] = []
    for item in items:
        if groups and key(groups[-1][0]) == key(item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _examples(session: Session, demonstrations: Sequence[Demonstration], max_tokens: int) -> list[Example]:
    tokenizer, thinking = session.tokenizer, session.settings.model.thinking
    stop = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else chat.stop_ids(tokenizer)[0]
    answers = tokenizer([d.output for d in demonstrations], add_special_tokens=False)["input_ids"]
    prompts = chat.prompt_ids_batch(tokenizer, [(d.system, d.user) for d in demonstrations], thinking=thinking)
    examples = [
        Example(prompt, [*answer, stop], d.group, d.phase)
        for d, prompt, answer in zip(demonstrations, prompts, answers, strict=True)
    ]
    fitting = [example for example in examples if len(example) <= max_tokens]
    if len(fitting) < len(examples):
        session.report(
            f"{len(examples) - len(fitting)} of {len(examples)} demonstrations are longer than "
            f"training.sft.max_tokens={max_tokens} and are left out"
        )
    if not fitting:
        raise DataError(f"no demonstration is as short as training.sft.max_tokens={max_tokens}; raise it")
    return fitting


def _weights(
    record: Algorithm, batch: Sequence[Example], decoder: Decoder, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """weight_BT and mask_BT of the answers."""
    lengths_B = torch.tensor([len(example.answer) for example in batch])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    if record.weights == "uniform":
        return mask_BT.float(), mask_BT
    decoded = decoder.decode_batch([example.answer for example in batch])
    texts, offsets = [d.text for d in decoded], [d.offsets for d in decoded]
    region_BT = region_ids_batch(texts, offsets, mask_BT.shape[1])
    return algorithms.weight_scheme(record)(AnswerBatch(texts, offsets, mask_BT, region_BT), **arguments), mask_BT
