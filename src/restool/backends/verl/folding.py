"""Token weights as factors on the advantages: what makes verl's own loss the loss of the method.

verl's loss of a mini-batch is linear in the losses of its tokens, and so is ours; the factor of a token is the ratio of
what its loss counts for in the two. The surrogates of the registry that may be folded are homogeneous in the advantage
(`surrogates.HOMOGENEOUS`), so that a factor on it is a factor on the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restool import algorithms
from restool.algorithms import Algorithm
from restool.backends.verl.configuration import AGGREGATES
from restool.core.aggregates import AGGREGATES as FUNCTIONS


def factors(record: Algorithm, mask_BT: Tensor, weight_BT: Tensor, batch_B: Tensor, length: int) -> Tensor:
    """(B, T) factors on the advantages; 0 outside the mask.

    ``batch_B``: number of the mini-batch that each answer is updated in, whose normaliser counts. ``length``: the
    longest answer that the run allows.
    """
    found_BT = torch.zeros_like(weight_BT)
    for number in batch_B.unique().tolist():
        rows = batch_B == number
        ours_BT = _shares(algorithms.aggregate(record), mask_BT[rows], weight_BT[rows], length)
        native = FUNCTIONS[AGGREGATES[record.aggregate][1]]
        theirs_BT = _shares(native, mask_BT[rows], mask_BT[rows].float(), length)
        found_BT[rows] = torch.where(theirs_BT > 0, ours_BT / theirs_BT.clamp(min=1e-38), 0.0).float()
    return found_BT


def mini_batches(answers: int, ranks: int, per_batch: int) -> Tensor:
    """(B,) number of the mini-batch in which verl updates each answer.

    verl deals equal runs of neighbours to its ranks, and each rank takes its own in order, ``per_batch / ranks`` at a
    time.
    """
    per_rank = answers // ranks
    return (torch.arange(answers) % per_rank) // (per_batch // ranks)


def _shares(aggregate: object, mask_BT: Tensor, weight_BT: Tensor, length: int) -> Tensor:
    """What each token's loss counts for in ``aggregate``, in double precision."""
    loss_BT = torch.zeros(mask_BT.shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        aggregate(loss_BT, mask_BT, weight_BT.double(), length=length).backward()  # type: ignore[operator]
    assert loss_BT.grad is not None
    return loss_BT.grad
