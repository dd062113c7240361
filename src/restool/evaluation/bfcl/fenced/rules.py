"""Numbers and words of the official multi-turn loop that both sides of the fence use."""

from __future__ import annotations

MOST_STEPS = 20
"""Answers with calls in one turn; one more ends the episode (``MAXIMUM_STEP_LIMIT``)."""

ERROR_PREFIX = "Error during inference:"
"""How the official runner writes down an episode that broke off; it counts as wrong."""

OVER_LENGTH = f"{ERROR_PREFIX} the prompt leaves no room for an answer"
