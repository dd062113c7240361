"""The paper's claims beside ours: value, interval, status. Nothing is filled in by hand.

Sources of the paper's numbers: its abstract and README, third-party notes on the paper, and (weak) a machine-made
summary; cells of its tables that no source gives are unknown and stay so. A claim about a model is measured on that
model only: a tiny-model run never says anything about it.

Status of a value: ``reproduced`` if it lies in our 95 % interval over seeds. Of a difference: ``reproduced`` if our
interval of paired differences lies wholly on the paper's side of zero. Otherwise ``not reproduced``, ``not run`` or
``unknown in paper``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from restool.analysis import comparison
from restool.analysis.experiment import Experiment, Run

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
NOT_RUN, UNKNOWN = "not run", "unknown in paper"

# Models of the paper: the Hugging Face id that a run must use.
MODELS = {
    "Qwen3-1.7B": r"Qwen3-1\.7B$",
    "Qwen3-4B-2507": r"Qwen3-4B(-Instruct)?-2507$",
    "Qwen3-8B": r"Qwen3-8B$",
    "Qwen3-14B": r"Qwen3-14B$",
    "Llama-3.2-3B-Instruct": r"Llama-3\.2-3B-Instruct$",
}

# Metric: benchmark, place in summary.json, fewest items that make it whole.
METRICS = {
    "API-Bank overall": ("api-bank", "aggregates", "compat/overall"),
    "API-Bank level 3": ("api-bank", "categories", "compat/level-3"),
    "BFCL single-turn": ("bfcl", "aggregates", "single_turn"),
    "BFCL multi-turn": ("bfcl", "aggregates", "multi_turn"),
    "BFCL multi-turn base": ("bfcl", "categories", "multi_turn_base"),
}


@dataclass(frozen=True)
class Arm:
    """Which runs of a model a claim is about."""

    label: str
    algorithm: str
    reward: str | None = None  # reward preset, where the claim turns on it

    def has(self, run: Run) -> bool:
        is_method = run.settings.method.algorithm == self.algorithm
        return is_method and self.reward in (None, run.settings.reward.preset)


REST = Arm("ResT", "rest_released", "rest")
GRPO = Arm("GRPO", "grpo")
DR_GRPO = Arm("Dr.GRPO", "dr_grpo")
STATIC = Arm("ResT without curriculum", "static", "rest")
NO_THINK = Arm("ResT without CoT gradient", "no_think", "rest")
NO_DYNAMIC_REWARD = Arm("ResT without dynamic reward", "rest_released", "rest_unscheduled")
GPT_4O = Arm("GPT-4o", "")


@dataclass(frozen=True)
class Claim:
    """``value``: percent, or percentage points where ``minus`` names a second arm; None: unknown."""

    model: str
    metric: str
    arm: Arm
    value: float | None
    source: str
    minus: Arm | None = None

    @property
    def statement(self) -> str:
        what = self.arm.label if self.minus is None else f"{self.arm.label} minus {self.minus.label}"
        return f"{self.metric}, {self.model}: {what}"


_ABSTRACT, _NOTES, _WEAK = "abstract and README", "third-party notes", "machine-made summary (weak)"
_8B, _4B, _14B, _LLAMA = "Qwen3-8B", "Qwen3-4B-2507", "Qwen3-14B", "Llama-3.2-3B-Instruct"
_OVERALL, _TURNS, _BASE = "API-Bank overall", "BFCL multi-turn", "BFCL multi-turn base"

CLAIMS: tuple[Claim, ...] = (
    Claim(_4B, "BFCL single-turn", REST, 4.11, _ABSTRACT, GPT_4O),
    Claim(_4B, _BASE, REST, 1.50, _ABSTRACT, GPT_4O),
    Claim(_8B, _OVERALL, REST, 4.86, "README; model and benchmark from third-party notes", STATIC),
    Claim(_4B, _TURNS, REST, 50.38, _NOTES),
    Claim(_4B, _TURNS, DR_GRPO, 48.62, _NOTES),
    Claim(_4B, _TURNS, REST, 1.76, "derived from third-party notes", DR_GRPO),
    Claim(_4B, _BASE, REST, 62.50, _NOTES),
    Claim(_14B, _TURNS, REST, 44.25, _NOTES),
    Claim(_14B, _TURNS, GRPO, 38.88, _NOTES),
    Claim(_14B, _TURNS, REST, 5.37, _NOTES, GRPO),
    Claim(_8B, _TURNS, REST, 40.13, _NOTES),
    Claim(_8B, _TURNS, DR_GRPO, 38.12, _NOTES),
    Claim(_8B, _TURNS, REST, 2.01, "derived from third-party notes", DR_GRPO),
    Claim(_8B, _BASE, REST, 50.50, _NOTES),
    Claim(_8B, _OVERALL, REST, 70.69, _NOTES),
    Claim(_8B, _OVERALL, DR_GRPO, 68.15, _NOTES),
    Claim(_8B, _OVERALL, REST, 2.54, "derived from third-party notes", DR_GRPO),
    Claim(_8B, "API-Bank level 3", REST, 60.31, _NOTES),
    Claim(_8B, _OVERALL, NO_DYNAMIC_REWARD, 64.15, _NOTES),
    Claim(_8B, _OVERALL, NO_THINK, 66.33, _NOTES),
    Claim(_8B, _OVERALL, STATIC, 65.83, _NOTES),
    Claim(_8B, _OVERALL, REST, 6.54, "derived from third-party notes", NO_DYNAMIC_REWARD),
    Claim(_8B, _OVERALL, REST, 4.36, "derived from third-party notes", NO_THINK),
    Claim(_LLAMA, _OVERALL, REST, 62.81, _WEAK),
)

# Arms of the paper's main tables whose cells no source gives, unless listed above.
MAIN_TABLE = (
    Arm("Base", "base"),
    Arm("SFT", "sft"),
    Arm("TSFT", "tsft"),
    Arm("RSFT", "rsft"),
    Arm("SFT+GRPO", "sft_grpo"),
    Arm("PPO", "ppo"),
    GRPO,
    DR_GRPO,
    REST,
)

_COLUMNS = ("claim", "paper", "source", "ours", "low", "high", "n_seeds", "n_items", "gap", "status", "why")


def table(experiment: Experiment) -> list[dict[str, Any]]:
    """One row a claim: claim, paper, source, ours, low, high, n_seeds, n_items, gap, status, why."""
    rows = [_judge(experiment, claim) for claim in (*CLAIMS, *_unknown_cells(experiment))]
    rows += [_could_not(*entry) for entry in _UNMEASURABLE]
    return [*rows, _lemma(experiment), _region_entropy(experiment)]


_UNMEASURABLE = (
    (
        "Largest gain over prior methods: 8.76 points (notes: over GRPO, BFCL), 3.02 on API-Bank",
        8.76,
        "abstract; notes",
        "model and cell unknown",
    ),
    ("90.08 on Qwen3-8B, metric not stated", 90.08, _WEAK, "metric unknown"),
    ("GPT-4o-2024-11-20: BFCL multi-turn overall", 50.00, _NOTES, "a closed model, not evaluated"),
    ("GPT-4o-2024-11-20: BFCL multi-turn base", 61.00, "derived from notes", "a closed model, not evaluated"),
)


def _could_not(statement: str, value: float, source: str, why: str) -> dict[str, Any]:
    return _row(statement, value, source, None, 0, NOT_RUN, why)


def _unknown_cells(experiment: Experiment) -> list[Claim]:
    """Cells of the main tables that the paper has, no source gives, and this experiment's models could fill."""
    known = {(claim.model, claim.metric, claim.arm.label) for claim in CLAIMS if claim.minus is None}
    here = [name for name in MODELS if any(_is_model(run, name) for run in experiment.runs)]
    return [
        Claim(model, metric, arm, None, "no source")
        for model in here
        for metric in (_OVERALL, _TURNS)
        for arm in MAIN_TABLE
        if (model, metric, arm.label) not in known
    ]


