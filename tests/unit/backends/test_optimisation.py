"""Schedules, full-precision updates of half-precision models, and the linear form of a loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from restool.backends.local.optimisation import Optimiser, gradient, linear_decay, warmup_constant_linear
from restool.core.aggregates import AGGREGATES

VALUES = {"learning_rate": 1e-6, "betas": (0.9, 0.999), "weight_decay": 0.0, "gradient_clip": 1.0}


def test_warmup_constant_linear():
    factors = [warmup_constant_linear(step, 100, 10, 0.4, 0.02) for step in (1, 5, 10, 40, 70, 100)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.51, 0.02])
    assert warmup_constant_linear(1, 10, 0, 1.0, 0.0) == warmup_constant_linear(10, 10, 0, 1.0, 0.0) == 1.0


def test_linear_decay():
    assert [linear_decay(step, 5, 0.2) for step in (1, 3, 5)] == pytest.approx([1.0, 0.6, 0.2])
    assert linear_decay(1, 1, 0.02) == 1.0
    assert linear_decay(7, 9, 1.0) == 1.0


def test_half_precision_updates_are_not_lost():
    half = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    whole = copy.deepcopy(half).float()
    optimisers = [Optimiser(model, **{**VALUES, "learning_rate": 1e-5}) for model in (half, whole)]
    before = half.weight.detach().clone()
    for _ in range(400):
        for model, optimiser in zip((half, whole), optimisers, strict=True):
            model(torch.ones(1, 4, dtype=model.weight.dtype)).sum().backward()
            optimiser.step(1.0)
    assert (half.weight != before).all()  # 400 steps of 1e-5, each far below what bfloat16 can tell apart
    assert torch.equal(half.weight, whole.weight.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_state_continues_bit_for_bit(dtype):
    torch.manual_seed(0)
    inputs = torch.randn(6, 4, dtype=dtype)
    model = nn.Linear(4, 3).to(dtype)
    optimiser = Optimiser(model, **VALUES)

    def advance(model: nn.Linear, optimiser: Optimiser, steps: int) -> None:
        for _ in range(steps):
            model(inputs).square().sum().backward()
            optimiser.step(1.0)

    advance(model, optimiser, 3)
    other = nn.Linear(4, 3).to(dtype)
    restored = Optimiser(other, **VALUES)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    advance(model, optimiser, 3)
    advance(other, restored, 3)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_norm_is_that_before_clipping():
    model = nn.Linear(1, 1, bias=False)
    optimiser = Optimiser(model, **VALUES)
    (30 * model.weight.sum()).backward()
    assert optimiser.step(1.0) == pytest.approx(30)


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_loss_is_the_sum_of_its_tokens_times_the_gradient(name):
    random = torch.Generator().manual_seed(3)
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    weight_BT = torch.rand(3, 4, generator=random) * mask_BT
    loss_BT = torch.randn(3, 4, generator=random)
    share_BT = gradient(AGGREGATES[name], mask_BT, weight_BT, length=6)
    expected = AGGREGATES[name](loss_BT, mask_BT, weight_BT, length=6)
    assert torch.allclose((share_BT * loss_BT).sum(), expected, atol=1e-6)
