"""A method on a step's answers, without verl: advantages, token weights, and the columns that verl's loss reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from restool import algorithms
from restool.backends.verl import configuration, folding
from restool.core import advantages
from restool.core.batch import AnswerBatch
from restool.core.derived_weights import running_entropy
from restool.core.weights import released_crashes
from restool.settings import RunSettings


class Recipe:
    """The registry's composition for one run; carries running entropies from step to step."""

    def __init__(self, settings: RunSettings):
        self.settings = settings
        self.record = algorithms.get(settings.method.algorithm)
        self._entropy_R: Tensor | None = None

    def advantages(self, batch: AnswerBatch, reference_BT: Tensor | None) -> Tensor | None:
        """(B, T) an answer's advantage on each of its tokens; None for ``gae``, which verl computes itself.

        ``reference_BT``: log-probabilities of the frozen model, if the method has a KL penalty in its reward.
        """
        function = algorithms.advantage(self.record)
        if function is None:
            return None
        reward_B = batch.reward_B
        if reference_BT is not None and self.record.kl_in_reward:
            reward_B = advantages.kl_in_reward(
                reward_B, batch.logprob_BT, reference_BT, batch.mask_BT, self.settings.method.kl_coefficient
            )
        return function(reward_B, batch.group_B)[:, None] * batch.mask_BT

    def weights(self, batch: AnswerBatch) -> Tensor:
        """(B, T) token weights; call once a step."""
        method = self.settings.method
        if method.entropy_decay is not None:
            self._entropy_R = running_entropy(self._entropy_R, batch, decay=method.entropy_decay)
            batch = replace(batch, entropy_R=self._entropy_R)
        return algorithms.weight_scheme(self.record)(batch, **method.weights)

    def columns(self, batch: AnswerBatch, advantage_BT: Tensor, weight_BT: Tensor, *, ranks: int) -> dict[str, Tensor]:
        """What verl's loss is given, by the names of its columns. ``ranks``: devices that share a mini-batch."""
        rl = self.settings.training.rl
        if configuration.by_micro_batch(self.settings):
            return {"advantages": advantage_BT, "rollout_is_weights": weight_BT}
        per_batch = rl.prompts // rl.minibatches * rl.samples
        batch_B = folding.mini_batches(len(batch), ranks, per_batch)
        factor_BT = folding.factors(self.record, batch.mask_BT, weight_BT, batch_B, rl.max_new_tokens)
        return {"advantages": advantage_BT * factor_BT}

    def diagnostics(self, batch: AnswerBatch) -> dict[str, float]:
        """At how many spans the released weighting would have raised."""
        if self.record.weights != "released":
            return {}
        return {"weight/released_crashes": float(released_crashes(batch).sum())}

    def state(self) -> dict[str, Any]:
        """What the next step depends on, as JSON."""
        return {"entropy": None if self._entropy_R is None else self._entropy_R.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self._entropy_R = None if state["entropy"] is None else torch.tensor(state["entropy"])
