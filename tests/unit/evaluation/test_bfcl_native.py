"""Native prompts and calls against bfcl_eval's own handlers, run in their environment."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bfcl_texts import as_llama, as_qwen

from restool import environments, files
from restool.core.errors import ModelError
from restool.evaluation import bfcl
from restool.evaluation.answering import GeneratedAnswer
from restool.evaluation.bfcl import native
from restool.experiments import compose_run
from restool.settings import configs_directory

FENCED = Path(native.__file__).parent / "fenced"
RADIUS = {"r": {"type": "float", "description": "Radius."}}
DOCUMENTS = [
    {"name": "math.area", "description": "Area é", "parameters": {"type": "dict", "properties": RADIUS}},
    {"name": "ls", "description": "List", "parameters": {"type": "dict", "properties": {}, "required": []}},
]
HERMES = '<tool_call>\n{"name": "ls", "arguments": {"a": true}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "math.area", "arguments": {"r": 1.5, "é": [null]}}\n</tool_call>'
QWEN = {
    "one": HERMES,
    "two, with prose": f"Sure.\n{HERMES}\n{OTHER}",
    "behind a thought": f"<think>\nfirst {OTHER}\n</think>\n\n{HERMES}",
    "broken block beside a whole one": f"<tool_call>\n{{oops\n</tool_call>\n{HERMES}",
    "no arguments": '<tool_call>\n{"name": "ls"}\n</tool_call>',
    "arguments as text": '<tool_call>\n{"name": "ls", "arguments": "{}"}\n</tool_call>',
    "a list": "<tool_call>\n[1]\n</tool_call>",
    "no name": '<tool_call>\n{"arguments": {}}\n</tool_call>',
    "in one line": HERMES.replace("\n", ""),
    "unclosed": HERMES.replace("</tool_call>", ""),
}
LLAMA = {
    "bare": '{"name": "ls", "parameters": {"a": "1"}}',
    "tagged": '<|python_tag|>{"name": "ls", "parameters": {}}',
    "list": '[{"name": "ls", "parameters": {"a": 1}}, {"name": "ls", "parameters": {}}]',
    "comma": '{"name": "ls", "parameters": {}}, {"name": "ls", "parameters": {"x": None}}',
    "semicolon": '<|python_tag|>{"name": "ls", "parameters": {"a": true}}; {"name": "ls", "parameters": {}}',
    "JSON true": '{"name": "ls", "parameters": {"a": true}}',
    "JSON true behind a semicolon": '{"name": "ls", "parameters": {"a": true}};',
    "no parameters": '{"name": "ls", "arguments": {}}',
    "not a call": "[1, 2]",
    "broken": '{"name": "ls", "parameters": {',
}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": f"<think>\nhm\n</think>\n\nSure.\n{HERMES}\n{OTHER}"},
    {"role": "tool", "name": "ls()", "content": "a é"},
    {"role": "tool", "name": "math.area(r=1.5)", "content": "7"},
    {"role": "assistant", "content": "<think>\n\n</think>\n\ndone"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "no thought"},
    {"role": "user", "content": "three"},
]

_PROGRAM = """
import inspect, json, sys, types
sys.path.insert(0, sys.argv[1])
import native
reader = native.Native()
from bfcl_eval.model_handler.local_inference.llama_3_1 import LlamaHandler_3_1
from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler
qwen, llama = object.__new__(QwenFCHandler), object.__new__(LlamaHandler_3_1)
given = json.load(sys.stdin)

def official(handler, text):
    try:
        return handler.decode_ast(text, None, None)
    except Exception:
        return None

def parsed(text):
    reply = types.SimpleNamespace(choices=[types.SimpleNamespace(text=text)])
    reply.usage = types.SimpleNamespace(prompt_tokens=0, completion_tokens=0)
    return qwen._parse_query_response_prompting(reply)

def executed(handler, text):
    try:
        return handler.decode_execute(text, None)
    except Exception:
        return None

def ours(text):
    decoded, run = reader.decode(text), reader.executable(text)
    sources = None if run.undecodable else [source for _, _, source in run.calls]
    return {"calls": decoded.calls, "unreadable": decoded.unreadable, "run": sources}

