"""Token weights: how much of the loss each sampled token carries.

A scheme is a function of an `AnswerBatch` (and arguments from ``configs/method``) to ``weight_BT``: float32, finite,
>= 0 and 0 outside the mask. `SCHEMES` names them all; `weigh` applies one by name. `released` and `fixed` exist for a
single text too, under the same rules. The paper's own schemes are in `derived_weights`, the SFT family's in
`demonstration_weights`, the released span rules with what is wrong about them in `released`.

`fixed` deviates from the released code: spans include their last token and every call, unclosed blocks count, offsets
come from the sampled ids, a literal tag in the thought is thought. Constants and normaliser are the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from restool.core import released as rules
from restool.core.batch import AnswerBatch
from restool.core.demonstration_weights import think_block, tool_block
from restool.core.derived_weights import REGIONS, by_region, entropy, optimal
from restool.core.errors import ConfigurationError
from restool.core.normalisers import normalise_positive
from restool.core.regions import Region, region_ids_batch
from restool.core.scheme_arguments import check_arguments


def released(text: str, offsets: Tensor | Sequence[Sequence[int]], mask: object, step: float) -> Tensor:
    """The released weights of one answer, faults included: (T,) float32.

    ``offsets``: (t, 2) characters of every token; ``mask``: (T,) 1 up to the stop token; ``step``: the training step.
    Where the released code raises, see `restool.core.released`. Raises DataError if offsets do not fit the text.
    """
    return released_batch(_single(text, offsets, mask, step))[0]


def fixed(
    text: str, offsets: Tensor | Sequence[Sequence[int]], mask: object, step: float, **constants: float
) -> Tensor:
    """The released constants on the right spans, for one answer: (T,) float32; arguments as for `released`.

    ``constants``: those of `fixed_batch`.
    """
    return fixed_batch(_single(text, offsets, mask, step), **constants)[0]


def _single(text: str, offsets: Tensor | Sequence[Sequence[int]], mask: object, step: float) -> AnswerBatch:
    mask_BT = torch.as_tensor(mask).bool().reshape(1, -1)
    offsets_t2 = torch.as_tensor(offsets, dtype=torch.long).reshape(-1, 2)
    region_BT = region_ids_batch([text], [offsets_t2], mask_BT.shape[1])
    return AnswerBatch([text], [offsets_t2], mask_BT, region_BT, step=step)


def uniform(batch: AnswerBatch) -> Tensor:
    """1 on every token: GRPO."""
    return batch.mask_BT.float()


def released_batch(batch: AnswerBatch) -> Tensor:
    """The released weights, faults included."""
    return normalise_positive(_released_raw(batch).raw_BT, batch.mask_BT)


def released_crashes(batch: AnswerBatch) -> Tensor:
    """(B,) long: how many spans of each answer make the released code raise."""
    return _released_raw(batch).crashes_B


def _released_raw(batch: AnswerBatch) -> rules.RawWeights:
    raw = rules.raw_weights(batch.texts, batch.offsets, batch.mask_BT.shape[1], batch.step)
    return rules.RawWeights(raw.raw_BT.to(batch.mask_BT.device), raw.crashes_B)


def fixed_batch(
    batch: AnswerBatch,
    *,
    name: float = rules.NAME,
    format: float = rules.TAG,
    think: float | None = None,
    arguments: float | None = None,
    response: float = 0.0,
    other: float = 0.0,
) -> Tensor:
    """The released constants (or those given) by region, released normaliser.

    ``think`` and ``arguments``: None follows the released ramp, 0.6 + 0.002 step up to 1.0 and 1.2.
    """
    raw_R = torch.zeros(REGIONS)
    raw_R[Region.NAME], raw_R[Region.FORMAT] = name, format
    raw_R[Region.THINK] = rules.think_weight(batch.step) if think is None else think
    raw_R[Region.ARGUMENTS] = rules.arguments_weight(batch.step) if arguments is None else arguments
    raw_R[Region.RESPONSE], raw_R[Region.OTHER] = response, other
    if not bool((raw_R >= 0).all()):
        raise ConfigurationError("method.weights: a region's constant must not be negative")
    return normalise_positive(by_region(raw_R, batch), batch.mask_BT)


def masked_uniform(batch: AnswerBatch) -> Tensor:
    """1 on the tokens that `fixed` weights, 0 elsewhere: the mask of ResT without its constants."""
    return (fixed_batch(batch) > 0).float()


def uniform_released_normaliser(batch: AnswerBatch) -> Tensor:
    """Every token alike, but an answer as a whole carries what ResT gives it: its number of weighted tokens.

    ResT's normaliser without its mask or constants: an answer without a weighted token carries nothing.
    """
    count_B1 = masked_uniform(batch).sum(1, keepdim=True)
    return batch.mask_BT * count_B1 / batch.mask_BT.sum(1, keepdim=True).clamp(min=1)


def static(batch: AnswerBatch) -> Tensor:
    """`fixed` without curriculum: the constants of step 0 throughout."""
    return fixed_batch(batch, think=rules.think_weight(0), arguments=rules.arguments_weight(0))


def no_think(batch: AnswerBatch) -> Tensor:
    """`fixed` without gradient on the thought's content."""
    return fixed_batch(batch, think=0.0)


def name_only(batch: AnswerBatch) -> Tensor:
    """Only tool names carry gradient."""
    return fixed_batch(batch, format=0.0, think=0.0, arguments=0.0)


def arguments_only(batch: AnswerBatch) -> Tensor:
    """Only argument objects carry gradient."""
    return fixed_batch(batch, name=0.0, format=0.0, think=0.0)


def shuffled(batch: AnswerBatch) -> Tensor:
    """The weights of `fixed` at random positions of the same answer: same histogram, no meaning.

    The permutation depends on the text and on ``batch.seed``, not on where in the batch the answer stands.
    """
    weight_BT = fixed_batch(batch)
    generator = torch.Generator()
    for row, text in enumerate(batch.texts):
        generator.manual_seed(zlib.crc32(text.encode("utf-8", "surrogatepass"), batch.seed & 0xFFFFFFFF))
        positions = batch.mask_BT[row].nonzero().flatten()
        order = torch.randperm(len(positions), generator=generator).to(positions.device)
        weight_BT[row, positions] = weight_BT[row, positions[order]]
    return weight_BT


SCHEMES: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "released": released_batch,
    "fixed": fixed_batch,
    "masked_uniform": masked_uniform,
    "uniform_released_normaliser": uniform_released_normaliser,
    "static": static,
    "no_think": no_think,
    "name_only": name_only,
    "arguments_only": arguments_only,
    "shuffled": shuffled,
    "entropy": entropy,
    "optimal": optimal,
    "tool_block": tool_block,
    "think_block": think_block,
}


def weigh(scheme: str, batch: AnswerBatch, /, **arguments: Any) -> Tensor:
    """``SCHEMES[scheme](batch, **arguments)``; ConfigurationError for an unknown scheme or a wrong argument."""
    check_arguments(scheme, arguments)
    return SCHEMES[scheme](batch, **arguments)
