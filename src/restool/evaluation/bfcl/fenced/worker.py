"""The process that scores: JSON lines in, JSON lines out, run with the ``bfcl`` environment's Python.

    python -I -B worker.py '{"categories": [...], "folder": null, "memory_bytes": ..., ...}'

It answers first with what it is (versions, data hashes, walls). A line in is a list of requests; each gets one line:

    {"op": "entries", "category": C}                   -> {"entries": [{"id", "question", "function", ...}]}
    {"op": "expected", "category": C}                  -> {"expected": {id: what would be right}}
    {"op": "check", "category": C, "id": I, "text": T} -> the verdict of `Category.check`
    {"op": "step", "category": C, "id": I, "before": N, "texts": [T, ...]} -> `MultiTurn.step`
    {"op": "judge", "category": C, "id": I, "result": R} -> the verdict of `MultiTurn.check`

A request handler is one entry in ``HANDLERS``. Whatever goes wrong inside a request becomes ``{"failure": kind}``;
what cannot be caught ends the process, and the client starts another.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import marshal
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # isolated mode leaves it out; restool itself is not here

import decoding
import episodes
import native
import walls
from categories import Category, recorded, shortened

_LIMITED = {"check": "item_seconds", "step": "item_seconds", "judge": "episode_seconds"}
"""Which limit on processor time a request runs under; reading the data runs under none."""


class Worker:
    """Loads everything, then seals itself in and answers requests."""

    def __init__(self, options: dict[str, Any]):
        _stub_vendors()
        _read_once()
        self.options = options
        self.reader: Any = native.Native() if options["format"] == "native" else decoding
        self.categories = {name: Category(name, options["folder"], self.reader) for name in options["categories"]}
        self._import_checkers()
        self.multi_turn = episodes.MultiTurn(self.reader)

    def description(self) -> dict[str, Any]:
        return {
            "bfcl_eval": importlib.metadata.version("bfcl-eval"),
            "python": sys.version.split()[0],
            "data_sha256": {name: category.digest() for name, category in self.categories.items()},
            "sizes": {name: len(category.documents) for name, category in self.categories.items()},
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            walls.limit_item(self.options.get(_LIMITED.get(request["op"], ""), 0))
            return HANDLERS[request["op"]](self, request)
        except walls.Refused as error:
            return {"failure": "refused", "error": shortened(error)}
        except MemoryError:
            return {"failure": "memory"}
        except RecursionError:
            return {"failure": "nesting"}
        except episodes.TooLarge:
            return {"failure": "size"}
        except BaseException as error:  # SystemExit too: an answer must not be able to end the run
            return {"failure": "checker_error", "error": shortened(repr(error))}
        finally:
            walls.limit_item(0)

    def entries(self, request: dict[str, Any]) -> dict[str, Any]:
        rows = self.categories[request["category"]].entries()
        if self.reader is not decoding:
            rows = [row | {"tools": self.reader.schemas(row["function"])} for row in rows]
        return {"entries": rows}

    def expected(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"expected": self.categories[request["category"]].expected()}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.categories[request["category"]].check(request["id"], request["text"])

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        row = self._row(request)
        return self.multi_turn.step(row, request["texts"], request["before"])

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        truth = self.categories[request["category"]].answers[request["id"]]
        verdict = self.multi_turn.check(self._row(request), truth, request["result"])
        return verdict | {"error": shortened(verdict["error"]), "calls": recorded(verdict["calls"], 1 << 16)}

    def _row(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.categories[request["category"]].documents[request["id"]]

    def _import_checkers(self) -> None:
        """Before the walls close: importing reads files, and a first import would be counted against an item."""
        import importlib

        import bfcl_eval.eval_checker.ast_eval.ast_checker
        import bfcl_eval.utils  # noqa: F401
        from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING as places

        rows = (row for category in self.categories.values() for row in category.documents.values())
        for name in sorted({name for row in rows for name in row.get("involved_classes", ())}):
            importlib.import_module(places[name])


HANDLERS = {
    "entries": Worker.entries,
    "expected": Worker.expected,
    "check": Worker.check,
    "step": Worker.step,
    "judge": Worker.judge,
}


def serve(options: dict[str, Any]) -> None:
    """Move the protocol away from stdin and stdout, raise the walls, answer until the client hangs up."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # what asks for input gets end of file
    os.dup2(nothing, 1)  # the checker's own prints must not mix with replies
    warnings.simplefilter("ignore")  # compiling a model's call warns, and what warnings print is limited too
    network = walls.cut_network()
    walls.set_limits(options["memory_bytes"], options["processor_seconds"], options["file_bytes"])
    worker = Worker(options)
    first = {**worker.description(), "network": network}
    walls.seal()
    _write(replies, first)
    for line in requests:
        for request in json.loads(line):
            _write(replies, worker.answer(request))


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


def _read_once() -> None:
    """Read each data file once: for every entry, the official loader reads the documents of its tools anew."""
    from bfcl_eval import utils

    load = utils.load_file
    known = functools.cache(lambda path: marshal.dumps(load(path)))
    utils.load_file = lambda file_path, **_: marshal.loads(known(str(file_path)))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
