"""Sampled answers for the report: tokens by region, with their weight under the released and the fixed spans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from restool.analysis.experiment import Experiment, Run

SHOWN = 3
_LONGEST = 4000  # characters of one answer in the report


def choose(experiment: Experiment) -> list[dict[str, Any]]:
    """Best, worst and one answer between, of the last written step of one RL run (ResT if there is one).

    Each: run, step, reference_step, reward, format, correctness, advantage, ground_truth, prompt, schemes (scheme name
    -> list of {text, region, weight}).
    """
    run = _run(experiment)
    if run is None:
        return []
    rollouts = run.directory.rollouts()
    last = max(rollout["step"] for rollout in rollouts)
    answers = [(r["prompt"], a) for r in rollouts if r["step"] == last for a in r["answers"]]
    ranked = sorted(answers, key=lambda pair: pair[1]["reward"])
    places = dict.fromkeys([len(ranked) - 1, len(ranked) // 2, 0])
    reference = next((row.get("schedule/reference_step") for row in run.metrics if row["step"] == last), None) or 0.0
    return [_shown(run, last, reference, *ranked[place]) for place in list(places)[:SHOWN] if 0 <= place < len(ranked)]


def _run(experiment: Experiment) -> Run | None:
    order = {"rest_released": 0, "rest_fixed": 1}
    runs = sorted(experiment.rl_runs, key=lambda run: (order.get(run.method, 2), run.seed))
    return next((run for run in runs if run.is_current and any(r["answers"] for r in run.directory.rollouts())), None)


def _shown(run: Run, step: int, reference: float, prompt: str, answer: dict[str, Any]) -> dict[str, Any]:
    from restool.core import weights

    schemes: dict[str, Callable[..., Any]] = {"released spans": weights.released, "fixed spans": weights.fixed}
    mask = [1] * len(answer["offsets"])
    parts = ("reward", "format", "correctness", "advantage", "ground_truth")
    return {
        "run": run.id,
        "step": step,
        "reference_step": reference,
        "prompt": prompt[-_LONGEST:],
        **{part: answer.get(part) for part in parts},
        "schemes": {
            name: _tokens(answer, scheme(answer["text"], answer["offsets"], mask, reference).tolist())
            for name, scheme in schemes.items()
        },
    }


def _tokens(answer: dict[str, Any], weights: list[float]) -> list[dict[str, Any]]:
    """Pieces of text in order; tokens that share a character (split bytes) show it once."""
    pieces, shown = [], 0
    for (start, end), region, weight in zip(answer["offsets"], answer["regions"], weights, strict=True):
        if shown < end <= _LONGEST:
            text = answer["text"][max(start, shown) : end]
            pieces.append({"text": text, "region": _region(region), "weight": weight})
            shown = end
    return pieces


def _region(region: int | str) -> str:
    from restool.core.regions import Region

    return region.lower() if isinstance(region, str) else Region(region).name.lower()
