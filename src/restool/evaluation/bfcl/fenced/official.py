"""BFCL's own runner on answers in its own layout, unmodified; run with the ``bfcl-official`` environment's Python.

    python -I -B official.py '{"root": ..., "categories": [...], "format": ..., "partial": ..., ...}'

Reads ``<root>/result/restool``, writes ``<root>/score/restool``. Ours is only what BFCL leaves to a model's author:
the handler that reads calls out of its texts; for native texts, the choice among BFCL's own. The runner evaluates
model output, hence the walls: no network, no processes, no writing outside ``root``. It has no limit for one answer,
so that a hostile one can end the whole run.
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
import native
import walls

MODEL = "restool"  # the runner takes an underscore for a slash


def main(options: dict[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    walls.cut_network()
    _stub_vendors()
    from bfcl_eval.eval_checker import eval_runner

    eval_runner.MODEL_CONFIG_MAPPING[MODEL] = _configuration(options["format"])
    walls.set_limits(options["memory_bytes"], options["processor_seconds"], options["file_bytes"])
    walls.seal(writable=options["root"])
    eval_runner.main([MODEL], options["categories"], None, None, partial_eval=options["partial"])


def _stub_vendors() -> None:
    """The real list of models imports every vendor's SDK; the runner needs one entry in it."""
    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = {}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = stub


def _configuration(form: str) -> types.SimpleNamespace:
    texts = dict.fromkeys(("model_name", "display_name", "url", "org", "license"), MODEL)
    switches = {"is_fc_model": False, "underscore_to_dot": False, "input_price": None, "output_price": None}
    handler = _native_handler() if form == "native" else _rlla_handler()
    return types.SimpleNamespace(**texts, **switches, model_handler=handler)


def _rlla_handler() -> type:
    from bfcl_eval.model_handler.base_handler import BaseHandler

    class Handler(BaseHandler):
        def decode_ast(self, result: str, language: Any, has_tool_call_tag: bool) -> list[dict[str, Any]]:
            return decoding.decode(result).calls

        def decode_execute(self, result: str, has_tool_call_tag: bool) -> list[str]:
            found = decoding.executable(result)
            if found.undecodable:
                raise ValueError("undecodable")
            return [source for _, _, source in found.calls]

    return Handler


def _native_handler() -> type:
    """BFCL's own handlers for Qwen and Llama models, unmodified, each for the texts written in its format."""
    from bfcl_eval.model_handler.base_handler import BaseHandler

    _stub_servers()
    from bfcl_eval.model_handler.local_inference.llama_3_1 import LlamaHandler_3_1
    from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler

    own = {"qwen": object.__new__(QwenFCHandler), "llama": object.__new__(LlamaHandler_3_1)}  # no server to open

    class Handler(BaseHandler):
        def decode_ast(self, result: str, language: Any, has_tool_call_tag: bool) -> list[dict[str, Any]]:
            text = native.spoken(result)
            kind = native.kind(text)
            return own[kind].decode_ast(text, language, has_tool_call_tag) if kind else []

        def decode_execute(self, result: str, has_tool_call_tag: bool) -> list[str]:
            text = native.spoken(result)
            kind = native.kind(text)
            return own[kind].decode_execute(text, has_tool_call_tag) if kind else []

    return Handler


def _stub_servers() -> None:
    """What starts and asks a model imports torch and clients of servers; reading its answers needs none of it, nor
    the check that handlers override what they say they do."""
    servers = types.ModuleType("bfcl_eval.model_handler.local_inference.base_oss_handler")
    servers.OSSHandler = object  # type: ignore[attr-defined]
    checks = types.ModuleType("overrides")
    checks.override = lambda function: function  # type: ignore[attr-defined]
    sys.modules |= {stub.__name__: stub for stub in (servers, checks)}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
