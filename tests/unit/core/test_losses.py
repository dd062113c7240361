"""Advantages, surrogates and aggregates: published numbers, and the released loss against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from restool.core import advantages, aggregates, surrogates


def test_group_norm_uses_the_sample_standard_deviation() -> None:
    reward_B = torch.tensor([4, 2.5, -2, 4])
    got = advantages.group_norm(reward_B, torch.zeros(4).long())
    torch.testing.assert_close(got, torch.tensor([0.66034, 0.13207, -1.45274, 0.66034]), atol=1e-5, rtol=0)
    got = advantages.group_center(reward_B, torch.zeros(4).long())
    torch.testing.assert_close(got, torch.tensor([1.875, 0.375, -4.125, 1.875]))


def test_groups_of_one_and_groups_of_equals() -> None:
    reward_B, group_B = torch.tensor([0.1, 0.1, 0.1, 2.5]), torch.tensor([7, 7, 7, 3])
    for estimator in advantages.ADVANTAGES.values():
        assert estimator(reward_B, group_B).tolist() == [0, 0, 0, 2.5]
        assert estimator(reward_B[:0], group_B[:0]).shape == (0,)


def test_gae_with_gamma_and_lambda_one_is_reward_minus_value() -> None:
    value_BT = torch.tensor([[0.5, 1.0, 9.0], [0.25, 9.0, 9.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])
    advantage_BT, return_BT = advantages.gae(torch.tensor([3.0, -1.0]), value_BT, mask_BT, whiten=False)
    torch.testing.assert_close(advantage_BT, torch.tensor([[2.5, 2.0, 0], [-1.25, 0, 0]]))
    torch.testing.assert_close(return_BT, torch.tensor([[3.0, 3.0, 0], [-1.0, 0, 0]]))
    advantage_BT, _ = advantages.gae(torch.tensor([3.0, -1.0]), value_BT, mask_BT)
    token_N = advantage_BT[mask_BT.bool()]
    assert abs(float(token_N.mean())) < 1e-6
    assert float(token_N.std()) == pytest.approx(1, abs=1e-4)
    discounted, _ = advantages.gae(torch.tensor([1.0, 1.0]), value_BT * 0, mask_BT, gamma=0.5, lam=1.0, whiten=False)
    torch.testing.assert_close(discounted, torch.tensor([[0.5, 1, 0], [1, 0, 0]]))


def test_released_aggregation_check_numbers() -> None:
    loss = torch.tensor([[1.0, 2, 3, 4], [-1, 0.5, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    weight = torch.tensor([[0, 1.5, 0.5, 9], [2, 0, 3, 1]])
    assert float(aggregates.weighted_token_mean(loss, mask, weight)) == pytest.approx(0.625)
    assert float(aggregates.token_mean(loss, mask)) == pytest.approx(1.1)
    assert float(aggregates.token_mean(loss, mask, weight)) == pytest.approx(2.5 / 5)
    assert float(aggregates.sequence_mean(loss, mask, weight)) == pytest.approx((4.5 / 3 - 2 / 2) / 2)
    assert float(aggregates.weighted_sequence_mean(loss, mask, weight)) == pytest.approx((4.5 / 2 - 2 / 2) / 2)
    assert float(aggregates.constant_length(loss, mask, weight, length=10)) == pytest.approx((4.5 - 2) / 10 / 2)


@pytest.mark.parametrize("name", aggregates.AGGREGATES)
def test_aggregates_survive_emptiness_and_poisoned_padding(name: str) -> None:
    aggregate = aggregates.AGGREGATES[name]
    loss = torch.tensor([[1.0, math.nan], [math.inf, math.nan]])
    mask = torch.tensor([[1, 0], [0, 0]])
    assert math.isfinite(float(aggregate(loss, mask, torch.ones(2, 2))))
    assert float(aggregate(loss, mask * 0, torch.ones(2, 2))) == 0
    assert float(aggregate(loss[:, :1].clone().fill_(2.0), mask[:, :1], torch.zeros(2, 1))) == 0


def test_clip_and_dual_clip() -> None:
    log_ratio = torch.tensor([[0.0, math.log(1.5), math.log(0.5), math.log(5.0), math.log(1.5)]])
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0, -1.0]])
    loss, statistics = surrogates.ppo_clip(log_ratio, torch.zeros(1, 5), advantage, low=0.2, high=0.3, dual=3.0)
    torch.testing.assert_close(loss, torch.tensor([[-1.0, -1.3, 0.8, 3.0, 1.5]]))
    assert statistics["clip_fraction_BT"].tolist() == [[0, 1, 1, 0, 0]]
    assert statistics["dual_clip_fraction_BT"].tolist() == [[0, 0, 0, 1, 0]]
    free, _ = surrogates.ppo_clip(log_ratio, torch.zeros(1, 5), advantage, low=0.2, high=0.3, dual=None)
    assert float(free[0, 3]) == pytest.approx(5.0)


def test_gspo_has_one_ratio_per_answer() -> None:
    old = torch.zeros(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    new = torch.tensor([[0.3, -0.3, 0.0], [0.2, 0.2, 9.0]], requires_grad=True)
    loss, _ = surrogates.gspo(new, old, torch.ones(2, 3), low=0.5, high=0.5, mask_BT=mask)
    torch.testing.assert_close(loss[0], torch.full((3,), -1.0))
    assert float(loss[1, 0].detach()) == pytest.approx(-math.exp(0.2))
    aggregates.sequence_mean(loss, mask).backward()
    torch.testing.assert_close(new.grad[1], torch.tensor([-math.exp(0.2) / 4, -math.exp(0.2) / 4, 0.0]))


def test_regularisers() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [50.0, 0, 0, 0]]])
    torch.testing.assert_close(surrogates.token_entropy(logits), torch.tensor([[math.log(4), 0.0]]))
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.0]])
    torch.testing.assert_close(surrogates.kl_penalty(policy, reference), torch.tensor([[0.0, math.e - 2]]))
    rewarded = advantages.kl_in_reward(torch.tensor([1.0]), policy, reference, torch.ones(1, 2), 0.1)
    torch.testing.assert_close(rewarded, torch.tensor([1.1]))
    loss = surrogates.value_loss(
        torch.tensor([[2.0, 7.0]]), torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[1, 0]])
    )
    assert float(loss) == pytest.approx(0.5)
    values = torch.tensor([[1.0, 2.0, 3.0]])
    assert surrogates.explained_variance(values, values, torch.ones(1, 3)) == 1
    assert surrogates.explained_variance(values, values * 0, torch.ones(1, 3)) == 0


def transcribed_loss(new, old, advantage, mask, weight, low, high, dual):
    """The released loss, symbol by symbol, one token at a time, in double precision."""
    top = bottom = torch.zeros((), dtype=torch.float64)
    for i in range(new.shape[0]):
        for t in range(new.shape[1]):
            if not mask[i, t]:
                continue
            ratio = torch.exp(torch.clamp(new[i, t] - old[i, t], -20, 20))
            loss = torch.maximum(-advantage[i] * ratio, -advantage[i] * torch.clamp(ratio, 1 - low, 1 + high))
            if advantage[i] < 0:
                loss = torch.minimum(loss, -advantage[i] * dual)
            top = top + loss * weight[i, t]
            bottom = bottom + weight[i, t]
    return top / (bottom + 1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_gradient_of_the_released_loss_equals_its_formula(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total = reference = torch.zeros((), dtype=torch.float64)
    leaves = []
    shapes = [(3, 7), (1, 2), (2, 11)]  # micro-batches of unequal length
    for rows, width in shapes:
        old = -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3
        new = (old + 0.8 * torch.randn(rows, width, generator=generator, dtype=torch.float64)).requires_grad_()
        leaves.append(new)
        advantage = torch.randn(rows, generator=generator, dtype=torch.float64) * 2
        mask = torch.rand(rows, width, generator=generator) < 0.7
        weight = torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3
        weight[torch.rand(rows, width, generator=generator) < 0.3] = 0
        weight[0] = 0  # a row without any weight; the micro-batch of one row has none at all
        loss, _ = surrogates.ppo_clip(new, old, advantage[:, None].expand(rows, width), low=0.2, high=0.2, dual=3.0)
        share = rows / sum(r for r, _ in shapes)
        total = total + share * aggregates.weighted_token_mean(loss, mask, weight)
        reference = reference + share * transcribed_loss(new, old, advantage, mask, weight, 0.2, 0.2, 3.0)
    ours = torch.autograd.grad(total, leaves, retain_graph=True)
    theirs = torch.autograd.grad(reference, leaves)
    assert float(total.detach() - reference.detach()) == pytest.approx(0, abs=1e-9)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-6
    assert max(float(a.abs().max()) for a in ours) > 1e-3
