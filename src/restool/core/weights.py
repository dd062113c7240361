"""Token weights: how much of the loss each sampled token carries.

A scheme is a function of an `AnswerBatch` (and arguments from ``configs/method``) to ``weight_BT``: float32, finite, >= 0
and 0 outside the mask. `SCHEMES` names them all; `weigh` applies one by name. `released` and `fixed` also exist for a single
text. Weights by region share one form: a raw weight for each region, then `normalise_positive` (the released rule: mean 1
over the tokens with weight) or `normalise_sequence` (the paper's: mean 1 over all tokens of the answer).

Deviations:
- `fixed` from the released code: spans include their last token and every call, unclosed blocks count, offsets come from
  the sampled ids, a literal tag in the thought is thought. Constants and normaliser are the same.
- `entropy` from the paper, which gives neither values nor these details: alpha_format, alpha_parameters, alpha_think, w_min,
  w_max are ours (see configs/method/rest_entropy.yaml); region weights are scaled to mean 1 over the batch's weighted
  tokens before the curriculum moves them, so that the alphas have a scale; tokens outside the four regions weigh 0, as
  in the released code.
- `optimal` reads beta by region rather than by token: beta of a single token cannot be estimated from one batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from restool.core import released as rules
from restool.core.batch import AnswerBatch
from restool.core.errors import ConfigurationError, nearest
from restool.core.regions import Region, region_ids_batch

REGIONS = len(Region)


def weigh(name: str, batch: AnswerBatch, **arguments: object) -> Tensor:
    """``SCHEMES[name](batch, **arguments)``; ConfigurationError for an unknown scheme or argument."""
    if name not in SCHEMES:
        raise ConfigurationError(
            f"unknown token-weight scheme '{name}'{nearest(name, SCHEMES)}; valid: {', '.join(sorted(SCHEMES))}"
        )
    try:
        return SCHEMES[name](batch, **arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigurationError(f"method.weights: {error}; see the scheme '{name}' in the methods page") from error


# Normalisers


def normalise_positive(raw_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Released: clip positive weights to [0.001, 8], divide by their mean over the answer; zeros stay zero.

    Afterwards an answer's weights sum to its number of weighted tokens.
    """
    positive_BT = (raw_BT > 0) & mask_BT.bool()
    clipped_BT = raw_BT.clamp(rules.W_MIN, rules.W_MAX) * positive_BT
    mean_B1 = clipped_BT.sum(1, keepdim=True) / positive_BT.sum(1, keepdim=True).clamp(min=1)
    return clipped_BT / mean_B1.clamp(min=1e-8)


def normalise_sequence(raw_BT: Tensor, mask_BT: Tensor, delta: float = 1e-8) -> Tensor:
    """The paper: divide by the mean over all tokens of the answer, which then sum to its length."""
    raw_BT = raw_BT * mask_BT
    mean_B1 = raw_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return raw_BT / (mean_B1 + delta)


# One text


def released(text: str, offsets: Tensor | Sequence[Sequence[int]], mask: object, step: float) -> Tensor:
    """The released weights of one answer, faults included: (T,) float32.

    ``offsets``: (t, 2) characters of every token; ``mask``: (T,) 1 up to the stop token; ``step``: the training step.
    Where the released code raises, see `restool.core.released`. Raises DataError if offsets do not fit the text.
    """
    mask_BT = torch.as_tensor(mask).bool()[None]
    offsets_t2 = torch.as_tensor(offsets, dtype=torch.long).reshape(-1, 2)
    raw_BT = rules.raw_weights([text], [offsets_t2], mask_BT.shape[1], step).raw_BT
    return normalise_positive(raw_BT, mask_BT)[0]


def fixed(
    text: str,
    offsets: Tensor | Sequence[Sequence[int]],
    mask: object,
    step: float,
    **constants: float,
) -> Tensor:
    """The released constants on the right spans, for one answer: (T,) float32; arguments as for `released`."""
    mask_BT = torch.as_tensor(mask).bool()[None]
    offsets_t2 = torch.as_tensor(offsets, dtype=torch.long).reshape(-1, 2)
    region_BT = region_ids_batch([text], [offsets_t2], mask_BT.shape[1])
    return fixed_batch(AnswerBatch([text], [offsets_t2], mask_BT, region_BT, step=step), **constants)[0]


# Schemes


def uniform(batch: AnswerBatch) -> Tensor:
    """1 on every token: GRPO."""
    return batch.mask_BT.float()


def released_batch(batch: AnswerBatch) -> Tensor:
    """The released weights, faults included."""
    return normalise_positive(_released_raw(batch).raw_BT, batch.mask_BT)


def released_crashes(batch: AnswerBatch) -> Tensor:
    """(B,) how many spans of each answer make the released code raise."""
    return _released_raw(batch).crashes_B


def _released_raw(batch: AnswerBatch) -> rules.RawWeights:
    raw_BT, crashes_B = rules.raw_weights(batch.texts, batch.offsets, batch.mask_BT.shape[1], batch.step)
    return rules.RawWeights(raw_BT.to(batch.mask_BT.device), crashes_B)


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
    return normalise_positive(_by_region(raw_R, batch), batch.mask_BT)


def _by_region(raw_R: Tensor, batch: AnswerBatch) -> Tensor:
    return raw_R.to(batch.mask_BT.device)[batch.region_BT.long()] * batch.mask_BT


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


