"""AdamW on full-precision weights, gradient clipping and learning-rate schedules.

A bfloat16 weight of 0.02 has no neighbour nearer than 1e-4, so that the paper's updates of about 1e-6 would all be
lost: for models in half precision the optimiser keeps a float32 copy of the weights and rounds it into the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from restool.settings import SFTSettings


def warmup_constant_linear(step: int, steps: int, warmup: int, constant: float, final: float) -> float:
    """Factor on the learning rate of step 1..steps: linear warm-up, constant up to the share ``constant`` of the
    steps, then linear down to ``final``."""
    ramp = min(1.0, step / warmup) if warmup else 1.0
    held = constant * steps
    fall = max(0.0, step - held) / max(steps - held, 1e-9)
    return ramp * (1 - (1 - final) * min(fall, 1.0))


def factor_of_sft(settings: SFTSettings, step: int, steps: int) -> float:
    """Factor on the learning rate of step 1..steps of a supervised run."""
    return warmup_constant_linear(
        step, steps, settings.warmup_steps, settings.constant_fraction, settings.final_learning_rate
    )


def linear_decay(step: int, steps: int, final: float) -> float:
    """Factor on the learning rate of step 1..steps: 1 at the first, ``final`` at the last."""
    return 1 - (1 - final) * (step - 1) / max(steps - 1, 1)


class Optimiser:
    """AdamW over a model's parameters, with clipping by global norm."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        gradient_clip: float,
    ):
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._half = [p for p in self._parameters if p.dtype != torch.float32]
        copies = {id(p): p.detach().float().clone().requires_grad_() for p in self._half}
        self._masters = [copies.get(id(p), p) for p in self._parameters]
        self._learning_rate = learning_rate
        self._clip = gradient_clip
        self._adamw = torch.optim.AdamW(
            self._masters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.zero_grad()

    def zero_grad(self) -> None:
        """Zeros, not None: a batch whose gradient is zero still moves the weights by the optimiser's momentum."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch._foreach_zero_([p.grad for p in self._parameters])

    def step(self, factor: float) -> float:
        """One update at ``factor`` times the learning rate; returns the gradient's norm before clipping."""
        self._lift_gradients()
        norm = nn.utils.clip_grad_norm_(self._masters, self._clip, foreach=True)
        for group in self._adamw.param_groups:
            group["lr"] = self._learning_rate * factor
        self._adamw.step()
        self._round_weights()
        self.zero_grad()
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        copies = [m for m, p in zip(self._masters, self._parameters, strict=True) if m is not p]
        return {"adamw": self._adamw.state_dict(), "masters": [copy.detach() for copy in copies]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state["adamw"])
        copies = [m for m, p in zip(self._masters, self._parameters, strict=True) if m is not p]
        with torch.no_grad():
            for copy, stored in zip(copies, state["masters"], strict=True):
                copy.copy_(stored)

    def _lift_gradients(self) -> None:
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            if master is not parameter:
                master.grad = parameter.grad.float()

    @torch.no_grad()
    def _round_weights(self) -> None:
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            if master is not parameter:
                parameter.copy_(master)
                master.grad = None


def neighbours(lengths: Sequence[int], most: int | None) -> list[int]:
    """Sizes of runs of neighbours whose ``lengths`` add up to at most ``most`` (a longer one alone); None: one run."""
    if most is None:
        return [len(lengths)]
    sizes, total = [], 0
    for length in lengths:
        if not sizes or total + length > most:
            sizes.append(0)
            total = 0
        sizes[-1] += 1
        total += length
    return sizes


def gradient(aggregate: Any, mask_BT: Tensor, weight_BT: Tensor, **arguments: Any) -> Tensor:
    """What each token's loss counts for in ``aggregate(loss_BT, mask_BT, weight_BT)``, which is linear in the losses.

    Taken once over a whole mini-batch, so that neither the division into forward passes (a matter of memory) nor
    answers that are left out because their loss is zero change the normaliser.
    """
    loss_BT = torch.zeros(mask_BT.shape, requires_grad=True)
    with torch.enable_grad():
        aggregate(loss_BT, mask_BT, weight_BT, **arguments).backward()
    assert loss_BT.grad is not None
    return loss_BT.grad
