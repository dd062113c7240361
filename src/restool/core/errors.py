"""One family of errors. A message says what is wrong, where, and what to do about it.

The command line prints a :class:`RestoolError` as one line and exits with its ``exit_status``; any other
exception is a defect of the program and is reported as such (the trace with ``--debug``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RestoolError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_status = 2


class ConfigurationError(RestoolError):
    """A value that a person chose is unknown, of the wrong type or contradictory."""


class DataError(RestoolError):
    """A data file is missing, truncated, altered or malformed."""


class ModelError(RestoolError):
    """A model folder cannot be used as one."""


class RunError(RestoolError):
    """A run directory does not fit the request."""


class ToolEnvironmentError(RestoolError):
    """A tool environment is missing or broken."""


class EvaluationError(RestoolError):
    """A benchmark could not be scored."""


class TrackingError(RestoolError):
    """Results could not be written to MLflow."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest valid name, or ``""`` when nothing is close."""
    match = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
