"""BFCL's own runner on answers in its own layout, unmodified; run with the ``bfcl-official`` environment's Python.

    python -I -B official.py '{"root": ..., "categories": [...], "partial": ..., "memory_bytes": ..., ...}'

Reads ``<root>/result/restool``, writes ``<root>/score/restool``. Ours is only what BFCL leaves to a model's author:
the handler that reads calls out of its texts. The runner evaluates model output, hence the walls: no network, no
processes, no writing outside ``root``. It has no limit for one answer, so that a hostile one can end the whole run.
"""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # isolated mode leaves it out; restool itself is not here

import decoding
import walls

MODEL = "restool"  # the runner takes an underscore for a slash


def main(options: dict[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    walls.cut_network()
    _stub_vendors()
    from bfcl_eval.eval_checker import eval_runner

    eval_runner.MODEL_CONFIG_MAPPING[MODEL] = _configuration()
    walls.set_limits(options["memory_bytes"], options["processor_seconds"], options["file_bytes"])
    walls.seal(writable=options["root"])
    eval_runner.main([MODEL], options["categories"], None, None, partial_eval=options["partial"])


def _stub_vendors() -> None:
    """The real list of models imports every vendor's SDK; the runner needs one entry in it."""
    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = {}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = stub


def _configuration() -> types.SimpleNamespace:
    from bfcl_eval.model_handler.base_handler import BaseHandler

    class Handler(BaseHandler):
        def decode_ast(self, result: str, language: Any, has_tool_call_tag: bool) -> list[dict[str, Any]]:
            return decoding.decode(result).calls

        def decode_execute(self, result: str, has_tool_call_tag: bool) -> list[str]:
            found = decoding.executable(result)
            if found.undecodable:
                raise ValueError("undecodable")
            return [source for _, _, source in found.calls]

    texts = dict.fromkeys(("model_name", "display_name", "url", "org", "license"), MODEL)
    switches = {"is_fc_model": False, "underscore_to_dot": False, "input_price": None, "output_price": None}
    return types.SimpleNamespace(**texts, **switches, model_handler=Handler)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
