"""Demonstrations as both backends train on them: their ids, the weights of their tokens, and which ones a step sees.

The order is a function of (seed, step) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restool import algorithms
from restool.algorithms import Algorithm
from restool.backends.seeds import derived_seed
from restool.core.batch import AnswerBatch
from restool.core.errors import DataError
from restool.core.regions import region_ids_batch
from restool.data.rows import read_demonstrations
from restool.models import chat
from restool.models.offsets import Decoder
from restool.settings import RunSettings, SFTSettings


@dataclass(frozen=True)
class Example:
    """A demonstration as ids; ``answer`` ends with the stop token."""

    prompt: list[int]
    answer: list[int]
    group: int
    phase: int

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def read(prepared: Path, tokenizer: Any, settings: RunSettings, report: Callable[[str], None]) -> list[Example]:
    """The demonstrations of ``prepared`` that are short enough; how many are not is reported."""
    demonstrations = read_demonstrations(prepared)
    most = settings.training.sft.max_tokens
    stop = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else chat.stop_ids(tokenizer)[0]
    answers = tokenizer([d.output for d in demonstrations], add_special_tokens=False)["input_ids"]
    pairs = [(d.system, d.user) for d in demonstrations]
    prompts = chat.prompt_ids_batch(tokenizer, pairs, thinking=settings.model.thinking)
    examples = [
        Example(prompt, [*answer, stop], d.group, d.phase)
        for d, prompt, answer in zip(demonstrations, prompts, answers, strict=True)
    ]
    fitting = [example for example in examples if len(example) <= most]
    if len(fitting) < len(examples):
        report(
            f"{len(examples) - len(fitting)} of {len(examples)} demonstrations are longer than "
            f"training.sft.max_tokens={most} and are left out"
        )
    if not fitting:
        raise DataError(f"no demonstration is as short as training.sft.max_tokens={most}; raise it")
    return fitting


def weights(
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
        self._pools = [neighbours(pool) for pool in pools]

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


def neighbours(items: Sequence[Any], key: Callable[[Any], Any] = lambda example: example.group) -> list[list[Any]]:
    """Runs of neighbours with the same key."""
    groups: list[list[Any]] = []
    for item in items:
        if groups and key(groups[-1][0]) == key(item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
