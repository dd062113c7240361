"""Answers as a model would write them, made from BFCL's ground truth."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

DONE = "<think> x </think>\n<response> Done. </response>"


def oracle(data: Path, category: str) -> dict[str, Any]:
    """Entry → the answer that the official ground truth asks for; in multi-turn, answers by turn and step."""
    if "multi_turn" in category:
        return multi_turn_oracle(data, category)
    entries = read_rows(data / f"BFCL_v4_{category}.json")
    if "relevance" in category:
        call = answer([{"name": "f", "parameters": {}}])
        refusal = "<think> nothing fits </think>\n<response> I cannot do that. </response>"
        return {entry["id"]: refusal if "irrelevance" in category else call for entry in entries}
    truths = read_rows(data / "possible_answer" / f"BFCL_v4_{category}.json")
    return {
        entry["id"]: answer([_call(gold, entry["function"], category) for gold in truth["ground_truth"]])
        for entry, truth in zip(entries, truths, strict=True)
    }


def multi_turn_oracle(data: Path, category: str) -> dict[str, list[list[str]]]:
    """All calls of a turn in one answer, then an answer without calls."""
    truths = read_rows(data / "possible_answer" / f"BFCL_v4_{category}.json")
    order = parameter_order(data)
    return {
        truth["id"]: [
            [answer([json_call(call, order) for call in turn])] * bool(turn) + [DONE] for turn in truth["ground_truth"]
        ]
        for truth in truths
    }


def parameter_order(data: Path) -> dict[str, list[str]]:
    """Function → its parameters in order: some official calls give them by position."""
    documents = [row for path in sorted((data / "multi_turn_func_doc").glob("*.json")) for row in read_rows(path)]
    return {row["name"]: list(row["parameters"]["properties"]) for row in documents}


def json_call(source: str, order: dict[str, list[str]]) -> dict[str, Any]:
    """A call of the official ground truth as a model writes it."""
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    name = ast.unparse(call.func)
    given = dict(zip(order[name], map(ast.literal_eval, call.args), strict=False))
    given |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return {"name": name, "parameters": given}


def answer(calls: list[dict[str, Any]]) -> str:
    return "<think> x </think>\n<tool_call>\n" + "\n".join(map(json.dumps, calls)) + "\n</tool_call>"


def as_qwen(text: str) -> str:
    """An answer in the training format, with its calls as Qwen models write them."""
    if "<tool_call>" not in text:
        return "I cannot do that."
    calls = [json.loads(line) for line in _lines(text)]
    return "<think>\nso\n</think>\n\n" + "\n".join(
        f"<tool_call>\n{json.dumps({'name': c['name'], 'arguments': c['parameters']})}\n</tool_call>" for c in calls
    )


def as_llama(text: str) -> str:
    """The same as Llama models write them."""
    return "<|python_tag|>" + "; ".join(_lines(text)) if "<tool_call>" in text else "I cannot do that."


def _lines(text: str) -> list[str]:
    return text.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0].split("\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _call(gold: dict[str, Any], functions: list[dict[str, Any]], category: str) -> dict[str, Any]:
    """Required parameters with their first accepted value; optional ones only if they must be given."""
    ((name, accepted),) = gold.items()
    document = next(f for f in functions if f["name"] == name)["parameters"]
    given = {}
    for key, values in accepted.items():
        if values and ("" not in values or key in document["required"]):
            chosen = next((value for value in values if value != ""), "")
            given[key] = _literal(_first(chosen), document["properties"].get(key), category)
    return {"name": name, "parameters": given}


def _first(value: Any) -> Any:
    """Nested objects list the accepted values of each key."""
    if isinstance(value, list):
        return [_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _first(next(v for v in accepted if v != "")) if isinstance(accepted, list) else accepted
        for key, accepted in value.items()
        if not (isinstance(accepted, list) and "" in accepted)
    }


def _literal(value: Any, document: dict[str, Any], category: str) -> Any:
    """Java and JavaScript values travel as source text."""
    kind = document["type"] if document else "String"
    if category == "simple_java":
        return _java(value, kind, document)
    if category == "simple_javascript":
        return _javascript(value, kind)
    return value


def _java(value: Any, kind: str, document: dict[str, Any]) -> str:
    if kind == "Array" and isinstance(value, list):
        return f"new {document['items']['type']}[]{{" + ", ".join(map(_java_inner, value)) + "}"
    if kind == "ArrayList" and isinstance(value, list):
        inner = document["items"]["type"]
        if not value:
            return "new ArrayList<>()"
        quote = "'" if inner == "char" else '"'
        suffix = "L" if inner == "long" else ""
        parts = [f"{quote}{v}{quote}" if inner in ("String", "char") else _java_inner(v) + suffix for v in value]
        return f"new ArrayList<{inner}>(Arrays.asList({', '.join(parts)}))"
    if kind == "HashMap" and isinstance(value, dict):
        puts = " ".join(f'put("{k}", {json.dumps(v)});' for k, v in value.items())
        return "new HashMap<String, Object>() {{ " + puts + " }}" if value else "new HashMap<>()"
    text = _java_inner(value)
    return text + {"long": "L", "float": "f"}.get(kind, "") if isinstance(value, int | float) else text


def _java_inner(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _javascript(value: Any, kind: str) -> str:
    if kind == "Bigint" and isinstance(value, int):
        return f"{value}n"
    return value if isinstance(value, str) else json.dumps(value)
