"""The arguments that each token-weight scheme takes, known without torch.

A plan checks every run of an experiment before anything is launched; loading torch for that would cost each first
call seconds and 200 MB. A test holds this table and the signatures in `restool.core.weights` together.
"""

from __future__ import annotations

from collections.abc import Mapping

from restool.core.errors import ConfigurationError, nearest

_CONSTANTS = ("name", "format", "think", "arguments", "response", "other")
_CURRICULUM = ("form", "alpha_format", "alpha_parameters", "alpha_think", "w_min", "w_max")

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "uniform": (),
    "released": (),
    "fixed": _CONSTANTS,
    "masked_uniform": (),
    "uniform_released_normaliser": (),
    "static": (),
    "no_think": (),
    "name_only": (),
    "arguments_only": (),
    "shuffled": (),
    "entropy": (*_CURRICULUM, "floor"),
    "optimal": ("beta",),
    "tool_block": ("factor",),
    "think_block": ("factor",),
}
REQUIRED: dict[str, tuple[str, ...]] = {"entropy": _CURRICULUM}


def check_arguments(scheme: str, given: Mapping[str, object]) -> None:
    """Raise ConfigurationError if the scheme is unknown, lacks an argument or has one that it does not take."""
    if scheme not in ARGUMENTS:
        raise ConfigurationError(
            f"unknown token-weight scheme '{scheme}'{nearest(scheme, ARGUMENTS)}; valid: {', '.join(sorted(ARGUMENTS))}"
        )
    known = ARGUMENTS[scheme]
    for key in given:
        if key not in known:
            takes = ", ".join(known) or "none"
            raise ConfigurationError(
                f"method.weights: '{scheme}' takes no '{key}'{nearest(str(key), known)}; its arguments: {takes}"
            )
    if missing := [name for name in REQUIRED.get(scheme, ()) if name not in given]:
        raise ConfigurationError(f"method.weights: the scheme '{scheme}' also needs {', '.join(missing)}")
