"""Which sampled answers the report shows: best, middle and worst of one RL run, under every weighting it can have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from restool import algorithms
from restool.analysis import answers
from restool.analysis.answers import Comparison, Weighting
from restool.analysis.experiment import Experiment, Run
from restool.core.errors import ConfigurationError, RestoolError

LONGEST = 4000  # characters; longer answers are left out of the choice
FIRST, SECOND = "released", "fixed"  # the pair that the report opens with
_PLAIN = ("masked_uniform", "uniform_released_normaliser", "static", "no_think", "name_only", "arguments_only")
SCHEMES = (FIRST, SECOND, "uniform", *_PLAIN, "shuffled")


def choose(experiment: Experiment) -> Comparison | None:
    """Three answers of the last written step of one RL run, ResT if there is one; None if no run has written any.

    Weightings: the schemes that need nothing but the answer, then those of the experiment's methods that differ.
    """
    order = {"rest_released": 0, "rest_fixed": 1}
    for run in sorted(experiment.rl_runs, key=lambda run: (order.get(run.method, 2), run.seed)):
        comparison = _compared(experiment, run)
        if comparison is not None:
            return comparison
    return None


def _compared(experiment: Experiment, run: Run) -> Comparison | None:
    if not run.is_current:
        return None
    try:
        whole = answers.weigh(run.directory, list(_weightings(experiment, run)))
    except RestoolError:  # no answers, or in a form that this version cannot read: the report says that it shows none
        return None
    ranked = sorted((a for a in whole.answers if len(a.text) <= LONGEST), key=lambda answer: -answer.reward)
    places = sorted({0, len(ranked) // 2, len(ranked) - 1}) if ranked else []
    return replace(whole, answers=[ranked[place] for place in places]) if ranked else None


def _weightings(experiment: Experiment, run: Run) -> Iterator[Weighting]:
    yield from (Weighting(name, name) for name in SCHEMES)
    seen = {(name, "{}") for name in SCHEMES}
    for method in experiment.rl_runs:
        scheme, arguments = algorithms.get(method.settings.method.algorithm).weights, method.settings.method.weights
        key = (scheme, repr(sorted(arguments.items())) if arguments else "{}")
        weighting = Weighting(method.method, scheme, arguments)
        if key not in seen and _can_be_computed(run, weighting):
            seen.add(key)
            yield weighting


def _can_be_computed(run: Run, weighting: Weighting) -> bool:
    """Not without signals that the records of a run lack, such as beta."""
    try:
        answers.weigh(run.directory, [weighting])
    except ConfigurationError:
        return False
    return True
