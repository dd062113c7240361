"""Hostile answers in multi-turn episodes, where calls are run for real: none escapes, none stops the others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from restool import environments, files
from restool.evaluation.bfcl.checker import Checker, Limits
from restool.evaluation.bfcl.fenced import decoding

CATEGORY = "multi_turn_base"
TRUTH = [
    [
        ("cd", {"folder": "document"}),
        ("mkdir", {"dir_name": "temp"}),
        ("mv", {"source": "final_report.pdf", "destination": "temp"}),
    ]
]


def calls(*made: tuple[object, object]) -> str:
    return "<tool_call>\n" + "\n".join(json.dumps({"name": n, "parameters": p}) for n, p in made) + "\n</tool_call>"


@pytest.fixture(scope="module")
def checker():
    environments.build("bfcl")
    with Checker([CATEGORY], limits=Limits(item_seconds=1.0, episode_seconds=2.0)) as checker:
        yield checker


@pytest.fixture(scope="module")
def entry(checker):
    """An entry with files and calculations among its tools."""
    wanted = {"cat", "logarithm", "power"}
    rows = checker.entries(CATEGORY)
    return next(row["id"] for row in rows if wanted <= {function["name"] for function in row["function"]})


def _step(checker: Checker, entry: str, *texts: str) -> dict:
    (reply,) = checker.step([(CATEGORY, entry, list(texts))])
    return reply


def _results(checker: Checker, entry: str, *made: tuple[object, object]) -> list[str]:
    reply = _step(checker, entry, calls(*made))
    assert reply["failure"] is None
    return reply["results"]


def _right(checker: Checker) -> bool:
    """Whether the worker still runs right calls, beside whatever was asked before."""
    reply = _step(checker, "multi_turn_base_0", calls(*TRUTH[0]))
    return json.loads(reply["results"][0]) == {"current_working_directory": "document"}


def test_the_corpus_in_episodes(checker, entry, hostile, tmp_path):
    replies = checker.step([(CATEGORY, entry, [text]) for text in hostile.values()])
    verdicts = checker.judge(CATEGORY, [(entry, [[text]] * 3) for text in hostile.values()])
    for name, reply, verdict in zip(hostile, replies, verdicts, strict=True):
        assert verdict["correct"] is False, name
        files.write_json(tmp_path / "verdict.json", [reply, verdict])  # whatever it is, it can be written
    told = dict(zip(hostile, replies, strict=True))
    assert told["code as a name"]["results"] == ["Error during execution: name '__import__' is not defined"]
    assert told["open as a name"]["results"] == ["Error during execution: name 'open' is not defined"]
    assert told["keyboard"]["results"] == ["Error during execution: name 'input' is not defined"]
    assert told["leaving"]["results"] == ["Error during execution: Function call exit is not allowed."]
    assert _right(checker)


def test_tools_with_hostile_arguments(checker, entry, pwned):
    before = checker.restarts
    code = f"__import__('os').system('touch {pwned}')"
    digits = "Error during execution: Exceeds the limit (4300 digits) for integer string conversion"
    results = _results(
        checker,
        entry,
        ("power", {"base": 10, "exponent": 10**9}),
        ("power", {"base": -(2**9000), "exponent": 10**12}),
        ("power", {"base": 10, "exponent": 3}),
        ("ls", {f"a={code}, b": 1}),
        ("cat", {"file_name": code}),
        ("cat", {"file_name": "/etc/passwd"}),
        ("ls", {"a": {"x": [code]}}),
        ("ls", {"from": 1}),
        ("_load_scenario", {"scenario": {}}),
        ("__class__", {}),
        ("ls.__globals__", {}),
        (f"(lambda: {code})", {}),
        ("mean", {"numbers": [float("inf"), float("nan")]}),
        (" pwd", {}),
    )
    assert [result.startswith(digits) for result in results[:2]] == [True, True]
    assert json.loads(results[2]) == {"result": 1000}
    assert results[3].startswith("Error during execution: ")
    assert "error" in json.loads(results[4])
    assert "root:" not in results[5]
    assert results[7] == "Error during execution: invalid syntax (<string>, line 1)"
    assert results[8:11] == [
        f"Error during execution: name '{name}' is not defined" for name in ("_load_scenario", "__class__", "ls")
    ]
    assert results[12] == "Error during execution: name 'inf' is not defined"
    assert "current_working_directory" in results[13]
    assert checker.restarts == before


def test_precision_is_clamped_and_says_no_less(checker, entry):
    results = _results(
        checker,
        entry,
        ("logarithm", {"value": 2, "base": 10, "precision": 10**7}),
        ("square_root", {"number": 2, "precision": 10**7}),
        ("round_number", {"number": 12345, "decimal_places": -(10**9)}),
    )
    assert [len(result) > decoding.TEXT_CAP // 8 for result in results[:2]] == [True, True]
    assert json.loads(results[2]) == {"result": 0}


def test_what_the_tools_return_is_bounded(checker, entry):
    """A thousand printouts of a file of 40,000 characters: no prompt could hold them."""
    big = calls(("touch", {"file_name": "big"}), ("echo", {"content": "x" * 40_000, "file_name": "big"}))
    reply = _step(checker, entry, big, calls(*[("cat", {"file_name": "big"})] * 400))
    assert reply["failure"] == "size"
    assert _right(checker)


def test_a_state_that_contains_itself_costs_only_its_own_score(checker):
    """A folder moved into itself: comparing it with the right state never ends."""
    loop = calls(("cd", {"folder": "document"}), ("mkdir", {"dir_name": "temp"}),
                 ("mv", {"source": "temp", "destination": "temp"}), ("find", {"path": ".", "name": "x"}))  # fmt: skip
    verdicts = checker.judge(CATEGORY, [("multi_turn_base_0", [[loop]] * 4), ("multi_turn_base_1", [[""]] * 4)])
    assert [verdict["correct"] for verdict in verdicts] == [False, False]
    assert _right(checker)


REFUSALS = {
    "f(x=1)": "name 'f' is not defined",
    "foo-bar(x=1)": "name 'foo' is not defined",
    "a.b(x=c)": "name 'a' is not defined",
    "kill(pid=1)": "Function call kill is not allowed.",
    "os.popen(cmd='ls')": "Function call popen is not allowed.",
    "get it(x=1)": "invalid syntax (<string>, line 1)",
    "f(class=1)": "invalid syntax (<string>, line 1)",
    "()": None,
}


@pytest.mark.parametrize("source", REFUSALS)
def test_refused_calls_get_the_words_of_the_executor(source, monkeypatch):
    """What the official executor answers, which evaluates them (none of these names exists)."""
    monkeypatch.syspath_prepend(str(Path(decoding.__file__).parent))
    import calls as guard

    monkeypatch.delitem(sys.modules, "calls", raising=False)
    expected = REFUSALS[source]
    assert guard.refusal(source) == (f"Error during execution: {expected}" if expected else "()")
    if "not allowed" not in guard.refusal(source):  # that list is the executor's own
        assert _evaluated(source) == guard.refusal(source)


def _evaluated(source: str) -> str:
    try:
        return str(eval(source, {}))
    except Exception as error:
        return f"Error during execution: {error}"


def test_only_decoded_calls_are_run(monkeypatch):
    """The guard closes by itself: a text that did not come through the decoder is not passed on."""
    monkeypatch.syspath_prepend(str(Path(decoding.__file__).parent))
    import calls as guard

    passed = []

    def executor(made, *place, **options):
        passed.extend(made)
        return list(made), {"Tool": object()}

    guarded = guard.Guard(executor)
    with pytest.raises(TypeError, match="decoded"):
        guarded(["f()"], {}, ["Tool"], "restool", "entry")
    assert passed == []
    made = guard.Call.of("f", {}, "f()")
    assert guarded([made], {}, ["Tool"], "restool", "entry")[0] == [guard.refusal("f()")]
    assert passed == []
