"""How much does a token weighting reduce the variance of the policy gradient, and what does that cost in signal?

At the checkpoint that RL starts from: P prompts, n answers each, one gradient an answer and weighting. Deviations from
the paper's theory, which is by token: weights fitted to data (1/H, 1/(1 - e^-H), 1/beta) are by region, and they are
fitted on one half of the prompts and measured on the other. Every weighting has mean weight 1 over all tokens (the
constraint of Theorem 1), so variances can be compared; the signal-to-noise ratio does not depend on that choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from restool import files
from restool.core.errors import DataError
from restool.settings import RunSettings, VarianceSettings

if TYPE_CHECKING:
    from restool.analysis.gradients import SampledAnswers, Scheme, ScoreNorms, TokenClasses

RESAMPLES = 2000
_FLOOR = 1e-3  # nats; a region that is never in doubt would get all the weight
_W_MAX = 8.0  # the released code's cap
_PAPER_REGIONS = ("FORMAT", "NAME", "ARGUMENTS", "THINK")

# Weightings in the order of the figure; `fitted` ones take region weights from the other half of the prompts.
TITLES = {
    "uniform": "uniform (GRPO)",
    "masked_uniform": "masked uniform",
    "released_0": "ResT released, start",
    "released_105": "ResT released, end",
    "fixed_0": "ResT fixed, start",
    "fixed_105": "ResT fixed, end",
    "inverse_entropy": "1/H, four regions",
    "inverse_bound": "1/(1-e^-H), four regions",
    "inverse_entropy_all": "1/H, all regions",
    "inverse_beta": "1/beta, all regions",
}
FITTED = ("inverse_entropy", "inverse_bound", "inverse_entropy_all", "inverse_beta")


@dataclass(frozen=True)
class _Moments:
    """Of one weighting: variance within each prompt, and the prompts' mean gradients."""

    variance_P: np.ndarray
    mean_PM: np.ndarray


