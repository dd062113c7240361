"""The allow-list in front of BFCL's tools, whose official executor passes every call of a model to ``eval``.

A call is executed only if its name is a public method of the entry's tools, its parameter names are identifiers and
its values came out of JSON; the official executor then runs it, its substitutions included. Any other call gets
the text that the executor would give where that can be known without executing anything, so that models see the
same errors. One deviation: a name that exists in the executor's own module or among Python's builtins (``print``,
``open``) is "not defined" here, whereas there it would run.

Numbers that set an amount of work are clamped where the outcome stays what it was, or has thousands of digits.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

import decoding

MOST_DIGITS = 10_000
"""Digits that ``logarithm`` and ``square_root`` compute at most; ten million take minutes."""

_TOO_MANY_BITS = 16_000
"""Python refuses to print integers of more than 4,300 digits (14,285 bits): larger powers all end in that error."""

_DENIED = ("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run")
"""Names that the official executor refuses by itself."""

Executor = Callable[..., tuple[list[str], dict[str, Any]]]


class Call(str):
    """The source text of a call that a model made, with what it was made from."""

    name: str
    parameters: dict[str, Any]

    @classmethod
    def of(cls, name: str, parameters: dict[str, Any], source: str) -> Call:
        call = cls(source)
        call.name, call.parameters = name, parameters
        return call


class Guard:
    """Stands in for ``execute_multi_turn_func_call``, here and in the official checker's namespace.

    ``turns``: how often ground truth was executed since `reset`, which the official checker does once a turn.
    """

    def __init__(self, official: Executor):
        self.official = official
        self.turns = 0
        self._methods: dict[str, frozenset[str]] = {}

    def __call__(
        self,
        func_call_list: list[str],
        initial_config: dict[str, Any],
        involved_classes: list[str],
        model_name: str,
        test_entry_id: str,
        **options: Any,
    ) -> tuple[list[str], dict[str, Any]]:
        place = (initial_config, involved_classes, model_name, test_entry_id)
        if model_name.endswith("_ground_truth"):  # BFCL's own data
            self.turns += 1
            return self.official(func_call_list, *place, **options)
        if not all(name in self._methods for name in involved_classes):
            self._learn(self.official([], *place, **options)[1])
        sources = [self._admitted(call, involved_classes) for call in func_call_list]
        if None not in sources:
            return self.official(sources, *place, **options)
        results = []
        for call, source in zip(func_call_list, sources, strict=True):
            results += [refusal(call)] if source is None else self.official([source], *place, **options)[0]
        return results, self.official([], *place, **options)[1]

    def _admitted(self, call: str, involved_classes: list[str]) -> str | None:
        """What to execute for ``call``, or None if it may not be executed."""
        if not isinstance(call, Call):
            raise TypeError("only decoded calls are executed")
        name = call.name.lstrip(" \t").rstrip()  # as eval and the official executor read it
        if not any(name in self._methods[kind] for kind in involved_classes):
            return None
        if not all(decoding.legal_key(key) for key in call.parameters):
            return None
        parameters = clamped(name, call.parameters)
        return str(call) if parameters == call.parameters else decoding.source(name, parameters)

    def _learn(self, instances: dict[str, Any]) -> None:
        """Remember the public methods of tools, read as the official executor reads them."""
        for kind, tool in instances.items():
            members = inspect.getmembers(tool, predicate=inspect.ismethod)
            self._methods[kind] = frozenset(name for name, _ in members if not name.startswith("_"))


def refusal(source: str) -> str:
    """The executor's answer to a call that is not executed. Compiles the text at most, never runs it."""
    name = source.split("(")[0]
    base = name.split(".")[1] if "." in name else name
    if base in _DENIED:
        return f"Error during execution: Function call {base} is not allowed."
    try:
        names = compile(source.lstrip(" \t"), "<string>", "eval").co_names
    except Exception as error:
        return f"Error during execution: {error}"
    if names:
        return f"Error during execution: name '{names[0]}' is not defined"
    try:
        return str(ast.literal_eval(source.lstrip(" \t")))
    except Exception:
        return "Error during execution: this cannot be called"


def clamped(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """``parameters`` with bounded work."""
    if name in ("logarithm", "square_root"):
        return _bounded(parameters, "precision", MOST_DIGITS)
    if name == "power":
        base = parameters.get("base")
        if isinstance(base, int) and abs(base) > 1:
            return _bounded(parameters, "exponent", _TOO_MANY_BITS // (base.bit_length() - 1) + 1)
    if name == "round_number":  # thousands of places before the point of a number that can be printed: zero
        places = parameters.get("decimal_places")
        if isinstance(places, int) and places < -MOST_DIGITS:
            return {**parameters, "decimal_places": -MOST_DIGITS}
    return parameters


def _bounded(parameters: dict[str, Any], key: str, most: int) -> dict[str, Any]:
    value = parameters.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and value > most:
        return {**parameters, key: type(value)(most)}
    return parameters


def instance_names(model_name: str, entry: str, classes: list[str]) -> list[str]:
    """Where the official executor keeps the tools of one attempt: names in its module, never deleted by it."""
    return [re.sub(r"[-./:]", "_", f"{model_name}_{entry}_{name}_instance") for name in classes]
