"""Sampled answers of a run, every token with its region and its weight under schemes to be compared.

Weights are computed again from the stored texts and offsets, at the reference step that the answers were sampled at;
the run's own are those that training stored. What the records of a run lack:
- an ``entropy`` scheme takes the step's mean entropies by region from metrics.jsonl, and scales its weights over the
  written answers instead of the whole batch;
- ``shuffled`` under another run is another draw than the one that a run of that method would make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from restool import algorithms
from restool.core.errors import ConfigurationError, RunError
from restool.core.scheme_arguments import check_arguments
from restool.runs import RunDirectory

if TYPE_CHECKING:
    from torch import Tensor

    from restool.core.batch import AnswerBatch

DOWN, UP = 0.95, 1.05  # a weight between the two counts as left alone
_PLACES = 4  # decimals of stored weights
_NEEDED = ("text", "offsets", "weights", "reward", "format", "correctness", "advantage", "ground_truth")


@dataclass(frozen=True)
class Weighting:
    """A token-weight scheme and its arguments. ``scheme`` None: the weights that training used, as they were stored."""

    label: str
    scheme: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one region. ``weights``: (lowest, highest) under each scheme."""

    text: str
    region: str
    tokens: int
    weights: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class WeighedAnswer:
    """One sampled answer; ``regions`` (lower case) and each list of ``weights`` have one entry a token."""

    step: int
    number: int  # place among the written answers of its step, from 1
    prompt: str
    ground_truth: str
    text: str
    offsets: list[tuple[int, int]]
    regions: list[str]
    weights: tuple[list[float], ...]
    reward: float
    format: float
    correctness: float
    advantage: float

    def pieces(self, which: int | None = None) -> list[Piece]:
        """Runs of neighbouring tokens with equal region and equal weights (under weighting ``which``, or under all)."""
        chosen = self.weights if which is None else (self.weights[which],)
        return pieces(self.text, self.offsets, self.regions, chosen)


@dataclass(frozen=True)
class Comparison:
    """Answers of one step of one run under some weightings (two, where they are printed side by side)."""

    run: str
    step: int
    reference_step: float
    of: int  # answers that the step wrote
    weightings: tuple[Weighting, ...]
    answers: list[WeighedAnswer]

    def as_json(self) -> dict[str, Any]:
        """Plain data; pieces instead of tokens."""
        kept = ("number", "prompt", "ground_truth", "text", "reward", "format", "correctness", "advantage")
        return {
            "run": self.run,
            "step": self.step,
            "reference_step": self.reference_step,
            "weightings": [w.label for w in self.weightings],
            "spread": self.spread(),
            "answers": [
                {name: getattr(answer, name) for name in kept}
                | {
                    "pieces": [
                        {
                            "text": p.text,
                            "region": p.region,
                            "tokens": p.tokens,
                            "weights": [low for low, _ in p.weights],
                        }
                        for p in answer.pieces()
                    ]
                }
                for answer in self.answers
            ],
        }

    def spread(self) -> list[dict[str, dict[str, float]]]:
        """`spread` of every weighting over all answers."""
        regions = [region for answer in self.answers for region in answer.regions]
        columns = range(len(self.weightings))
        return [spread(regions, [w for a in self.answers for w in a.weights[which]]) for which in columns]


def compare(
    run: RunDirectory,
    *,
    step: int | None = None,
    worst: int = 0,
    best: int = 0,
    first: Weighting | None = None,
    second: Weighting | None = None,
) -> Comparison:
    """The written answers of a step (None: the last) under ``first`` (None: the run's own weights) and ``second``.

    ``second`` None: `uniform`, or `fixed` for a run that is uniform itself. ``worst`` and ``best``: only so many
    answers of lowest and highest reward, in that order. Raises RunError for a run without answers, ConfigurationError
    for a step that wrote none and for a scheme that cannot be computed.
    """
    own = algorithms.get(run.settings.method.algorithm).weights
    first = first or Weighting(own, None)
    second = second or Weighting(*(("fixed", "fixed") if first.label == "uniform" else ("uniform", "uniform")))
    found = weigh(run, (first, second), step=step)
    return replace(found, answers=_selected(found.answers, worst, best))


def weigh(run: RunDirectory, weightings: Sequence[Weighting], *, step: int | None = None) -> Comparison:
    """The written answers of a step (None: the last) under every one of ``weightings``; errors as for `compare`."""
    step, rows = _rows(run, step)
    batch = _batch(run, step, [answer for _, answer in rows])
    weight_TBs = [_weights(w, batch, [answer for _, answer in rows]) for w in weightings]
    found = [
        _weighed(step, b, rows[b][0], rows[b][1], batch, [weights[b] for weights in weight_TBs])
        for b in range(len(rows))
    ]
    return Comparison(run.id, step, batch.step, len(rows), tuple(weightings), found)


def parse_weighting(text: str) -> Weighting:
    """``fixed`` or ``fixed:think=1,response=0.5``. Raises ConfigurationError for a wrong scheme or argument."""
    import yaml

    scheme, _, given = text.partition(":")
    try:
        arguments = yaml.safe_load("{" + given.replace("=", ": ") + "}")
    except yaml.YAMLError:
        raise ConfigurationError(f"'{text}': write a weighting as scheme:argument=value,argument=value") from None
    check_arguments(scheme, arguments)
    return Weighting(text, scheme, arguments)


