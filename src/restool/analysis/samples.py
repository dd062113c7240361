"""Which sampled answers the report shows: best, middle and worst of one RL run, under two weightings."""

from __future__ import annotations

from dataclasses import replace

from restool.analysis import answers
from restool.analysis.answers import Comparison, Weighting
from restool.analysis.experiment import Experiment, Run
from restool.core.errors import RestoolError

LONGEST = 4000  # characters; longer answers are left out of the choice
WEIGHTINGS = (Weighting("released spans", "released"), Weighting("fixed spans", "fixed"))


def choose(experiment: Experiment) -> Comparison | None:
    """Three answers of the last written step of one RL run, ResT if there is one; None if no run has written any."""
    order = {"rest_released": 0, "rest_fixed": 1}
    for run in sorted(experiment.rl_runs, key=lambda run: (order.get(run.method, 2), run.seed)):
        comparison = _compared(run)
        if comparison is not None:
            return comparison
    return None


def _compared(run: Run) -> Comparison | None:
    if not run.is_current:
        return None
    try:
        whole = answers.compare(run.directory, first=WEIGHTINGS[0], second=WEIGHTINGS[1])
    except RestoolError:  # no answers, or in a form that this version cannot read: the report says that it shows none
        return None
    ranked = sorted((a for a in whole.answers if len(a.text) <= LONGEST), key=lambda answer: -answer.reward)
    places = sorted({0, len(ranked) // 2, len(ranked) - 1}) if ranked else []
    return replace(whole, answers=[ranked[place] for place in places]) if ranked else None
