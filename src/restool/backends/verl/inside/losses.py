"""The released loss as a policy loss of verl: weighted mean over each of verl's micro-batches.

Imported in the training workers through ``actor_rollout_ref.model.external_lib``. The weights come in the column that
verl has for corrections of the sampler (``rollout_is_weights``), which it hands through to the policy loss.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_policy_loss

from restool.backends.verl.configuration import POLICY_LOSS
from restool.core.aggregates import weighted_token_mean
from restool.core.surrogates import ppo_clip


@register_policy_loss(POLICY_LOSS)
def released_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """All (b, t) of one micro-batch. Each counts for its share of the mini-batch's answers; verl adds them up."""
    loss_BT, statistics = ppo_clip(
        log_prob,
        old_log_prob,
        advantages,
        low=config.clip_ratio_low,
        high=config.clip_ratio_high,
        dual=config.clip_ratio_c,
    )
    share = len(loss_BT) * config.global_batch_info["dp_size"] / config.global_batch_info["global_batch_size"]
    tokens = response_mask.sum().clamp(min=1)
    means = {name: float((value * response_mask).sum() / tokens) for name, value in statistics.items()}
    return share * weighted_token_mean(loss_BT, response_mask, rollout_is_weights), {
        "actor/pg_clipfrac": means["clip_fraction_BT"],
        "actor/pg_clipfrac_lower": means["dual_clip_fraction_BT"],
        "actor/ppo_kl": means["kl_BT"],
    }
