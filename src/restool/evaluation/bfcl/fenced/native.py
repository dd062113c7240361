"""Calls in the models' own formats, by the rules of bfcl_eval's local handlers for Qwen and Llama models.

Qwen: JSON objects with ``name`` and ``arguments``, one between each pair of ``<tool_call>`` tags, outside the
thought; read by the official handler itself. Llama 3: bare calls with ``name`` and ``parameters``, perhaps behind
``<|python_tag|>``, as a Python literal (so that JSON's ``true`` and ``null`` are no calls) or as JSON texts between
semicolons. The official handler passes the first kind to ``eval``; here only literals are read, so that a text
cannot run anything, nor reach the checker that judges it.

Which of the two a text is written in shows in the text. One call that lacks its name or its parameters spoils the
whole answer, in both.
"""

from __future__ import annotations

import ast
import json
import sys
import types
from collections.abc import Callable
from typing import Any

import decoding

_BROKEN = (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, MemoryError)


class Native:
    """Reads answers (`decode`, `executable`) and writes tools as servers take them (`schemas`)."""

    def __init__(self) -> None:
        _stub_vendors()
        from bfcl_eval.constants.enums import ModelStyle
        from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI
        from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler
        from bfcl_eval.model_handler.utils import convert_to_function_call, convert_to_tool

        self._qwen = object.__new__(QwenFCHandler)  # its constructor wants a server
        self._source = convert_to_function_call
        self._converted: dict[str, dict[str, Any]] = {}
        self._convert, self._style, self._types = convert_to_tool, ModelStyle.OPENAI_COMPLETIONS, GORILLA_TO_OPENAPI

    def schemas(self, functions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The functions as OpenAI tools, by the official conversion: JSON types, no dots in names."""
        return [self._schema(function) for function in functions]

    def _schema(self, function: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(function)
        if key not in self._converted:  # entries share tools, and the conversion copies each one slowly
            (self._converted[key],) = self._convert([function], self._types, self._style)
        return self._converted[key]

    def decode(self, text: str) -> decoding.Decoded:
        """Read the calls of one answer. Never raises, whatever the text."""
        decoded = decoding.Decoded(capped=len(text) > decoding.TEXT_CAP)
        try:
            for name, parameters in self._calls(text, self._to_compare):
                decoded.calls.append({name: parameters if isinstance(parameters, dict) else None})
        except _BROKEN:
            decoded.calls, decoded.unreadable = [], True
        return decoded

    def executable(self, text: str) -> decoding.Executable:
        """The calls of one answer as the multi-turn loop runs them; the handlers read those more leniently."""
        found = decoding.Executable()
        try:
            for name, parameters in self._calls(text, self._to_execute):
                found.calls.append((name, parameters, self._source([{name: parameters}])[0]))
        except _BROKEN:
            return decoding.Executable(undecodable=True, unreadable=True)
        return found

    def _calls(self, text: str, read: Callable[[str], list[Any]]) -> list[tuple[str, Any]]:
        """(name, parameters) of every call; raises where the official handlers would. A text without any sign of a
        call has none. A name may be any scalar, as there. ``read``: what to do with Qwen's blocks."""
        text = spoken(text)
        written = kind(text)
        if written is None:
            return []
        if written == "llama":
            found = [(call["name"], call["parameters"]) for call in _llama(text.replace("<|python_tag|>", ""))]
        elif not (found := read(text)):
            raise ValueError("a block of calls from which nothing could be read")
        if any(isinstance(name, list | dict) for name, _ in found):
            raise TypeError("a name that cannot be a key")
        return decoding.clean([[str(name), given] for name, given in found])

    def _to_compare(self, text: str) -> list[Any]:
        return [pair for call in self._qwen.decode_ast(text, None, None) for pair in call.items()]

    def _to_execute(self, text: str) -> list[Any]:
        """As ``decode_execute``, before it writes the calls as text: arguments may be JSON within a JSON string."""
        found = [(call["name"], call["arguments"]) for call in self._qwen._extract_tool_calls(text)]
        return [(name, json.loads(given) if isinstance(given, str) else given) for name, given in found]


def spoken(text: str) -> str:
    """What of an answer is read: not its thought, nor what is beyond the cap."""
    return decoding.clean(text[: decoding.TEXT_CAP]).split("</think>")[-1].lstrip("\n")


def kind(text: str) -> str | None:
    """Whose way of writing calls ``text`` shows: ``qwen``, ``llama``, or None where there is no sign of a call."""
    if "<tool_call>" in text:
        return "qwen"
    return "llama" if "<|python_tag|>" in text or text.strip()[:1] in ("{", "[") else None


def _llama(text: str) -> list[Any]:
    if ";" in text:
        return [json.loads(part) for part in text.split(";")]
    value = ast.literal_eval(text.strip())
    return [value] if isinstance(value, dict) else list(value)


def _stub_vendors() -> None:
    """Names that the handlers' modules import and that reading an answer never uses: servers, retries, parsers."""

    def decorator(*_: Any, **__: Any) -> Any:
        return lambda function: function

    handlers = "bfcl_eval.model_handler"
    retries = ("retry", "retry_if_exception_message", "retry_if_exception_type", "wait_random_exponential")
    stubs: dict[str, dict[str, Any]] = {
        "tenacity": dict.fromkeys(retries, decorator),
        "overrides": {"override": lambda function: function},
        f"{handlers}.parser.java_parser": {"parse_java_function_call": None},
        f"{handlers}.parser.js_parser": {"parse_javascript_function_call": None},
        f"{handlers}.local_inference.base_oss_handler": {"OSSHandler": object},
    }
    for name, content in stubs.items():
        if name not in sys.modules:
            module = types.ModuleType(name)
            vars(module).update(content)
            sys.modules[name] = module
