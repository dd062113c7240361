"""PPO's critic: a second model that predicts, before each token of an answer, the reward that the answer will get.

A copy of the model that training starts from, its head over the vocabulary replaced by one output that starts at zero.
Sources: released PPO script (gamma = lambda = 1, value clip 0.5, a learning rate of its own).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from restool.backends.local.optimisation import Optimiser
from restool.backends.local.packing import TokenScorer, spread
from restool.backends.local.rollouts import Rollouts
from restool.core import advantages, surrogates
from restool.settings import RLSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Critic:
    """Value model, its optimiser and the targets of the present step."""

    def __init__(self, start: PreTrainedModel, settings: RLSettings, *, packed: bool):
        assert settings.critic_learning_rate is not None  # `algorithms.check` has seen to it
        self.model = copy.deepcopy(start)
        width = self.model.get_input_embeddings().weight.shape[1]
        head = nn.Linear(width, 1, bias=False).to(device=start.device, dtype=start.dtype)
        nn.init.zeros_(head.weight)
        self.model.set_output_embeddings(head)
        self._micro_tokens = settings.micro_tokens
        self._scorer = TokenScorer(self.model, packed=packed)
        self._optimiser = Optimiser(
            self.model,
            learning_rate=settings.critic_learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            gradient_clip=settings.gradient_clip,
        )

    @torch.no_grad()
    def assess(self, answers: Rollouts, reward_B: Tensor) -> Tensor:
        """(B, T) whitened advantages; keeps values and returns as this step's targets."""
        mask_BT = answers.batch.mask_BT
        self._value_BT = torch.zeros(mask_BT.shape)
        every_B = torch.ones(len(mask_BT), dtype=torch.bool)
        for trees in self._scorer.micro_batches(answers.trees(every_B), self._micro_tokens):
            rows_B, value_BT = self.values(trees)
            self._value_BT[rows_B, : value_BT.shape[1]] = value_BT.cpu()
        advantage_BT, self._return_BT = advantages.gae(reward_B, self._value_BT, mask_BT)
        return advantage_BT

    def values(self, trees: list[Any]) -> tuple[Tensor, Tensor]:
        """(rows_B, value_BT) of what the scorer's `micro_batches` yields; padding is 0."""
        batch, output_N1 = self._scorer.outputs(trees)
        value_BT = spread(output_N1[:, 0].float(), batch.place_N.to(output_N1.device), batch.shape)
        return torch.tensor([row for tree in trees for row in tree.rows]), value_BT

    def update(self, answers: Rollouts, in_batch_B: Tensor, factor: float) -> dict[str, float]:
        """One update on the answers of a mini-batch; the loss and the gradient's norm."""
        mask_BT = answers.batch.mask_BT
        tokens = float(mask_BT[in_batch_B].sum())
        total = 0.0
        for trees in self._scorer.micro_batches(answers.trees(in_batch_B), self._micro_tokens):
            rows_B, value_BT = self.values(trees)
            old_BT, target_BT, inside_BT = (
                x[rows_B, : value_BT.shape[1]].to(value_BT.device) for x in (self._value_BT, self._return_BT, mask_BT)
            )
            share = float(inside_BT.sum()) / tokens
            loss = share * surrogates.value_loss(value_BT, old_BT, target_BT.float(), inside_BT)
            loss.backward()
            total += float(loss.detach())
        return {"value_loss": total, "critic_norm": self._optimiser.step(factor)}

    def explained_variance(self, answers: Rollouts) -> float:
        """How much of the returns' variance the values before this step's updates explain."""
        return surrogates.explained_variance(self._value_BT, self._return_BT.float(), answers.batch.mask_BT)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