def _judge(experiment: Experiment, claim: Claim) -> dict[str, Any]:
    runs = [run for run in experiment.runs if _is_model(run, claim.model)]
    ours, n_items, why = _measure(runs, claim)
    if claim.value is None:
        status, why = UNKNOWN, why or "measured here; the paper's value is not public to us"
    elif ours is None:
        status = NOT_RUN
    else:
        status, why = _verdict(claim.value, ours, is_difference=claim.minus is not None)
    return _row(claim.statement, claim.value, claim.source, ours, n_items, status, why)


def _verdict(paper: float, ours: comparison.Estimate, *, is_difference: bool) -> tuple[str, str]:
    if math.isnan(ours.low):
        return NOT_RUN, "one seed: no interval"
    if is_difference:
        side = ours.low if paper > 0 else -ours.high
        if side > 0:
            return REPRODUCED, "our interval lies on the paper's side of zero"
        holds_both = ours.low <= 0 <= ours.high and ours.low <= paper <= ours.high
        return NOT_REPRODUCED, "undecided: our interval holds both zero and the paper's value" if holds_both else (
            "our interval reaches zero or beyond"
        )
    inside = ours.low <= paper <= ours.high
    return (REPRODUCED, "inside our interval") if inside else (NOT_REPRODUCED, "outside our interval")


