"""Log-probabilities and advantages -> loss per token, with what the loss did as detached statistics.

Every surrogate has one signature: ``(logprob_BT, old_logprob_BT, advantage_BT, *, low, high, dual, mask_BT)`` to
``(loss_BT, statistics)``. Source: the released actor (verl 0.5) and verl 0.9.1; GSPO as in verl 0.9.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Statistics = dict[str, Tensor]


def ppo_clip(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = 3.0,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """PPO's clipped loss with dual clip, per token (the released loss; the log-ratio is clamped to +-20).

    ``max(-A r, -A clip(r, 1 - low, 1 + high))``, and where A < 0 at most ``-A dual``; ``dual=None``: without it.
    Statistics: ``clip_fraction_BT`` and ``dual_clip_fraction_BT`` (0 or 1 per token), ``kl_BT`` (old minus new
    log-probability). ``mask_BT`` is not read.
    """
    log_ratio_BT = (logprob_BT - old_logprob_BT).clamp(-20.0, 20.0)
    return _clipped(log_ratio_BT.exp(), log_ratio_BT, advantage_BT, low, high, dual)


def gspo(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    *,
    low: float = 3e-4,
    high: float = 4e-4,
    dual: float | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """GSPO: the ratio is that of the whole answer, ``exp(mean log-ratio over its tokens)``, clipped as in PPO.

    Each token carries the answer's ratio with its own gradient (verl's GSPO-token form), so that token weights keep
    their meaning. ``mask_BT``: the answers' tokens (None: all).
    """
    mask_BT = torch.ones_like(logprob_BT) if mask_BT is None else mask_BT.to(logprob_BT.dtype)
    log_ratio_BT = logprob_BT - old_logprob_BT
    mean_B1 = (log_ratio_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    sequence_BT = (logprob_BT - logprob_BT.detach() + mean_B1.detach()).clamp(max=10.0)
    return _clipped(sequence_BT.exp(), log_ratio_BT, advantage_BT, low, high, dual)


def _clipped(
    ratio_BT: Tensor, log_ratio_BT: Tensor, advantage_BT: Tensor, low: float, high: float, dual: float | None
) -> tuple[Tensor, Statistics]:
    plain_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * ratio_BT.clamp(1 - low, 1 + high)
    loss_BT = torch.maximum(plain_BT, clipped_BT)
    dual_BT = torch.zeros_like(loss_BT, dtype=torch.bool)
    if dual is not None:
        ceiling_BT = -advantage_BT * dual
        dual_BT = (advantage_BT < 0) & (loss_BT > ceiling_BT)
        loss_BT = torch.where(advantage_BT < 0, torch.minimum(loss_BT, ceiling_BT), loss_BT)
    statistics = {
        "clip_fraction_BT": (clipped_BT > plain_BT).float(),
        "dual_clip_fraction_BT": dual_BT.float(),
        "kl_BT": -log_ratio_BT.detach().float(),
    }
    return loss_BT, {name: value.detach() for name, value in statistics.items()}


def nll(
    logprob_BT: Tensor, old_logprob_BT: Tensor | None = None, advantage_BT: Tensor | None = None, **_: object
) -> tuple[Tensor, Statistics]:
    """SFT: minus the log-probability of the demonstration's tokens; the other arguments are not read."""
    return -logprob_BT, {}


def kl_penalty(logprob_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """KL to the reference policy per token, always >= 0 ("k3": e^d - d - 1 with d = reference - policy)."""
    difference_BT = (reference_BT - logprob_BT).clamp(-20.0, 20.0)
    return difference_BT.exp() - difference_BT - 1


def token_entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy in nats of every next-token distribution, (B, T, V) -> (B, T); differentiable."""
    log_p_BTV = logits_BTV.log_softmax(-1)
    return -(log_p_BTV.exp() * log_p_BTV).sum(-1)


def value_loss(
    value_BT: Tensor, old_value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, *, clip: float = 0.5
) -> Tensor:
    """PPO's clipped critic loss: half the mean over tokens of the worse squared error (released clip 0.5)."""
    clipped_BT = old_value_BT + (value_BT - old_value_BT).clamp(-clip, clip)
    worse_BT = torch.maximum((value_BT - return_BT).square(), (clipped_BT - return_BT).square())
    return 0.5 * (worse_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def explained_variance(value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(return - value) / Var(return) over tokens; 0 where the returns do not vary."""
    keep = mask_BT.bool()
    target, error = return_BT[keep].double(), (return_BT - value_BT)[keep].double()
    spread = target.var(correction=0) if len(target) else torch.zeros(())
    return float(1 - error.var(correction=0) / spread) if float(spread) > 0 else 0.0


SURROGATES: dict[str, Callable[..., tuple[Tensor, Statistics]]] = {"ppo_clip": ppo_clip, "gspo": gspo, "nll": nll}

# Positively homogeneous in the advantage: for w >= 0, w * loss(A) = loss(w * A), so a weight may be folded into A.
HOMOGENEOUS = frozenset({"ppo_clip", "gspo"})
