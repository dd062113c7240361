"""Supervised fine-tuning: minus the log-probability of the demonstrations' answers, stop token included.

Demonstrations over the same tool list stand side by side and share its computation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from restool import algorithms
from restool.algorithms import Algorithm
from restool.backends import demonstrations
from restool.backends.demonstrations import Curriculum, Example, neighbours
from restool.backends.local import optimisation
from restool.backends.local.packing import TokenScorer, Tree
from restool.backends.local.session import Session
from restool.models import chat
from restool.models.offsets import Decoder


def train(session: Session, record: Algorithm, prepared: Path) -> None:
    """Train on the demonstrations of ``prepared`` and finish the run."""
    settings = session.settings.training.sft
    examples = demonstrations.read(prepared, session.tokenizer, session.settings, session.report)
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
        weight_BT, mask_BT = demonstrations.weights(record, batch, decoder, session.settings.method.weights)
        share_BT = optimisation.gradient(algorithms.aggregate(record), mask_BT, weight_BT)
        loss = 0.0
        for trees in scorer.micro_batches(trees_of(batch), settings.micro_tokens):
            scored = scorer(trees)
            share = share_BT[scored.rows_B, : scored.logprob_BT.shape[1]].to(scored.logprob_BT.device)
            loss_BT, _ = algorithms.surrogate(record)(scored.logprob_BT, None, None)
            micro = (loss_BT * share).sum()
            micro.backward()
            loss += float(micro.detach())
        factor = optimisation.factor_of_sft(settings, number, curriculum.steps)
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


def trees_of(batch: Sequence[Example]) -> list[Tree]:
    """Neighbours of one group share what their prompts have in common; ``rows`` are positions in ``batch``."""
    trees = []
    for members in neighbours(list(enumerate(batch)), key=lambda pair: pair[1].group):
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