# The paper's derivation

_CURRICULUM = (Region.FORMAT, Region.NAME, Region.ARGUMENTS, Region.THINK)


def region_entropy(batch: AnswerBatch) -> Tensor:
    """(R,) mean entropy in nats of each region's tokens; NaN where the batch has none."""
    if batch.entropy_BT is None:
        raise ConfigurationError("entropy weights need the sampler's entropies; choose a backend that offers 'entropy'")
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

    ``form``: ``inverse`` (1/H) or ``inverse_bound`` (1/(1 - e^-H)); H is ``batch.entropy_R`` (a running mean) or measured on
    the batch, at least ``floor`` nats. With progress p in [0, 1]: format ``max(w_min, w - alpha_format p)``, arguments and
    think ``min(w_max, w + alpha p)``, name as it is; all within [w_min, w_max].
    """
    if form not in ("inverse", "inverse_bound"):
        raise ConfigurationError(f"method.weights.form: '{form}' is unknown; valid: inverse, inverse_bound")
    entropy_R = region_entropy(batch) if batch.entropy_R is None else batch.entropy_R
    entropy_R = entropy_R.to(batch.mask_BT.device).float()
    entropy_R = torch.where(entropy_R.isnan(), torch.ones_like(entropy_R), entropy_R).clamp(min=floor)
    raw_R = 1 / (entropy_R if form == "inverse" else -torch.expm1(-entropy_R))
    is_weighted_R = torch.zeros_like(raw_R, dtype=torch.bool)
    is_weighted_R[list(_CURRICULUM)] = True
    raw_R = raw_R * is_weighted_R
    token_BT = _by_region(raw_R, batch)
    raw_R = raw_R / (token_BT.sum() / (token_BT > 0).sum().clamp(min=1)).clamp(min=1e-8)
    change_R = torch.zeros_like(raw_R)
    change_R[Region.FORMAT] = -alpha_format
    change_R[Region.ARGUMENTS], change_R[Region.THINK] = alpha_parameters, alpha_think
    moved_R = (raw_R + change_R * batch.progress).clamp(w_min, w_max) * is_weighted_R
    return normalise_sequence(_by_region(moved_R, batch), batch.mask_BT)


def optimal(batch: AnswerBatch, *, beta: Mapping[str, float] | None = None) -> Tensor:
    """Theorem 2: w = T beta^-1 / sum beta^-1, with beta by region from answers that the update does not use.

    ``beta``: by region name in lower case; None: ``batch.beta_R`` (see `region_beta`). Every region needs a value above 0.
    """
    if beta is not None:
        beta_R = torch.tensor([float(beta.get(region.name.lower(), torch.nan)) for region in Region])
    elif batch.beta_R is not None:
        beta_R = batch.beta_R
    else:
        raise ConfigurationError(
            "optimal weights need beta by region: set method.weights.beta or use a backend that offers 'beta'"
        )
    present_R = torch.zeros(REGIONS, dtype=torch.bool)
    present_R[batch.region_BT[batch.mask_BT.bool()].long().cpu().unique()] = True
    if bool((~(beta_R.cpu() > 0) & present_R).any()):
        missing = [r.name.lower() for r in Region if present_R[r] and not beta_R[r] > 0]
        raise ConfigurationError(f"optimal weights: beta of {', '.join(missing)} is missing or not above zero")
    raw_R = torch.where(beta_R > 0, 1 / beta_R, torch.zeros_like(beta_R))
    return normalise_sequence(_by_region(raw_R.float(), batch), batch.mask_BT)


def region_beta(square_norm_BR: Tensor, count_BR: Tensor, *, floor: float = 1e-12) -> Tensor:
    """(R,) beta per token: sum over answers of |gradient of the region's tokens|^2 over the region's tokens.

    ``square_norm_BR``: squared norm of ``A * sum of grad log p`` over an answer's tokens of each region, measured on answers
    that the weighted update does not use; ``count_BR``: how many tokens those are. NaN where a region has no token.
    """
    return (square_norm_BR.sum(0) / count_BR.sum(0)).clamp(min=floor).float()


# Demonstrations


def _doubled(batch: AnswerBatch, tag: str, factor: float) -> Tensor:
    import re

    from restool.core import spans

    block = re.compile(f"<{tag}>.+?</{tag}>", re.DOTALL)
    found = [(row, *m.span()) for row, text in enumerate(batch.texts) for m in block.finditer(text)]
    weight_BT = batch.mask_BT.float()
    if found:
        line = spans.lay_out(batch.texts, batch.offsets)
        covered_BT = line.to_batch(spans.cover(line, *zip(*found, strict=True)), batch.mask_BT.shape[1])
        weight_BT = torch.where(covered_BT.to(weight_BT.device), factor * weight_BT, weight_BT)
    return weight_BT


def tool_block(batch: AnswerBatch, *, factor: float = 2.0) -> Tensor:
    """TSFT: ``factor`` on `<tool_call>.+?</tool_call>`, 1 elsewhere (ms-swift's loss scale "hermes", factor 2)."""
    return _doubled(batch, "tool_call", factor)


def think_block(batch: AnswerBatch, *, factor: float = 2.0) -> Tensor:
    """RSFT: ``factor`` on `<think>.+?</think>`, 1 elsewhere (the paper's value is unknown; 2 is our symmetric choice)."""
    return _doubled(batch, "think", factor)


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
