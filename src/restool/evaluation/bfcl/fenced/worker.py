"""The process that scores: JSON lines in, JSON lines out, run with the ``bfcl`` environment's Python.

    python -I -B worker.py '{"categories": [...], "folder": null, "memory_bytes": ..., ...}'

It answers first with what it is (versions, data hashes, walls), then one line for every request:

    {"op": "entries", "category": C}                   -> {"entries": [{"id", "question", "function"}, ...]}
    {"op": "check", "category": C, "id": I, "text": T} -> the verdict of `Category.check`

A request handler is one entry in ``HANDLERS``; multi-turn episodes need two more. Whatever goes wrong inside a
request becomes ``{"failure": kind}``; what cannot be caught ends the process, and the client starts another.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # isolated mode leaves it out; restool itself is not here

import decoding
import walls

MESSAGE_CAP = 600


class Category:
    """One category's entries as the official loader gives them, with the official verdict on an answer."""

    def __init__(self, name: str, folder: str | None):
        from bfcl_eval.constants import eval_config

        self.name = name
        self.is_relevance = "relevance" in name  # also irrelevance, as in the official runner
        self.data = Path(folder or eval_config.PROMPT_PATH)
        self.own = folder is not None
        self.documents = self._load()
        answers = [] if self.is_relevance else self._answers()
        if answers and [row["id"] for row in answers] != list(self.documents):
            raise ValueError(f"{name}: entries and possible answers do not belong together")
        self.answers = {row["id"]: row["ground_truth"] for row in answers}

    def entries(self) -> list[dict[str, Any]]:
        """What prompts are made from: with the language hints that the official runner shows to models."""
        from bfcl_eval.utils import add_language_specific_hint_to_function_doc

        rows = copy.deepcopy(list(self.documents.values()))
        return rows if self.own else add_language_specific_hint_to_function_doc(rows)

    def digest(self) -> str:
        """sha256 over the category's data files."""
        total = hashlib.sha256()
        for path in (self.data / self._file(), self.data / "possible_answer" / self._file()):
            total.update(path.read_bytes() if path.exists() else b"")
        return total.hexdigest()

    def check(self, entry: str, text: str) -> dict[str, Any]:
        """``{"correct", "error_type", "error", "calls", ...}`` for one answer, by the official rules."""
        decoded = decoding.decode(text)
        verdict = self._relevance(decoded) if self.is_relevance else self._ast(entry, decoded)
        return {
            "correct": verdict.get("valid", False),
            "error_type": verdict.get("error_type"),
            "error": _shortened(verdict.get("error")),
            "calls": _recorded(decoded.calls),
            "unreadable": decoded.unreadable,
            "capped": decoded.capped,
        }

    def _ast(self, entry: str, decoded: decoding.Decoded) -> dict[str, Any]:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        from bfcl_eval.utils import is_function_calling_format_output, is_java, is_js

        if not is_function_calling_format_output(decoded.calls):
            return {"error_type": "ast_decoder:decoder_wrong_output_format"}
        if kind := decoding.illegal(decoded.calls):  # no documented function is called so: wrong in any case
            return {"error_type": f"not_allowed:{kind}"}
        language = Language.PYTHON
        if is_java(self.name):
            language = Language.JAVA
        elif is_js(self.name):
            language = Language.JAVASCRIPT
        functions = self.documents[entry]["function"]
        verdict = ast_checker(functions, decoded.calls, self.answers[entry], language, self.name, "custom")
        return {"valid": True} if verdict["valid"] else verdict

    def _relevance(self, decoded: decoding.Decoded) -> dict[str, Any]:
        from bfcl_eval.utils import is_empty_output

        called = not is_empty_output(decoded.calls)
        if "irrelevance" in self.name:
            return {"valid": not called, "error_type": "irrelevance_error:decoder_success" if called else None}
        return {"valid": called, "error_type": None if called else "relevance_error:decoder_failed"}

    def _load(self) -> dict[str, Any]:
        from bfcl_eval.utils import load_dataset_entry

        if self.own:
            rows = _json_lines(self.data / self._file())
        else:
            # The checker must see the documents without hints: those change every Java type to "string".
            rows = load_dataset_entry(self.name, include_language_specific_hint=False)
        return {row["id"]: row for row in rows}

    def _file(self) -> str:
        from bfcl_eval.constants.category_mapping import VERSION_PREFIX

        return f"{self.name}.jsonl" if self.own else f"{VERSION_PREFIX}_{self.name}.json"

    def _answers(self) -> list[dict[str, Any]]:
        from bfcl_eval.utils import load_ground_truth_entry

        if self.own:
            return _json_lines(self.data / "possible_answer" / self._file())
        return load_ground_truth_entry(self.name)


class Worker:
    """Loads everything, then seals itself in and answers requests."""

    def __init__(self, options: dict[str, Any]):
        _stub_vendors()
        self.item_seconds = options["item_seconds"]
        self.categories = {name: Category(name, options["folder"]) for name in options["categories"]}
        self._import_checkers()

    def description(self) -> dict[str, Any]:
        return {
            "bfcl_eval": importlib.metadata.version("bfcl-eval"),
            "python": sys.version.split()[0],
            "data_sha256": {name: category.digest() for name, category in self.categories.items()},
            "sizes": {name: len(category.documents) for name, category in self.categories.items()},
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            walls.limit_item(self.item_seconds if request["op"] == "check" else 0)
            return HANDLERS[request["op"]](self, request)
        except walls.Refused as error:
            return {"failure": "refused", "error": _shortened(error)}
        except MemoryError:
            return {"failure": "memory"}
        except RecursionError:
            return {"failure": "nesting"}
        except BaseException as error:  # SystemExit too: an answer must not be able to end the run
            return {"failure": "checker_error", "error": _shortened(repr(error))}
        finally:
            walls.limit_item(0)

    def entries(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"entries": self.categories[request["category"]].entries()}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.categories[request["category"]].check(request["id"], request["text"])

    def _import_checkers(self) -> None:
        """Before the walls close: importing reads files, and a first import would be counted against an item."""
        import bfcl_eval.eval_checker.ast_eval.ast_checker
        import bfcl_eval.utils  # noqa: F401


HANDLERS = {"entries": Worker.entries, "check": Worker.check}


def serve(options: dict[str, Any]) -> None:
    """Move the protocol away from stdin and stdout, raise the walls, answer until the client hangs up."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # what asks for input gets end of file
    os.dup2(nothing, 1)  # the checker's own prints must not mix with replies
    network = walls.cut_network()
    walls.set_limits(options["memory_bytes"], options["processor_seconds"], options["file_bytes"])
    worker = Worker(options)
    first = {**worker.description(), "network": network}
    walls.seal()
    _write(replies, first)
    for line in requests:
        _write(replies, worker.answer(json.loads(line)))


def _write(descriptor: int, message: dict[str, Any]) -> None:
    rest = json.dumps(message).encode() + b"\n"
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _stub_vendors() -> None:
    """Importing the real ``model_config`` would import every vendor's SDK; the checker reads one flag of it."""

    class Plain:
        underscore_to_dot = False

    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = {"custom": Plain}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = stub


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _shortened(error: Any) -> str | None:
    return None if not error else decoding.clean(str(error)[:MESSAGE_CAP])


def _recorded(calls: list[dict[str, Any]]) -> Any:
    """The calls if they are of a size worth recording, else the beginning of their text."""
    text = json.dumps(calls)
    return calls if len(text) <= 4096 else text[:4096]


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
