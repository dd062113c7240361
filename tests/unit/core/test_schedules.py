from __future__ import annotations

import pytest

from restool.core.errors import ConfigurationError
from restool.core.schedules import clock


def test_step_clock_is_the_released_one() -> None:
    assert [clock(s, 40, clock="step", shape="linear", horizon=105) for s in (1, 40, 150)] == [1.0, 40.0, 150.0]


def test_fraction_clock_reaches_the_horizon_at_the_end() -> None:
    assert clock(40, 40, clock="fraction", shape="linear", horizon=105) == 105
    assert clock(10, 40, clock="fraction", shape="linear", horizon=105) == pytest.approx(26.25)


def test_constant_and_cosine() -> None:
    assert clock(33, 40, clock="fraction", shape="constant", horizon=105) == 0
    half = clock(20, 40, clock="fraction", shape="cosine", horizon=105)
    assert half == pytest.approx(52.5)
    assert clock(10, 40, clock="fraction", shape="cosine", horizon=105) < 26.25
    assert clock(500, 40, clock="step", shape="cosine", horizon=105) == pytest.approx(105)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'fraction'"):
        clock(1, 2, clock="fractoin")
    with pytest.raises(ConfigurationError, match="shape"):
        clock(1, 2, shape="square")
    with pytest.raises(ConfigurationError, match="above zero"):
        clock(1, 2, horizon=0)
