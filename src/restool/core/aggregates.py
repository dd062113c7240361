"""Loss per token -> one number. All take ``(loss_BT, mask_BT, weight_BT)`` and give a scalar; empty batches give 0.

Where a normaliser depends on the micro-batch (`token_mean`, `weighted_token_mean`), a mini-batch's loss is the sum over
its micro-batches of their values times their share of the sequences, as in the released trainer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def token_mean(
    loss_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None, *, length: int | None = None
) -> Tensor:
    """Sum of weighted losses over the number of tokens (stock GRPO; TSFT and RSFT, whose weights do not normalise)."""
    mask_BT = mask_BT.to(loss_BT.dtype)
    return _weighted(loss_BT, mask_BT, weight_BT).sum() / mask_BT.sum().clamp(min=1)


def weighted_token_mean(
    loss_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None, *, length: int | None = None
) -> Tensor:
    """The released ``token-mean-weighted``: sum(l m w) / (sum(m w) + 1e-8) over the micro-batch."""
    mask_BT = mask_BT.to(loss_BT.dtype)
    share_BT = mask_BT if weight_BT is None else mask_BT * weight_BT.to(loss_BT.dtype)
    return _weighted(loss_BT, mask_BT, weight_BT).sum() / (share_BT.sum() + 1e-8)


def sequence_mean(
    loss_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None, *, length: int | None = None
) -> Tensor:
    """The paper's loss: (1/G) sum over answers of (1/T) sum over tokens of w l; T is the answer's length."""
    mask_BT = mask_BT.to(loss_BT.dtype)
    count_B = mask_BT.sum(1)
    mean_B = _weighted(loss_BT, mask_BT, weight_BT).sum(1) / count_B.clamp(min=1)
    return mean_B.sum() / (count_B > 0).sum().clamp(min=1)


def weighted_sequence_mean(
    loss_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None, *, length: int | None = None
) -> Tensor:
    """The released normaliser within each answer: mean over answers of sum(l w) / (sum(w) + 1e-8)."""
    mask_BT = mask_BT.to(loss_BT.dtype)
    share_BT = mask_BT if weight_BT is None else mask_BT * weight_BT.to(loss_BT.dtype)
    mean_B = _weighted(loss_BT, mask_BT, weight_BT).sum(1) / (share_BT.sum(1) + 1e-8)
    return mean_B.sum() / (mask_BT.sum(1) > 0).sum().clamp(min=1)


def constant_length(
    loss_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None, *, length: int | None = None
) -> Tensor:
    """Dr.GRPO: each answer's summed loss over a constant length, averaged over answers.

    ``length``: the longest answer that the run allows, constant over training (None: the width of this batch).
    """
    mask_BT = mask_BT.to(loss_BT.dtype)
    total_B = _weighted(loss_BT, mask_BT, weight_BT).sum(1) / (length or max(loss_BT.shape[1], 1))
    return total_B.sum() / (mask_BT.sum(1) > 0).sum().clamp(min=1)


def _weighted(loss_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None) -> Tensor:
    """Masked, weighted losses; whatever stands in the padding (even NaN) is gone."""
    masked_BT = torch.where(mask_BT > 0, loss_BT, torch.zeros((), dtype=loss_BT.dtype, device=loss_BT.device))
    return masked_BT * mask_BT if weight_BT is None else masked_BT * mask_BT * weight_BT.to(loss_BT.dtype)


AGGREGATES: dict[str, Callable[..., Tensor]] = {
    "token_mean": token_mean,
    "weighted_token_mean": weighted_token_mean,
    "sequence_mean": sequence_mean,
    "weighted_sequence_mean": weighted_sequence_mean,
    "constant_length": constant_length,
}
