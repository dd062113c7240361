"""BFCL's own multi-turn loop with a scripted model; run with the ``bfcl-official`` environment's Python.

    python official_loop.py SCRIPTS OUT CATEGORY...

SCRIPTS: entry → turn → step → text. OUT: entry → the result, a hash of the messages before every answer, and one of
the functions. The decoder is written from the rules of ToolRL's handler, apart from the product's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import types

os.environ["BFCL_PROJECT_ROOT"] = tempfile.mkdtemp()
stub = types.ModuleType("bfcl_eval.constants.model_config")
stub.MODEL_CONFIG_MAPPING = {}
sys.modules["bfcl_eval.constants.model_config"] = stub

from bfcl_eval.model_handler.base_handler import BaseHandler  # noqa: E402
from bfcl_eval.utils import load_dataset_entry  # noqa: E402

DONE = "<response> Done. </response>"


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Scripted(BaseHandler):
    def _pre_query_processing_prompting(self, test_entry):
        self.script = scripts[test_entry["id"]]
        self.turn = -1
        self.seen = []
        return {"message": []}

    def add_first_turn_message_prompting(self, inference_data, first_turn_message):
        return self._add_next_turn_user_message_prompting(inference_data, first_turn_message)

    def _add_next_turn_user_message_prompting(self, inference_data, user_message):
        self.turn += 1
        self.step = 0
        inference_data["message"].extend(user_message)
        return inference_data

    def _query_prompting(self, inference_data):
        self.seen.append(digest(inference_data["message"]))
        texts = self.script[self.turn] if self.turn < len(self.script) else []
        text = texts[self.step] if self.step < len(texts) else DONE
        self.step += 1
        return text, 0.0

    def _parse_query_response_prompting(self, api_response):
        return {"model_responses": api_response, "input_token": 0, "output_token": 0}

    def _add_assistant_message_prompting(self, inference_data, model_response_data):
        inference_data["message"].append({"role": "assistant", "content": model_response_data["model_responses"]})
        return inference_data

    def _add_execution_results_prompting(self, inference_data, execution_results, model_response_data):
        for call, result in zip(model_response_data["model_responses_decoded"], execution_results, strict=True):
            inference_data["message"].append({"role": "tool", "name": call, "content": result})
        return inference_data

    def decode_execute(self, result, has_tool_call_tag):
        if "<tool_call>" not in result:
            return []
        block = result.rpartition("<tool_call>")[2].partition("</tool_call>")[0]
        found = []
        for line in block.strip().split("\n"):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        made = []
        for call in found:
            if isinstance(call, dict):
                given = call.get("parameters", {})
                if call.get("name", "").strip().lower() != "none":
                    made.append(call.get("name", "") + "(" + ", ".join(f"{k}={v!r}" for k, v in given.items()) + ")")
        return made


with open(sys.argv[1]) as file:
    scripts = json.load(file)
handler = Scripted("restool", 0.0, "restool", False)
outcome = {}
for category in sys.argv[3:]:
    for entry in load_dataset_entry(category):
        functions = digest(entry["function"])
        with contextlib.redirect_stdout(io.StringIO()):
            result, _ = handler.inference_multi_turn_prompting(entry, False, True)
        outcome[entry["id"]] = {"result": result, "prompts": handler.seen, "functions": functions}
with open(sys.argv[2], "w") as file:
    json.dump(outcome, file)
