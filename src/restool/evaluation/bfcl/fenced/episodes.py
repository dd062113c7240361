"""Multi-turn entries inside the fence: their tools, run call by call, and the official verdict on a whole episode.

Everything that runs a model's call goes through `calls.Guard`, in the episode as in the checker. The official code
keeps tools for ever under a name made of model and entry; here they are deleted when an attempt begins and ends, so
that no attempt sees what another left. The name itself must not vary between attempts: the official executor writes
it into strings that look like calls, from where models can see it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import calls
import decoding

import rules

MODEL = "restool"
RESULT_CAP = 4 << 20
"""Characters that the calls of one answer may return; more than any context holds."""


class TooLarge(Exception):
    """The tools returned more text than any prompt could hold."""


class MultiTurn:
    """``step`` runs the calls of one answer, ``check`` judges a finished episode; ``reader.executable`` reads them."""

    def __init__(self, reader: Any) -> None:
        from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils

        self._reader = reader
        self._names = vars(multi_turn_utils)
        self._guard = calls.Guard(multi_turn_utils.execute_multi_turn_func_call)
        self._checker = multi_turn_checker.multi_turn_checker
        multi_turn_checker.execute_multi_turn_func_call = self._guard
        self._ran: dict[str, int] = {}

    def step(self, row: dict[str, Any], texts: list[str], before: int) -> dict[str, Any]:
        """Run the calls of every text in order; reply with those of the last. No calls: the turn is over.

        ``before``: how many texts with calls were run already; 0 begins anew, with new tools.
        """
        ran = self._ran.pop(row["id"], 0)
        if before == 0:
            ran = 0
            self.forget(row)
        if ran != before:
            raise RuntimeError(f"{row['id']}: {ran} steps were run, not {before}")
        found, results = decoding.Executable(), []
        for text in texts:
            found = self._reader.executable(text)
            results = self._run(row, found) if found.calls else []
            ran += bool(found.calls)
        self._ran[row["id"]] = ran
        shown = [source for _, _, source in found.calls]
        return {"calls": shown, "results": results, "unreadable": found.unreadable}

    def check(self, row: dict[str, Any], truth: list[list[str]], result: Any) -> dict[str, Any]:
        """The official verdict on ``result``: texts by turn and step, or the text of an error."""
        decoded, unreadable = _decoded(result, self._reader)
        told = {
            "calls": [[list(step) for step in turn] for turn in decoded],
            "unreadable": unreadable,
            "force_quit": bool(decoded) and len(decoded[-1]) > rules.MOST_STEPS,
            "turn": None,
        }
        if not isinstance(result, list):
            return told | {"correct": False, "error_type": "multi_turn:inference_error", "error": result}
        if len(result) != len(truth):
            error = (
                f"Model was force-terminated during inference phase. The length of the model result turns "
                f"({len(result)}) does not match the length of the ground truth turns ({len(truth)})."
            )
            return told | {"correct": False, "error_type": "multi_turn:force_terminated", "error": error}
        verdict = self._judged(row, truth, decoded)
        if verdict["valid"]:
            return told | {"correct": True, "error_type": None, "error": None}
        error_type, error = verdict["error_type"], _told(verdict)
        return told | {"correct": False, "error_type": error_type, "error": error, "turn": self._guard.turns - 1}

    def forget(self, row: dict[str, Any]) -> None:
        """Delete the tools of an entry, those of its check included."""
        for model in (MODEL, f"{MODEL}_eval", f"{MODEL}_ground_truth_eval"):
            for name in calls.instance_names(model, row["id"], row["involved_classes"]):
                self._names.pop(name, None)

    def _run(self, row: dict[str, Any], found: decoding.Executable) -> list[str]:
        made = [calls.Call.of(*call) for call in found.calls]
        place = (row["initial_config"], row["involved_classes"], MODEL, row["id"])
        results, _ = self._guard(made, *place, long_context=_is_long(row), is_evaL_run=False)
        if sum(map(len, results)) > RESULT_CAP:
            raise TooLarge
        return decoding.clean(results)

    def _judged(
        self, row: dict[str, Any], truth: list[list[str]], decoded: list[list[list[calls.Call]]]
    ) -> dict[str, Any]:
        self.forget(row)
        self._guard.turns = 0
        try:
            return self._checker(decoded, truth, row, row["id"].rsplit("_", 1)[0], MODEL)
        finally:
            self.forget(row)


def _decoded(result: Any, reader: Any) -> tuple[list[list[list[calls.Call]]], int]:
    """Calls by turn and step, steps without calls left out as in the official runner; how many were unreadable."""
    turns, unreadable = [], 0
    for texts in result if isinstance(result, list) else ():
        steps = [reader.executable(text) for text in texts]
        unreadable += sum(step.unreadable for step in steps)
        turns.append([[calls.Call.of(*call) for call in step.calls] for step in steps if step.calls])
    return turns, unreadable


def _is_long(row: dict[str, Any]) -> bool:
    return "long_context" in row["id"]


def _told(verdict: dict[str, Any]) -> str:
    """The official message and, where there is one, the difference that decided."""
    details = verdict.get("details", {})
    difference = details.get("differences") or details.get("missing_items") or ""
    with contextlib.suppress(Exception):
        return f"{verdict['error_message']} {difference}".strip()
    return verdict["error_message"]
