"""The clock that token weights and reward read: the reference step.

The released code reads the absolute training step (1 to 105 in its run). On another run length the same numbers mean
another curriculum, so the step can also be given as the share of this run, mapped onto the steps of the original.
"""

from __future__ import annotations

import math

from restool.core.errors import ConfigurationError, nearest

CLOCKS = ("step", "fraction")
SHAPES = ("linear", "constant", "cosine")


def clock(step: int, total_steps: int, *, clock: str = "step", shape: str = "linear", horizon: float = 105) -> float:
    """The reference step s of training step ``step``.

    ``step`` counts from 1, as the released trainer does. ``clock="step"`` reads it as it is (released; a linear clock
    runs on beyond ``horizon``), ``clock="fraction"`` as ``step / total_steps * horizon``. ``shape``: ``linear``;
    ``cosine``: ``horizon * (1 - cos(pi f)) / 2`` with f the share of the horizon, at most 1; ``constant``: 0.
    Raises ConfigurationError for an unknown clock or shape or for lengths that are not positive.
    """
    _known("clock", clock, CLOCKS)
    _known("shape", shape, SHAPES)
    if horizon <= 0 or total_steps <= 0:
        raise ConfigurationError(f"schedule: horizon ({horizon}) and total steps ({total_steps}) must be above zero")
    if shape == "constant":
        return 0.0
    share = step / total_steps if clock == "fraction" else step / horizon
    if shape == "cosine":
        return horizon * (1 - math.cos(math.pi * min(share, 1.0))) / 2
    return float(step) if clock == "step" else share * horizon


def _known(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigurationError(
            f"schedule.{key}: unknown value '{value}'{nearest(str(value), valid)}; valid: {', '.join(valid)}"
        )