told = lambda m: parsed(m["content"])["model_responses_message_for_chat_history"] if m["role"] == "assistant" else m
json.dump({
    "ours": {text: ours(text) for text in given["qwen"] + given["llama"] + given["hostile"]},
    "official": {t: official(qwen, parsed(t)["model_responses"]) for t in given["qwen"]}
    | {t: official(llama, t) for t in given["llama"]},
    "executed": {t: executed(qwen, parsed(t)["model_responses"]) for t in given["qwen"]}
    | {t: executed(llama, t) for t in given["llama"]},
    "prompts": [
        qwen._format_prompt([told(m) for m in given["history"][:n]], given["documents"]) for n in given["cuts"]
    ],
    "template": inspect.getsource(QwenFCHandler._format_prompt).split('"chat_template":')[1].split(chr(34) * 3)[0],
    "schemas": reader.schemas(given["documents"]),
}, sys.stdout)
"""
CUTS = [2, 5, 7, 9]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    """What the official handlers make of all texts, and what `fenced.native` does."""
    environments.build("bfcl")
    project = tmp_path_factory.mktemp("project")
    pwned = project / "pwned"
    hostile = [
        f"[__import__('pathlib').Path({str(pwned)!r}).touch()]",
        f"<|python_tag|>__import__('pathlib').Path({str(pwned)!r}).touch()",
        "[" * 50_000,
        '{"name": "' + "\\ud83d" + '", "parameters": {}}',
        '{"name": 5, "parameters": {}}',
        "<tool_call>\n" * 3000,
        "{" * 60_000 + "}",
        "[{'name': 'ls', 'parameters': (lambda: 1)()}]",
    ]
    given = {"qwen": list(QWEN.values()), "llama": list(LLAMA.values()), "hostile": hostile}
    given |= {"history": HISTORY, "documents": DOCUMENTS, "cuts": CUTS}
    done = subprocess.run(
        [environments.python("bfcl"), "-c", _PROGRAM, str(FENCED)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={"BFCL_PROJECT_ROOT": str(project), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not pwned.exists(), "an answer ran code"
    return json.loads(done.stdout) | {"hostile": hostile}


@pytest.mark.parametrize("name", [*QWEN, *LLAMA])
def test_calls_are_those_of_the_official_handler(told, name):
    text = (QWEN | LLAMA)[name]
    official, ours = told["official"][text], told["ours"][text]
    assert ours["calls"] == (official or [])
    assert ours["unreadable"] == (not official)


@pytest.mark.parametrize("name", [*QWEN, *LLAMA])
def test_what_runs_is_what_the_official_handler_would_run(told, name):
    text = (QWEN | LLAMA)[name]
    assert (told["ours"][text]["run"] or []) == (told["executed"][text] or [])


def test_the_cases_tell_right_from_wrong(told):
    read = {name: bool(told["official"][text]) for name, text in (QWEN | LLAMA).items()}
    assert 7 < sum(read.values()) < len(read) - 7


def test_nothing_in_a_text_runs_or_breaks_the_reader(told):
    read = [text for text in told["hostile"] if told["ours"][text]["calls"]]
    assert read == ['{"name": "\\ud83d", "parameters": {}}', '{"name": 5, "parameters": {}}']
    assert all(told["ours"][text]["unreadable"] == (text not in read) for text in told["hostile"])


def test_prompts_are_those_of_the_official_handler(told, tmp_path):
    """Rendered by the template that the handler quotes, from the messages that we send."""
    from restool.models import chat, tiny

    tokenizer = tiny.train_tokenizer(["abc"], 300)
    tokenizer.chat_template = told["template"].strip()
    entry = {"function": DOCUMENTS, "tools": told["schemas"]}
    prompts = [native.prompt(entry, HISTORY[:n]) for n in CUTS]
    ids = chat.dialogue_ids(tokenizer, [(p.messages, p.tools) for p in prompts])
    for row, official in zip(ids, told["prompts"], strict=True):
        # The handler escapes what is not ASCII in its JSON; templates do not.
        plain = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), official)
        assert tokenizer.decode(row).rstrip() == plain.rstrip()


def test_a_template_that_would_leave_the_tools_out_is_refused(told):
    from restool.models import chat, tiny

    tokenizer = tiny.train_tokenizer(["abc"], 300)  # its own template knows messages only
    prompt = native.prompt({"function": DOCUMENTS, "tools": told["schemas"]}, HISTORY[:2])
    assert chat.dialogue_ids(tokenizer, [(prompt.messages, ())])
    with pytest.raises(ModelError, match="does not list tools"):
        chat.dialogue_ids(tokenizer, [(prompt.messages, prompt.tools)])


def test_servers_get_the_same_tools_in_their_own_form(told):
    names = [schema["function"]["name"] for schema in told["schemas"]]
    assert names == ["math_area", "ls"]
    assert told["schemas"][0]["type"] == "function"
    assert told["schemas"][0]["function"]["parameters"]["type"] == "object"
    assert told["schemas"][0]["function"]["parameters"]["properties"]["r"]["type"] == "number"


def test_tool_results_name_the_call_that_they_answer():
    entry = {"function": DOCUMENTS, "tools": []}
    messages = native.prompt(entry, HISTORY).messages
    calls = [call["id"] for call in messages[2]["tool_calls"]]
    assert [message["tool_call_id"] for message in messages[3:5]] == calls
    assert len(set(calls)) == 2
    assert "tool_calls" not in messages[5]


# --- through the whole evaluation --------------------------------------------------------------------------


class Oracle:
    """Answers every question with calls that are right, in the format asked for; remembers the prompts."""

    fingerprint, description = "oracle", {"engine": "oracle", "chat_template_sha256": "abc"}

    def __init__(self, right: dict[str, str]):
        self.right, self.prompts = right, []

    def batches(self, questions, decoding, seed, wanted):
        self.prompts += [questions[i].prompt for i in wanted]
        yield list(wanted), [GeneratedAnswer(self.right[questions[i].id], 1, True) for i in wanted]

    def close(self):
        pass


def _evaluated(tmp_path, right, form, *categories):
    settings = compose_run(["eval.bfcl_limit=40"])
    chosen = {"bfcl_categories": list(categories), "bfcl_format": form}
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update=chosen)})
    files.write_json(tmp_path / "prepared" / "manifest.json", {"skeleton": None})
    model = Oracle(right)
    summary = bfcl.evaluate(model, tmp_path / "prepared", tmp_path / "out", settings, report=lambda line: None)
    return model, summary


@pytest.mark.parametrize("written", [as_qwen, as_llama])
def test_right_calls_in_native_form_are_right(tmp_path, bfcl_oracle, written):
    categories = ("parallel_multiple", "live_multiple", "irrelevance")
    right = {name: written(text) for c in categories[:2] for name, text in bfcl_oracle(c).items()}
    if written is as_llama:  # a lone call is read as a Python literal there: true and null are no calls
        right = {name: text if ";" in text else text + "; " + text.split(">")[1] for name, text in right.items()}
    right |= dict.fromkeys(bfcl_oracle("irrelevance"), "I cannot do that.")
    model, summary = _evaluated(tmp_path, right, "native", *categories)
    accuracy = {name: c["accuracy"] for name, c in summary["categories"].items()}
    assert accuracy["parallel_multiple"] == 1.0
    assert accuracy["irrelevance"] == 1.0
    if written is as_qwen:
        assert accuracy["live_multiple"] == 1.0
    assert (summary["format"], summary["prompt_template_sha256"]) == ("native", "abc")
    prompt = model.prompts[0]
    assert prompt.tools[0]["parameters"]["type"] == "dict"
    assert prompt.schemas[0]["function"]["parameters"]["type"] == "object"
    _, summary = _evaluated(tmp_path / "b", right, "rlla", "irrelevance")
    assert summary["not_run"]  # without a skeleton there is no prompt in the training format


@pytest.mark.parametrize("name", sorted(path.stem for path in (configs_directory() / "eval").glob("*.yaml")))
def test_every_eval_configuration_takes_the_native_format(name):
    assert compose_run([f"eval={name}", "eval.bfcl_format=native"]).eval.bfcl_format == "native"


@pytest.fixture(scope="module")
def every_entry():
    from restool.evaluation.bfcl.aggregates import MULTI_TURN, SINGLE_TURN
    from restool.evaluation.bfcl.checker import Checker

    names = [*SINGLE_TURN, *MULTI_TURN]
    with Checker(names, format="native") as checker:
        return {name: checker.entries(name) for name in names}


@pytest.mark.slow
def test_every_tool_of_the_benchmark_can_be_told_to_a_server(every_entry):
    rows = [row for listed in every_entry.values() for row in listed]
    assert len(rows) == 4441
    for row in rows:
        prompt = native.prompt(row, row["question"][0])
        assert len(prompt.schemas) == len(prompt.tools) > 0 or row["id"].startswith("live_irrelevance")
        assert all("." not in schema["function"]["name"] for schema in prompt.schemas)
