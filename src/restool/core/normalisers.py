"""What raw token weights are divided by: a raw weight says how tokens compare, a normaliser what an answer weighs."""

from __future__ import annotations

from torch import Tensor

# Clipping bounds of the released code, never reached with its own constants.
W_MIN, W_MAX = 0.001, 8.0


def normalise_positive(raw_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Released: clip positive weights to [0.001, 8], divide by their mean over the answer; zeros stay zero.

    Afterwards an answer's weights sum to its number of weighted tokens.
    """
    positive_BT = (raw_BT > 0) & mask_BT.bool()
    clipped_BT = raw_BT.clamp(W_MIN, W_MAX) * positive_BT
    mean_B1 = clipped_BT.sum(1, keepdim=True) / positive_BT.sum(1, keepdim=True).clamp(min=1)
    return clipped_BT / mean_B1.clamp(min=1e-8)


def normalise_sequence(raw_BT: Tensor, mask_BT: Tensor, delta: float = 1e-8) -> Tensor:
    """The paper: divide by the mean over all tokens of the answer, which then sum to its length.

    ``delta`` keeps an answer without any weight at zero.
    """
    raw_BT = raw_BT * mask_BT
    mean_B1 = raw_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return raw_BT / (mean_B1 + delta)
