"""The published rows, measured: figures are those of an independent study of the same files."""

from __future__ import annotations

import json

import pytest

from restool import files
from restool.core.errors import DataError
from restool.core.rewards import is_exact, score
from restool.data import api_bank, fetch, prompts, rlla
from restool.data.fetch import Fetcher, Published
from restool.data.rlla import Triple
from restool.data.rows import tool_label
from restool.settings import DataSettings

SETTINGS = DataSettings(
    name="rlla_400", kind="rlla", splits=["test", "sft"], rl_rows_from="sft", max_prompt_tokens=2048, overlong="drop"
)


@pytest.fixture(scope="module")
def fetcher(real_data):
    return Fetcher(real_data, None, lambda line: None, base_url="http://127.0.0.1:9", attempts=1)


@pytest.fixture(scope="module")
def data(fetcher):
    return rlla.load(SETTINGS, fetcher)


def test_every_published_row_is_valid(data):
    assert {name: len(rows) for name, rows in data.splits.items()} == {"test": 80, "sft": 400, "train": 400}
    assert data.dropped == {}
    assert data.held_out == ("test",)


def test_the_statistics_are_the_known_ones(data):
    test, sft = data.counts["splits"]["test"], data.counts["splits"]["sft"]
    assert test["answers"] == {"response": 9, "tool_call": 71}
    assert sft["answers"] == {"response": 54, "tool_call": 346}
    assert test["calls_per_tool_answer"] == {"1": 36, "2": 23, "3": 8, "4": 3, "5": 1}
    assert sft["calls_per_tool_answer"] == {"1": 187, "2": 109, "3": 33, "4": 13, "5": 4}
    assert test["parameters_per_call"] == {"1": 67, "2": 37, "3": 15, "4": 1, "5": 2, "6": 1}
    assert test["value_types"] == {"str": 147, "int": 37, "list": 12, "float": 6, "bool": 4}
    assert (test["with_observations"], sft["with_observations"]) == (7, 37)
    assert sft["thoughts_with_tags"] == {"<tool_call>": 17, "<response>": 5}
    assert max(map(int, test["tools_per_prompt"])) == 7
    assert max(map(int, sft["tools_per_prompt"])) == 8
    assert data.counts["shared_prompts"] == {"sft and test": 1, "train and test": 1}


@pytest.mark.parametrize(
    ("split", "system", "user", "answer"),
    [("test", (2811, 5957), (389, 4236), (335, 2339)), ("sft", (2734, 6795), (395, 5734), (1602, 4931))],
)
def test_the_lengths_are_the_known_ones(data, split, system, user, answer):
    rows = data.splits[split]
    answers = [getattr(row, "output", row.ground_truth) for row in rows]
    for (mean, longest), texts in (
        (system, [row.system for row in rows]), (user, [row.user for row in rows]), (answer, answers)
    ):  # fmt: skip
        lengths = [len(text) for text in texts]
        assert (round(sum(lengths) / len(lengths)), max(lengths)) == (mean, longest)


def test_labels_get_full_marks_those_made_of_demonstrations_too(data):
    for row in [*data.splits["test"], *data.splits["train"]]:
        if "<tool_call>" in row.ground_truth:
            assert is_exact(row.ground_truth, row.ground_truth)
        assert score(row.ground_truth, row.ground_truth, preset="toolrl").format == 1.0


def test_rl_rows_of_demonstrations_have_their_prompts_and_answers(data):
    for rl, demonstration in zip(data.splits["train"], data.splits["sft"], strict=True):
        assert (rl.system, rl.user) == (demonstration.system, demonstration.user)
        assert rlla.read_calls(rl.ground_truth) == rlla.read_calls(demonstration.output)
        assert rl.ground_truth.rpartition("</think>")[2] == demonstration.output.rpartition("</think>")[2]


def test_one_skeleton_makes_every_prompt_of_rlla_and_api_bank(data, fetcher, tmp_path):
    api_bank.fetch(fetcher, tmp_path)
    samples = api_bank.load_samples(tmp_path)
    systems = [row.system for rows in data.splits.values() for row in rows]
    assert data.skeleton.count(prompts.SLOT) == 1
    assert prompts.extract_skeleton([s["system"] for s in samples], "API-Bank") == data.skeleton
    for system in systems + [s["system"] for s in samples]:
        tools = prompts.tool_list(data.skeleton, system)
        assert tools.startswith("1. ")
        assert prompts.fill(data.skeleton, tools) == system
    for system in systems:
        listed = prompts.read_tools(prompts.tool_list(data.skeleton, system))
        assert prompts.system_prompt(data.skeleton, listed) == system