def measure(
    model_path: str | Path,
    prepared: str | Path,
    settings: RunSettings,
    variance: VarianceSettings,
    out: str | Path,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure at the model in ``model_path`` on training prompts of ``prepared``; write ``out`` (a .json or a folder).

    The record: ``weightings`` (relative variance, cosine to the mean gradient under uniform weights, signal-to-noise
    ratio of a training step, each with a 95 % bootstrap interval over prompts; empty if fewer than four prompts have
    reward spread), ``entropy`` and ``beta`` by region, ``lemma2``.
    Raises DataError without training rows, ModelError if the model cannot be loaded.
    """
    import torch

    from restool.analysis import gradients

    began = time.process_time()
    torch.set_num_threads(settings.backend.threads)
    rows = _training_rows(Path(prepared), variance.prompts, settings.seed)
    report(f"variance: sampling {len(rows)} prompts x {variance.samples} answers")
    model, sampled = gradients.sample(model_path, rows, variance.samples, settings)
    schemes = _schemes()
    report(f"variance: {int((sampled.advantage_B != 0).sum())} answers with an advantage")
    classes, norms = gradients.measure(model, sampled, schemes, settings, variance.projection, _progress(report))
    batch = settings.training.rl.prompts * settings.training.rl.samples
    record = {
        "model": str(model_path),
        "prompts": len(rows),
        "samples": variance.samples,
        "prompts_with_signal": len(classes.prompt_C.unique()),
        "projection": variance.projection,
        "batch": batch,
        "weightings": _weightings(classes, sampled, list(schemes), batch, settings.seed),
        "entropy": _by_region(sampled.batch.entropy_BT[sampled.batch.mask_BT], _regions(sampled)),
        "beta": {name: value for name, value in zip(_names(), _beta(classes), strict=True) if value > 0},
        "tokens": _counts(_regions(sampled)),
        "lemma2": _lemma2(norms),
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    path = Path(out) if str(out).endswith(".json") else Path(out) / "variance.json"
    files.write_json(path, record)
    report(f"variance: {record['cpu_seconds']} CPU-seconds -> {path}")
    return record


def _training_rows(prepared: Path, count: int, seed: int) -> list[Any]:
    from restool.data.rows import read_rows

    rows = read_rows(prepared, "train")
    if not rows:
        raise DataError(f"{prepared} has no training rows to sample prompts from")
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[index] for index in order]


def _schemes() -> dict[str, Scheme]:
    """The weightings that are given beforehand; reference step 0 is the start of the released ramp, 105 its end."""
    from dataclasses import replace

    from restool.core import weights

    def at(scheme: Scheme, step: float, batch: Any) -> Any:
        return scheme(replace(batch, step=step))

    return {
        "uniform": weights.uniform,
        "masked_uniform": weights.masked_uniform,
        "released_0": partial(at, weights.released_batch, 0.0),
        "released_105": partial(at, weights.released_batch, 105.0),
        "fixed_0": partial(at, weights.fixed_batch, 0.0),
        "fixed_105": partial(at, weights.fixed_batch, 105.0),
    }


def _progress(report: Callable[[str], None]) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            report(f"variance: gradients of {done}/{total} answers")

    return show


# ------------------------------------------------------------------------------------------------- statistics


def _weightings(
    classes: TokenClasses, sampled: SampledAnswers, names: list[str], batch: int, seed: int
) -> list[dict[str, Any]]:
    prompts = classes.prompt_C.unique().tolist()
    if len(prompts) < 4:  # two halves of two prompts
        return []
    weights = {name: classes.weight_CS[:, index].numpy() for index, name in enumerate(names)}
    weights |= _fitted(classes, sampled, prompts)
    moments = {name: _moments(classes, sampled, weight_C, prompts) for name, weight_C in weights.items()}
    random = np.random.default_rng(seed)
    resampled = random.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=RESAMPLES)
    count_BP = np.concatenate([np.ones((1, len(prompts))), resampled])  # row 0: the sample itself
    return [
        {"name": name, "title": TITLES[name], "fitted": name in FITTED}
        | _statistics(moments[name], moments["uniform"], count_BP, batch)
        for name in TITLES
    ]


def _fitted(classes: TokenClasses, sampled: SampledAnswers, prompts: list[int]) -> dict[str, np.ndarray]:
    """Region weights for either half of the prompts, fitted on the other half; by class (C)."""
    half_C = np.isin(classes.prompt_C.numpy(), prompts[::2])
    half_B = np.isin(sampled.prompt_B.numpy(), prompts[::2])
    region_C = classes.region_C.numpy()
    result = {name: np.zeros(len(region_C)) for name in FITTED}
    for is_even in (True, False):
        fit_C, measured_C = half_C == is_even, half_C != is_even
        entropy_R = _region_entropy(sampled, half_B == is_even)
        beta_R = _beta(classes, fit_C)
        is_paper_R = np.array([name.upper() in _PAPER_REGIONS for name in _names()])
        weight = {
            "inverse_entropy": is_paper_R / entropy_R,
            "inverse_bound": is_paper_R / -np.expm1(-entropy_R),
            "inverse_entropy_all": 1 / entropy_R,
            "inverse_beta": np.divide(1, beta_R, out=np.zeros_like(beta_R), where=beta_R > 0),
        }
        for name, weight_R in weight.items():
            # Mean 1 on either half: otherwise the halves' scales would add to the variance between prompts.
            result[name][measured_C] = _mean_one(weight_R[region_C[measured_C]], classes.count_C.numpy()[measured_C])
    return result


def _mean_one(weight_C: np.ndarray, count_C: np.ndarray) -> np.ndarray:
    total = (weight_C * count_C).sum()
    return weight_C * count_C.sum() / total if total > 0 else weight_C


def _moments(classes: TokenClasses, sampled: SampledAnswers, weight_C: np.ndarray, prompts: list[int]) -> _Moments:
    weight_C = _mean_one(weight_C, classes.count_C.numpy())
    gradient_BM = np.zeros((len(sampled.answers), classes.gradient_CM.shape[1]))
    np.add.at(gradient_BM, classes.answer_C.numpy(), weight_C[:, None] * classes.gradient_CM.numpy())
    prompt_B = sampled.prompt_B.numpy()
    groups = [gradient_BM[prompt_B == prompt] for prompt in prompts]
    variance_P = np.array([group.var(axis=0, ddof=1).sum() for group in groups])
    return _Moments(variance_P, np.stack([group.mean(axis=0) for group in groups]))


def _statistics(own: _Moments, uniform: _Moments, count_BP: np.ndarray, batch: int) -> dict[str, Any]:
    """Values on the sample (first row of ``count_BP``) and percentile intervals over the resampled prompts."""
    variance_B = count_BP @ own.variance_P
    ratio_B = variance_B / (count_BP @ uniform.variance_P)
    own_PP, cross_PP, uniform_PP = (
        a.mean_PM @ b.mean_PM.T for a, b in ((own, own), (own, uniform), (uniform, uniform))
    )
    norms_B = np.sqrt(_quadratic(count_BP, own_PP) * _quadratic(count_BP, uniform_PP))
    cosine_B = _quadratic(count_BP, cross_PP) / norms_B
    # Squared norm of the mean gradient from pairs of different prompts: unbiased, so it may be negative.
    pairs_B = count_BP.sum(1) ** 2 - (count_BP**2).sum(1)
    signal_B = (_quadratic(count_BP, own_PP) - (count_BP**2) @ np.diag(own_PP)) / pairs_B
    snr_B = signal_B / (variance_B / count_BP.sum(1) / batch)
    return {
        key: value
        for prefix, name, values in (
            ("variance", "variance_ratio", ratio_B),
            ("cosine", "cosine", cosine_B),
            ("snr", "snr", snr_B),
        )
        for key, value in (
            (name, float(values[0])),
            (f"{prefix}_low", float(np.percentile(values[1:], 2.5))),
            (f"{prefix}_high", float(np.percentile(values[1:], 97.5))),
        )
    }


def _quadratic(count_BP: np.ndarray, gram_PP: np.ndarray) -> np.ndarray:
    return ((count_BP @ gram_PP) * count_BP).sum(1)


# ---------------------------------------------------------------------------------------------------- regions


def _names() -> list[str]:
    from restool.core.regions import Region

    return [region.name.lower() for region in Region]


def _regions(sampled: SampledAnswers) -> np.ndarray:
    return sampled.batch.region_BT[sampled.batch.mask_BT].numpy()


def _region_entropy(sampled: SampledAnswers, chosen_B: np.ndarray) -> np.ndarray:
    """(R,) mean entropy in nats of the chosen answers' tokens, at least 0.001; 1 for a region without tokens."""
    mask_BT = sampled.batch.mask_BT.numpy() & chosen_B[:, None]
    region_N = sampled.batch.region_BT.numpy()[mask_BT]
    entropy_N = sampled.batch.entropy_BT.numpy()[mask_BT]
    count_R = np.bincount(region_N, minlength=len(_names()))
    total_R = np.bincount(region_N, entropy_N, minlength=len(_names()))
    return np.where(count_R > 0, np.maximum(total_R / np.maximum(count_R, 1), _FLOOR), 1.0)


def _beta(classes: TokenClasses, chosen_C: np.ndarray | None = None) -> np.ndarray:
    """(R,) E|A * sum of grad log p over the region's tokens|^2 per token; 0 for a region without tokens."""
    chosen_C = np.ones(len(classes.count_C), dtype=bool) if chosen_C is None else chosen_C
    regions = len(_names())
    square_R, count_R = np.zeros(regions), np.zeros(regions)
    answer_C, region_C = classes.answer_C.numpy(), classes.region_C.numpy()
    key_C = answer_C * regions + region_C
    for key in np.unique(key_C[chosen_C]):
        members = (key_C == key) & chosen_C
        total_M = classes.gradient_CM.numpy()[members].sum(axis=0)
        square_R[key % regions] += float(total_M @ total_M)
        count_R[key % regions] += classes.count_C.numpy()[members].sum()
    return square_R / np.maximum(count_R, 1)


def _by_region(value_N: Any, region_N: np.ndarray) -> dict[str, float]:
    values = value_N.numpy().astype(float)
    return {
        name: float(values[region_N == index].mean())
        for index, name in enumerate(_names())
        if (region_N == index).any()
    }


def _counts(region_N: np.ndarray) -> dict[str, int]:
    return {name: int((region_N == index).sum()) for index, name in enumerate(_names())}


def _lemma2(norms: ScoreNorms) -> dict[str, dict[str, float]]:
    """Lemma 2, E|score|^2 = 1 - sum p^2 <= 1 - e^-H: over all tokens with the drawn norms, and the bound by region."""
    region_N, expected_N = norms.region_N.numpy(), norms.expected_N.numpy()
    bound_N = -np.expm1(-norms.entropy_N.numpy())

    def row(chosen: Any) -> dict[str, float]:
        return {
            "tokens": len(expected_N[chosen]),
            "expected": float(expected_N[chosen].mean()),
            "bound": float(bound_N[chosen].mean()),
            "violations": int((expected_N[chosen] > bound_N[chosen] + 1e-9).sum()),
        }

    sampled_N = norms.sampled_N.numpy()
    error = float(sampled_N.std(ddof=1) / np.sqrt(len(sampled_N)))
    whole = {**row(slice(None)), "sampled": float(sampled_N.mean()), "standard_error": error}
    regions = {name: row(region_N == index) for index, name in enumerate(_names()) if (region_N == index).any()}
    return {"all": whole, **regions}
