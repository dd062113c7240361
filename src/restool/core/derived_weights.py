"""Weights that the paper derives: from region entropies (its method) and from gradient variances (its Theorem 2).

Deviations from the paper:
- its alphas, w_min and w_max are unknown: they are required arguments, chosen by us in configs/method;
- region weights are scaled to mean 1 over the batch's weighted tokens before the curriculum moves them, so that the
  alphas have a scale (1/H of a region runs from 1 to 1000);
- tokens outside the paper's four regions weigh 0, as in the released code (the paper does not say);
- beta is taken by region: the theorem has one per token, which cannot be estimated from one batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from restool.core.batch import AnswerBatch
from restool.core.errors import ConfigurationError
from restool.core.normalisers import normalise_sequence
from restool.core.regions import Region

REGIONS = len(Region)
_FOUR = (Region.FORMAT, Region.NAME, Region.ARGUMENTS, Region.THINK)


def by_region(raw_R: Tensor, batch: AnswerBatch) -> Tensor:
    """(B, T): every token's region looked up in ``raw_R``; 0 outside the mask."""
    return raw_R.to(batch.mask_BT.device)[batch.region_BT.long()] * batch.mask_BT


def region_entropy(batch: AnswerBatch) -> Tensor:
    """(R,) mean entropy in nats of each region's tokens; NaN where the batch has none."""
    if batch.entropy_BT is None:
        raise ConfigurationError("entropy weights need the sampler's entropies: use a backend that offers 'entropy'")
    mask_BT = batch.mask_BT.bool()
    region_N, entropy_N = batch.region_BT[mask_BT].long(), batch.entropy_BT[mask_BT].double()
    total_R = torch.zeros(REGIONS, dtype=torch.float64, device=region_N.device).index_add_(0, region_N, entropy_N)
    return (total_R / torch.bincount(region_N, minlength=REGIONS)).float()


def running_entropy(old_R: Tensor | None, batch: AnswerBatch, *, decay: float = 0.9) -> Tensor:
    """(R,) exponential running mean of `region_entropy`; a region that the batch lacks keeps its value."""
    new_R = region_entropy(batch)
    if old_R is None:
        return new_R
    mixed_R = torch.where(old_R.isnan(), new_R, decay * old_R + (1 - decay) * new_R)
    return torch.where(new_R.isnan(), old_R, mixed_R)


def entropy(
    batch: AnswerBatch,
    *,
    form: str,
    alpha_format: float,
    alpha_parameters: float,
    alpha_think: float,
    w_min: float,
    w_max: float,
    floor: float = 1e-3,
) -> Tensor:
    """The paper: weights from region entropies, moved by the curriculum, mean 1 over the whole answer.

    ``form``: ``inverse`` (1/H) or ``inverse_bound`` (1/(1 - e^-H)); H is ``batch.entropy_R`` (a running mean) or
    measured on the batch, at least ``floor`` nats. With progress p in [0, 1]: format ``max(w_min, w - alpha_format p)``
    (falling), arguments and think ``min(w_max, w + alpha p)``, name as it is; all within [w_min, w_max].
    """
    if form not in ("inverse", "inverse_bound"):
        raise ConfigurationError(f"method.weights.form: '{form}' is unknown; valid: inverse, inverse_bound")
    initial_R = _initial_weights(batch, form, floor)
    change_R = torch.zeros_like(initial_R)
    change_R[Region.FORMAT] = -alpha_format
    change_R[Region.ARGUMENTS], change_R[Region.THINK] = alpha_parameters, alpha_think
    moved_R = (initial_R + change_R * batch.progress).clamp(w_min, w_max) * (initial_R > 0)
    return normalise_sequence(by_region(moved_R, batch), batch.mask_BT)


def _initial_weights(batch: AnswerBatch, form: str, floor: float) -> Tensor:
    """(R,) falling in the region's entropy, 0 outside the four regions, mean 1 over the batch's weighted tokens."""
    entropy_R = region_entropy(batch) if batch.entropy_R is None else batch.entropy_R
    entropy_R = entropy_R.to(batch.mask_BT.device).float()
    # A region that was never seen has no tokens to weight; 1 keeps it finite.
    entropy_R = torch.where(entropy_R.isnan(), torch.ones_like(entropy_R), entropy_R).clamp(min=floor)
    raw_R = torch.zeros_like(entropy_R)
    four = list(_FOUR)
    raw_R[four] = (1 / (entropy_R if form == "inverse" else -torch.expm1(-entropy_R)))[four]
    token_BT = by_region(raw_R, batch)
    count = (token_BT > 0).sum()
    return raw_R / (token_BT.sum() / count) if int(count) else raw_R


def optimal(batch: AnswerBatch, *, beta: Mapping[str, float] | None = None) -> Tensor:
    """Theorem 2: ``w = T beta^-1 / sum beta^-1``, with beta by region from answers that the update does not use.

    ``beta``: by region name in lower case; None: ``batch.beta_R`` (see `region_beta`). Raises ConfigurationError if a
    region that the batch has tokens of lacks a beta above zero.
    """
    if beta is not None:
        beta_R = torch.tensor([float(beta.get(region.name.lower(), torch.nan)) for region in Region])
    elif batch.beta_R is not None:
        beta_R = batch.beta_R.cpu()
    else:
        raise ConfigurationError("optimal weights need beta by region: set method.weights.beta to measured values")
    present = batch.region_BT[batch.mask_BT.bool()].long().unique().tolist()
    missing = [Region(r).name.lower() for r in present if not beta_R[r] > 0]
    if missing:
        raise ConfigurationError(f"optimal weights: beta of {', '.join(missing)} is missing or not above zero")
    raw_R = torch.where(beta_R > 0, 1 / beta_R, torch.zeros_like(beta_R))
    return normalise_sequence(by_region(raw_R / raw_R.amax().clamp(min=1e-30), batch), batch.mask_BT)


def region_beta(square_norm_BR: Tensor, count_BR: Tensor) -> Tensor:
    """(R,) beta per token: the mean over a region's tokens of its answers' squared gradient norms.

    ``square_norm_BR``: squared norm of ``A * sum of grad log p`` over an answer's tokens of each region, measured on
    answers that the weighted update does not use; ``count_BR``: how many tokens those are. NaN where a region has none.
    """
    return (square_norm_BR.sum(0) / count_BR.sum(0)).float()