def _measure(runs: list[Run], claim: Claim) -> tuple[comparison.Estimate | None, int, str]:
    """Our estimate in percent (or points), the items behind it, and why there is none."""
    if not runs:
        return None, 0, f"{claim.model} is not in this experiment"
    arms = [_by_seed(runs, arm, claim.metric) for arm in (claim.arm, claim.minus) if arm is not None]
    for arm, (values, _) in zip((claim.arm, claim.minus), arms, strict=False):
        if not values:
            reason = "a closed model, not evaluated" if arm is GPT_4O else f"no finished result of {arm.label}"
            return None, 0, reason
    n_items = min(items for _, items in arms)
    if claim.minus is None:
        return comparison.t_interval(list(arms[0][0].values())), n_items, ""
    return comparison.paired_difference(arms[0][0], arms[1][0]), n_items, ""


def _by_seed(runs: list[Run], arm: Arm, metric: str) -> tuple[dict[int, float], int]:
    benchmark, place, name = METRICS[metric]
    values, n_items = {}, 0
    for run in runs:
        summary = run.summary(benchmark) if arm.has(run) else None
        if not summary or summary.get("limit"):  # a limited run is no estimate of the whole benchmark
            continue
        value = summary[place].get(name)
        value = value.get("accuracy") if isinstance(value, dict) else value
        if value is not None:
            values[run.seed] = 100 * value
            n_items = sum(c["n"] for c in summary["categories"].values())
            n_items = summary["categories"][name]["n"] if place == "categories" else n_items
    return values, n_items


def _is_model(run: Run, name: str) -> bool:
    return re.search(MODELS[name], run.settings.model.path or "") is not None


def _lemma(experiment: Experiment) -> dict[str, Any]:
    """An identity of the softmax, so a check on any model counts."""
    statement = "Lemma 2: E|score|^2 = 1 - sum p^2 <= 1 - e^-H for every token"
    measured = (experiment.variance or {}).get("lemma2")
    if measured is None:
        return _row(statement, None, "paper", None, 0, NOT_RUN, "gradient variance was not measured")
    whole = measured["all"]
    holds = whole["violations"] == 0 and abs(whole["sampled"] - whole["expected"]) <= 4 * whole["standard_error"]
    why = (
        f"{whole['violations']} of {whole['tokens']} tokens above the bound; sampled {whole['sampled']:.4f} against "
        f"1 - sum p^2 = {whole['expected']:.4f} (an identity: it holds for any model, the tiny one included)"
    )
    return _row(statement, None, "paper", None, whole["tokens"], REPRODUCED if holds else NOT_REPRODUCED, why)


def _region_entropy(experiment: Experiment) -> dict[str, Any]:
    measured = (experiment.variance or {}).get("entropy")
    why = "the values that the authors used are not given" + (
        "; ours: " + ", ".join(f"{region} {value:.3f}" for region, value in measured.items()) + " nats"
        if measured
        else ""
    )
    return _row("Mean entropy by region behind the initial weights", None, "no source", None, 0, UNKNOWN, why)


def _row(
    claim: str,
    paper: float | None,
    source: str,
    ours: comparison.Estimate | None,
    n_items: int,
    status: str,
    why: str,
) -> dict[str, Any]:
    mean, low, high, n = (ours.mean, ours.low, ours.high, ours.n) if ours else (None, None, None, 0)
    gap = mean - paper if mean is not None and paper is not None else None
    return dict(zip(_COLUMNS, (claim, paper, source, mean, low, high, n, n_items, gap, status, why), strict=True))
