"""Statistics by region that `entropy` and `optimal` weights read, carried from step to step.

- Mean entropies: of each batch alone, or a running mean (``method.entropy_decay``).
- beta of Theorem 2: from the prompts of each step that ``method.beta_prompts`` sets aside. Their answers take no part
  in the update, so that weights are never fitted to the gradients that they weigh. The sums behind beta decay by
  ``method.beta_decay`` a step. A region that no such answer has had tokens of yet takes the mean over all tokens, and
  none counts as less than a hundredth of that mean: a region without any gradient would take all the weight.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from restool.backends.local.packing import TokenScorer
from restool.backends.local.rollouts import Rollouts
from restool.core.derived_weights import REGIONS, region_beta, running_entropy
from restool.core.regions import Region
from restool.settings import MethodSettings

_LEAST_BETA = 0.01  # of the mean over all tokens


class Signals:
    """Fills ``entropy_R`` and ``beta_R`` of the batches of one run, step by step."""

    def __init__(self, method: MethodSettings, scorer: TokenScorer):
        self._method, self._scorer = method, scorer
        self._entropy_R: Tensor | None = None
        self._square_R = torch.zeros(REGIONS, dtype=torch.float64)
        self._count_R = torch.zeros(REGIONS, dtype=torch.float64)

    def observe(self, answers: Rollouts, advantage_BT: Tensor) -> Rollouts:
        """``answers`` with the signals as they stand after this step's answers."""
        changes: dict[str, Tensor] = {}
        if self._method.entropy_decay is not None:
            self._entropy_R = running_entropy(self._entropy_R, answers.batch, decay=self._method.entropy_decay)
            changes["entropy_R"] = self._entropy_R
        if self._method.beta_prompts:
            self._measure(answers, advantage_BT)
            changes["beta_R"] = self._beta()
        return replace(answers, batch=replace(answers.batch, **changes)) if changes else answers

    def metrics(self) -> dict[str, float]:
        """``beta/<region>`` of the regions that have been measured."""
        beta_R = region_beta(self._square_R[None], self._count_R[None])
        return {f"beta/{r.name.lower()}": float(beta_R[r]) for r in Region if not beta_R[r].isnan()}

    def state_dict(self) -> dict[str, Any]:
        return {"entropy": self._entropy_R, "square": self._square_R, "count": self._count_R}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._entropy_R, self._square_R, self._count_R = state["entropy"], state["square"], state["count"]

    def _measure(self, answers: Rollouts, advantage_BT: Tensor) -> None:
        aside = answers.batch.group_B >= len(answers.prompts) - self._method.beta_prompts
        measured_B = aside & (advantage_BT != 0).any(1)
        norms = [self._square_norms(answers, int(b), advantage_BT) for b in measured_B.nonzero()[:, 0]]
        counts = [torch.bincount(_regions(answers, int(b)), minlength=REGIONS) for b in measured_B.nonzero()[:, 0]]
        decay = self._method.beta_decay
        self._square_R = decay * self._square_R + sum(norms, torch.zeros(REGIONS, dtype=torch.float64))
        self._count_R = decay * self._count_R + sum(counts, torch.zeros(REGIONS, dtype=torch.long))

    def _square_norms(self, answers: Rollouts, row: int, advantage_BT: Tensor) -> Tensor:
        """(R,) squared norm of the gradient of ``A * sum of log p`` over the tokens of each region of one answer."""
        only_B = torch.arange(len(answers.batch)) == row
        scored = self._scorer(answers.trees(only_B))
        region_T = _regions(answers, row).to(scored.logprob_BT.device)
        product_T = scored.logprob_BT[0] * advantage_BT[row, : len(region_T)].to(scored.logprob_BT.device)
        parameters = [p for p in self._scorer.model.parameters() if p.requires_grad]
        square_R = torch.zeros(REGIONS, dtype=torch.float64)
        for region in region_T.unique().tolist():
            total = (product_T * (region_T == region)).sum()
            gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            norms = torch._foreach_norm([g.float() for g in gradients if g is not None])
            square_R[region] = float(torch.stack(norms).square().sum())
        return square_R

    def _beta(self) -> Tensor:
        """(R,) above zero everywhere; 1 as long as nothing has been measured."""
        total, count = float(self._square_R.sum()), float(self._count_R.sum())
        if total == 0:
            return torch.ones(REGIONS)
        mean = total / count
        beta_R = region_beta(self._square_R[None], self._count_R[None])
        return beta_R.nan_to_num(nan=mean).clamp(min=_LEAST_BETA * mean)


def _regions(answers: Rollouts, row: int) -> Tensor:
    return answers.batch.region_BT[row, : len(answers.ids[row])].long()