def pieces(
    text: str,
    offsets: Sequence[Sequence[int]],
    regions: Sequence[str],
    weights: Sequence[Sequence[float]],
    *,
    by_region: bool = False,
) -> list[Piece]:
    """Merge neighbouring tokens of one region and, unless ``by_region``, of the same weights.

    Tokens that share a character (split bytes) show it once.
    """
    found: list[Piece] = []
    last_key: object = None
    for token, ((start, end), region) in enumerate(zip(offsets, regions, strict=True)):
        here = tuple(column[token] for column in weights)
        key = region if by_region else (region, here)
        if key == last_key:
            old = found[-1]
            pairs = zip(old.weights, here, strict=True)
            merged = tuple((min(low, value), max(high, value)) for (low, high), value in pairs)
            found[-1] = Piece(old.text + text[start:end], region, old.tokens + 1, merged)
        else:
            found.append(Piece(text[start:end], region, 1, tuple((value, value) for value in here)))
        last_key = key
    return found


def spread(regions: Sequence[str], weights: Sequence[float]) -> dict[str, dict[str, float]]:
    """By region, and over ``all``: tokens, mean weight, shares of zero, lowered, unchanged and raised weights."""
    columns: dict[str, list[float]] = {}
    for region, weight in zip(regions, weights, strict=True):
        columns.setdefault(region, []).append(weight)
    columns["all"] = list(weights)
    return {region: _shares(values) for region, values in columns.items() if values}


def _shares(values: list[float]) -> dict[str, float]:
    count = len(values)
    zero = sum(value == 0 for value in values)
    raised = sum(value > UP for value in values)
    lowered = sum(0 < value < DOWN for value in values)
    return {
        "tokens": count,
        "mean": sum(values) / count,
        "zero": zero / count,
        "lowered": lowered / count,
        "unchanged": (count - zero - raised - lowered) / count,
        "raised": raised / count,
    }


# ------------------------------------------------------------------------------------------- from the run's files


def _rows(run: RunDirectory, step: int | None) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """(step, [(prompt, answer)]) as they were written."""
    rollouts = run.rollouts()
    if not rollouts:
        raise RunError(f"{run.path} has no rollouts.jsonl; only RL runs write sampled answers")
    try:
        steps = sorted({int(rollout["step"]) for rollout in rollouts})
        chosen = steps[-1] if step is None else step
        found = [(r["prompt"], answer) for r in rollouts if r["step"] == chosen for answer in r["answers"]]
        missing = next((name for _, answer in found for name in _NEEDED if name not in answer), None)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.rollouts_path} has rows that this version cannot read ({error!r})") from None
    if missing:
        raise RunError(f"{run.rollouts_path} has answers without '{missing}'; another version of restool wrote them")
    if chosen not in steps:
        raise ConfigurationError(f"no answers were written at step {chosen}; there are: {', '.join(map(str, steps))}")
    return chosen, found


def _batch(run: RunDirectory, step: int, answers: Sequence[dict[str, Any]]) -> AnswerBatch:
    import torch

    from restool.core import schedules
    from restool.core.batch import AnswerBatch
    from restool.core.regions import region_ids_batch

    texts = [answer["text"] for answer in answers]
    offsets = [torch.tensor(answer["offsets"], dtype=torch.long).reshape(-1, 2) for answer in answers]
    count_B = torch.tensor([len(pairs) for pairs in offsets], dtype=torch.long)
    width = int(count_B.max()) if len(answers) else 0
    schedule, steps = run.settings.schedule, run.settings.training.rl.steps
    reference = schedules.clock(step, steps, clock=schedule.clock, shape=schedule.shape, horizon=schedule.horizon)
    return AnswerBatch(
        texts=texts,
        offsets=offsets,
        mask_BT=torch.arange(width) < count_B[:, None],
        region_BT=region_ids_batch(texts, offsets, width),
        step=reference,
        progress=min(step / steps, 1.0),
        seed=step,
        entropy_R=_entropies(run, step),
    )


def _entropies(run: RunDirectory, step: int) -> Tensor | None:
    import torch

    from restool.core.regions import Region

    row = next((row for row in reversed(run.metrics()) if row.get("step") == step), None)
    if row is None or "entropy/mean" not in row:
        return None
    values = [row.get(f"entropy/{region.name.lower()}") for region in Region]
    return torch.tensor([float("nan") if value is None else float(value) for value in values])


def _weights(weighting: Weighting, batch: AnswerBatch, answers: Sequence[dict[str, Any]]) -> list[list[float]]:
    """One list a answer, rounded as the stored ones are: equal weights stay equal."""
    if weighting.scheme is None:
        return [[float(value) for value in answer["weights"]] for answer in answers]
    from restool.core import weights

    rows = weights.weigh(weighting.scheme, batch, **weighting.arguments).tolist()
    return [
        [round(value, _PLACES) for value in row[: len(pairs)]] for row, pairs in zip(rows, batch.offsets, strict=True)
    ]


def _weighed(
    step: int, b: int, prompt: str, answer: dict[str, Any], batch: AnswerBatch, weights: list[list[float]]
) -> WeighedAnswer:
    from restool.core.regions import Region

    offsets = [(start, end) for start, end in batch.offsets[b].tolist()]
    if any(len(column) != len(offsets) for column in weights):
        raise RunError(f"step {step}, answer {b + 1}: {len(offsets)} tokens but {len(answer['weights'])} weights")
    return WeighedAnswer(
        step=step,
        number=b + 1,
        prompt=prompt,
        ground_truth=answer["ground_truth"],
        text=answer["text"],
        offsets=offsets,
        regions=[Region(value).name.lower() for value in batch.region_BT[b, : len(offsets)].tolist()],
        weights=tuple(weights),
        reward=answer["reward"],
        format=answer["format"],
        correctness=answer["correctness"],
        advantage=answer["advantage"],
    )


def _selected(answers: list[WeighedAnswer], worst: int, best: int) -> list[WeighedAnswer]:
    if not worst and not best:
        return answers
    ranked = sorted(answers, key=lambda answer: answer.reward)
    return ranked[:worst] + ranked[max(worst, len(ranked) - best) :]