def test_api_bank_has_its_597_samples_with_one_gold_call_each(fetcher, tmp_path):
    api_bank.fetch(fetcher, tmp_path)
    samples = api_bank.load_samples(tmp_path)
    levels = [s["id"].rpartition("/")[0] for s in samples]
    assert [levels.count(f"level-{n}") for n in (1, 2, 3)] == [399, 67, 131]
    assert len({s["id"] for s in samples}) == 597
    assert all(set(s["gold"]) == {"name", "parameters"} for s in samples)
    assert all(isinstance(v, str) for s in samples for v in s["gold"]["parameters"].values())

    path = tmp_path / "level-2-api_processed.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"level-2.*truncated or altered: expected git blob id 630e"):
        api_bank.load_samples(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": ""}, "a text is missing"),
        ({"instruction": "You are a pirate."}, "the system prompt has another skeleton"),
        ({"input": "hello"}, "the user message is no dialogue record"),
        ({"output": "<think> a </think>"}, "the answer is neither a tool call nor a response"),
        ({"output": "<think> a </think>\n<tool_call>\n{'name': 1}\n</tool_call>"}, "a tool call is not JSON"),
        ({"output": '<think> a </think>\n<tool_call>\n{"name": "x"}\n</tool_call>'}, "a tool call is not JSON"),
        ({"output": tool_label([("x", {"a": "</tool_call>"})])}, "the reward cannot read the label"),
    ],
)
def test_bad_rows_are_found_with_their_reason(data, change, reason):
    row = data.splits["test"][0]
    good = Triple(row.system, row.user, row.ground_truth)
    assert rlla.fault(good, data.skeleton) is None
    assert rlla.fault(good._replace(**change), data.skeleton).startswith(reason)
    unlisted = row.system.replace("Parameters: {", "Parameters: [", 1)
    assert rlla.fault(good._replace(instruction=unlisted), data.skeleton) == "the tool list cannot be read"


def test_train_is_rebuilt_from_the_raw_rows_only_if_its_end_is_the_published_test_split(
    data, real_data, tmp_path, monkeypatch
):
    """The real rlla_rl.json is out of reach; rows that stand for it show the order and the check."""
    order = list(range(4000))
    shuffled_train, shuffled_test = rlla.rebuild([Triple(str(i), "", "") for i in order])
    assert (len(shuffled_train), len(shuffled_test)) == (3920, 80)
    places = [int(t.instruction) for t in (*shuffled_train, *shuffled_test)]
    assert sorted(places) == order
    assert places[:5] == _numpy_shuffle(4000)[:5]

    sft = [Triple(r.system, r.user, r.ground_truth) for r in data.splits["train"]]
    test = [Triple(r.system, r.user, r.ground_truth) for r in data.splits["test"]]
    raw = [sft[i % 400] for i in range(4000)]
    for position, row in zip(places[3920:], test, strict=True):
        raw[position] = row
    mirror = tmp_path / "rlla_4k"
    mirror.mkdir()
    (mirror / "test.parquet").write_bytes((real_data / "rlla_4k" / "test.parquet").read_bytes())
    settings = SETTINGS.model_copy(update={"splits": ["train", "test"], "rl_rows_from": "train"})

    def load(rows):
        content = json.dumps([row._asdict() for row in rows]).encode()
        stand_in = Published(fetch.RL_JSON.name, fetch.RL_JSON.upstream, files.git_blob_id(content))
        monkeypatch.setattr(fetch, "RL_JSON", stand_in)
        (mirror / "rlla_rl.json").write_bytes(content)
        return rlla.load(settings, Fetcher(tmp_path, None, lambda line: None, "http://127.0.0.1:9", attempts=1))

    rebuilt = load(raw).splits["train"]
    assert [row.user for row in rebuilt] == [raw[i].input for i in places[:3920]]
    raw[places[-1]] = sft[0]
    with pytest.raises(DataError, match="does not end in the published test rows"):
        load(raw)


def _numpy_shuffle(count: int) -> list[int]:
    """As the released conversion does it: the global generator, seeded."""
    import numpy

    state = numpy.random.get_state()
    numpy.random.seed(31415)
    order = list(range(count))
    numpy.random.shuffle(order)
    numpy.random.set_state(state)
    return order


def test_contradictory_splits_are_refused(fetcher):
    with pytest.raises(DataError, match="rl_rows_from=sft"):
        rlla.load(SETTINGS.model_copy(update={"splits": ["test"]}), fetcher)
    with pytest.raises(DataError, match="no split 'dev'"):
        rlla.load(SETTINGS.model_copy(update={"splits": ["dev"]}), fetcher)
