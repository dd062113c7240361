"""Reward -> advantage. Statistics are taken in double precision over the answers to one prompt (a group).

Sources: GRPO and Dr.GRPO as in verl 0.9.1 (sample standard deviation, epsilon 1e-6; an answer alone in its group keeps
its reward); GAE as in PPO, whitened over the batch as verl does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-6


def group_norm(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """GRPO: ``(r - mean) / (std + 1e-6)`` within groups, std with ddof = 1; (B,) -> (B,) float32.

    Equal rewards give exactly 0; an answer alone in its group keeps its reward.
    """
    shifted_B, mean_B, count_B, group_B, groups = _group_means(reward_B, group_B)
    centred_B = shifted_B - mean_B
    square_G = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_B, centred_B.square())
    std_B = (square_G[group_B] / (count_B - 1).clamp(min=1)).sqrt()
    return torch.where(count_B > 1, centred_B / (std_B + EPSILON), reward_B.double().cpu()).float().to(reward_B.device)


def group_center(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Dr.GRPO: ``r - mean`` within groups, without the standard deviation; (B,) -> (B,) float32."""
    shifted_B, mean_B, count_B, _, _ = _group_means(reward_B, group_B)
    return torch.where(count_B > 1, shifted_B - mean_B, reward_B.double().cpu()).float().to(reward_B.device)


def _group_means(reward_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Rewards minus the least of their group (so that equal rewards are exactly 0), their mean and the group sizes."""
    reward_B = reward_B.double().cpu()
    _, group_B = torch.unique(group_B.cpu(), return_inverse=True)
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    least_G = torch.full((groups,), torch.inf, dtype=torch.float64)
    least_G.scatter_reduce_(0, group_B, reward_B, "amin")
    shifted_B = reward_B - least_G[group_B]
    count_G = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_B, torch.ones_like(reward_B))
    mean_G = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_B, shifted_B) / count_G
    return shifted_B, mean_G[group_B], count_G[group_B], group_B, groups


def gae(
    reward_B: Tensor,
    value_BT: Tensor,
    mask_BT: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; the reward arrives at an answer's last token.

    ``value_BT``: the critic's value before each token. Returns (advantage_BT, return_BT), zero outside the mask; the
    returns are the critic's targets. ``whiten``: mean 0 and standard deviation 1 over the batch's tokens, as verl does.
    """
    mask_BT = mask_BT.bool()
    width = mask_BT.shape[1]
    position_T = torch.arange(width, device=mask_BT.device)
    last_B = torch.where(mask_BT, position_T, -1).amax(1) if width else mask_BT.sum(1) - 1
    value_BT = value_BT.double() * mask_BT
    advantage_BT = torch.zeros_like(value_BT)
    running_B = next_value_B = torch.zeros_like(value_BT[:, 0]) if width else torch.zeros(len(mask_BT))
    for t in reversed(range(width)):
        is_last_B = last_B == t
        delta_B = reward_B.double() * is_last_B + gamma * next_value_B - value_BT[:, t]
        is_token_B = mask_BT[:, t]
        running_B = torch.where(is_token_B, delta_B + gamma * lam * running_B, running_B)
        next_value_B = torch.where(is_token_B, value_BT[:, t], next_value_B)
        advantage_BT[:, t] = running_B * is_token_B
    return_BT = (advantage_BT + value_BT) * mask_BT
    if whiten and int(mask_BT.sum()) > 1:
        token_N = advantage_BT[mask_BT]
        advantage_BT = (advantage_BT - token_N.mean()) * torch.rsqrt(token_N.var() + 1e-8) * mask_BT
    return advantage_BT.float(), return_BT.float()


def kl_in_reward(
    reward_B: Tensor, logprob_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, coefficient: float
) -> Tensor:
    """ToolRL's penalty: reward minus ``coefficient`` times the answer's summed log-ratio to the reference policy."""
    return reward_B - coefficient * ((logprob_BT - reference_BT) * mask_BT).sum(1)


# Estimators over groups. `gae` has a critic's values as a further input and is called by name.
ADVANTAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"group_norm": group_norm, "group_center": group_center}
