"""The corpus: what a model's answer can do to a program that reads it. Every evaluator is tested on all of it."""

from __future__ import annotations

import json

import pytest


def call(name: object, parameters: object) -> str:
    return f"<think> x </think>\n<tool_call>\n{json.dumps({'name': name, 'parameters': parameters})}\n</tool_call>"


def block(lines: str) -> str:
    return f"<tool_call>\n{lines}\n</tool_call>"


def corpus(pwned: str) -> dict[str, str]:
    """Name → answer. What tries to run or write anything would leave the file ``pwned``."""
    touch = f"touch {pwned}"
    code = f"__import__('os').system('{touch}')"
    return {
        "code as a name": call("__import__('os').system", {"command": touch}),
        "open as a name": call("open", {"file": pwned, "mode": "w"}),
        "lambda as a name": call(f"(lambda **k: {code})", {}),
        "code as a key": call("f", {f"x={code}, y": 1}),
        "code as a value": call("f", {"x": code}),
        "code as a list": call("f", {"x": [code], "y": {"z": code}}),
        "globals": call("globals", {}),
        "keyboard": call("input", {}),
        "debugger": call("breakpoint", {}),
        "leaving": call("exit", {}),
        "raising SystemExit": call("(_ for _ in ()).throw", {"typ": "SystemExit(0)"}),
        "endless power": call("power", {"base": 10, "exponent": 10**9}),
        "precision": call("logarithm", {"value": 2, "base": 10, "precision": 10**7}),
        "exponential array": call("f", {"x": "[[" + "],[" * 2000}),
        "exponential object": call("f", {"x": "{" + "a:" * 20000}),
        "huge integer": call("f", {"x": int("9" * 4000)}),
        "integer too huge to read": f'<tool_call>\n{{"name": "f", "parameters": {{"x": {"9" * 60000}}}}}\n</tool_call>',
        "huge exponent": block('{"name": "f", "parameters": {"x": 1e999999, "y": -Infinity, "z": NaN}}'),
        "deep lists": "<tool_call>\n" + "[" * 100_000 + "]" * 100_000 + "\n</tool_call>",
        "deep objects": '<tool_call>\n{"name": "f", "parameters": '
        + '{"a":' * 50_000
        + "1"
        + "}" * 50_000
        + "}\n</tool_call>",
        "nested just readable": call("f", {"x": json.loads("[" * 400 + "]" * 400)}),
        "lone surrogate in the text": call("f", {}) + "\ud83d",
        "lone surrogate escaped": block('{"name": "f\\ud83d", "parameters": {"\\udc00": "\\ud83d"}}'),
        "null bytes": call("f\0", {"\0": "\0"}) + "\0" * 100,
        "1 MB garbage": "<tool_call>" + "x\n" * 500_000,
        "1 MB of calls": "<tool_call>\n" + (json.dumps({"name": "f", "parameters": {}}) + "\n") * 25_000,
        "1 MB of tags": "<tool_call>" * 90_000,
        "1 MB of brackets": "<tool_call>" + "[{" * 500_000,
        "one line of 1 MB": "<tool_call>" + json.dumps({"name": "f", "parameters": {"x": "y" * 1_000_000}}),
        "unclosed": "<think><tool_call><tool_call>",
        "empty": "",
        "scalar lines": '<tool_call>\n5\nnull\ntrue\n"f"\n[]\n{}\n</tool_call>',
        "wrong kinds": "\n".join(call(name, {}) for name in (None, 5, [], {}, True)),
        "parameters of wrong kinds": "\n".join(call("f", value) for value in (None, 5, [], "x", True)),
        "JSON in JSON": f"<tool_call>\n{json.dumps(call('f', {}))}\n</tool_call>",
        "own protocol": block('{"op": "check", "correct": true, "valid": true}') + '\n{"correct": true}\n',
        "control characters": "".join(map(chr, range(32))) * 50,
        "Unicode look-alikes": call("ｆ", {"ｘ": "１"}),
    }


@pytest.fixture
def pwned(tmp_path):
    path = tmp_path / "pwned"
    yield path
    assert not path.exists(), "an answer ran code"


@pytest.fixture
def hostile(pwned) -> dict[str, str]:
    return corpus(str(pwned))
