from __future__ import annotations

import subprocess
import sys
from itertools import groupby

import pytest

from restool.core.errors import ConfigurationError
from restool.core.rewards import is_exact, score
from restool.data import bfcl_export, synthetic
from restool.data.library import ALIASES, POOLS, TOOLS
from restool.data.rows import fingerprint, tool_label

RESERVED = {name for name, tool in TOOLS.items() if tool.reserved}


@pytest.fixture(scope="module")
def splits(synthetic_settings):
    return synthetic.generate(synthetic_settings)[0]


def test_the_library_is_eight_pairs_of_siblings_half_of_which_share_the_verb():
    assert len(TOOLS) == 16
    assert len(RESERVED) == 4
    for tool in TOOLS.values():
        sibling = TOOLS[tool.sibling]
        assert (sibling.sibling, sibling.parameters) == (tool.name, tool.parameters)
    shared = sum(name.split("_")[0] == tool.sibling.split("_")[0] for name, tool in TOOLS.items())
    assert shared == 8
    assert all(value in POOLS[pool] for pool, names in ALIASES.items() for value in names.values())


def test_another_process_draws_the_same_rows(synthetic_settings, splits):
    program = (
        "import json, sys; from restool.settings import SyntheticSettings; from restool.data import rows, synthetic\n"
        "settings = SyntheticSettings(**json.loads(sys.argv[1]))\n"
        "print(rows.fingerprint(synthetic.generate(settings)[0]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, synthetic_settings.model_dump_json()],
        env={"PYTHONHASHSEED": "123"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == fingerprint(splits)


def test_another_seed_draws_other_rows_and_more_demonstrations_the_same_held_out(synthetic_settings, splits):
    small = {"train_rows": 5, "demonstrations": 8}
    other = synthetic.generate(synthetic_settings.model_copy(update={**small, "seed": 1}))[0]
    fewer = synthetic.generate(synthetic_settings.model_copy(update=small))[0]
    assert fewer["held_out"] == splits["held_out"]
    assert fewer["train"] == splits["train"][:5]
    assert not {r.user for r in other["train"]} & {r.user for r in fewer["train"]}


def test_labels_get_full_marks_under_every_preset(splits):
    for rows in splits.values():
        for row in rows:
            best = 4.0 if row.meta["calls"] else 1.0
            assert score(row.ground_truth, row.ground_truth, preset="toolrl").total == best
            assert score(row.ground_truth, row.ground_truth, preset="rest_unscheduled").total == best


def test_demonstrations_are_right_exactly_where_no_flaw_was_built_in(splits):
    flaws_seen = set()
    for row in splits["sft"]:
        flaws = row.meta["flaws"]
        flaws_seen.update(flaws)
        assert set(flaws) <= set(row.opportunities)
        if row.meta["calls"]:
            assert is_exact(row.output, row.ground_truth) == (not flaws)
        right = synthetic.rightness(row.meta, row.output)
        assert set(right) == set(row.opportunities)
        assert right.get("name", True) == ("name" not in flaws)
        assert right.get("think", True) == ("think" not in flaws)
        if "arguments" in flaws:
            assert not right["arguments"]
        elif "think" not in flaws:  # an unresolved last parameter is wrong too
            assert right.get("arguments", True)
    assert flaws_seen == set(synthetic.FLAWS)


def test_thoughts_resolve_words_and_never_name_a_tool(splits):
    for row in [*splits["sft"], *splits["held_out"]]:
        thought = row.ground_truth.split("</think>")[0]
        assert not any(name in thought for name in TOOLS)
        for call in row.meta["calls"]:
            for parameter, word in call["aliases"].items():
                assert f"{word} means {call['parameters'][parameter]}." in thought
                assert word in row.user


def test_the_shares_are_those_of_the_settings(synthetic_settings, splits):
    counts = synthetic.statistics(splits["train"])
    assert counts["kinds"]["no_tool"] / counts["rows"] == pytest.approx(synthetic_settings.no_tool, abs=0.03)
    assert counts["kinds"]["several_calls"] / counts["rows"] == pytest.approx(0.12, abs=0.03)
    assert counts["kinds"]["history"] / counts["rows"] == pytest.approx(synthetic_settings.history, abs=0.03)
    tools = counts["tool_prompts"]
    assert counts["opportunities"]["name"] / tools == pytest.approx(0.59, abs=0.05)
    assert counts["opportunities"]["think"] / tools == pytest.approx(0.40, abs=0.05)
    assert counts["opportunities"]["arguments"] / tools == pytest.approx(0.40, abs=0.05)
    demonstrations = synthetic.statistics(splits["sft"])
    for flaw, share in (("name", 0.60), ("think", 0.62), ("arguments", 0.60)):
        assert demonstrations["flaws"][flaw] / demonstrations["opportunities"][flaw] == pytest.approx(share, abs=0.04)


def test_reserved_tools_stay_out_of_rl_and_make_up_the_transfer_split(splits):
    for row in [*splits["train"], *splits["held_out"]]:
        assert not RESERVED & set(row.meta["listed"])
    for row in splits["transfer"]:
        assert {call["name"] for call in row.meta["calls"]} <= RESERVED
        assert RESERVED & set(row.meta["listed"])
    assert {call["name"] for row in splits["sft"] for call in row.meta["calls"]} >= RESERVED


def test_evaluation_prompts_are_unique_and_absent_from_training(splits):
    evaluation = [(r.system, r.user) for name in ("held_out", "transfer") for r in splits[name]]
    assert len(set(evaluation)) == len(evaluation)
    assert synthetic.shared_prompts(splits) == {"held_out": 0, "transfer": 0}


def test_demonstrations_come_in_groups_and_phases(synthetic_settings, splits):
    groups = [list(g) for _, g in groupby(splits["sft"], key=lambda row: row.group)]
    assert [g[0].group for g in groups] == list(range(len(groups)))
    for group in groups:
        assert len({row.system for row in group}) == 1
        assert len({row.user for row in group}) == len(group) == synthetic_settings.questions_per_header
    phases = [row.phase for row in splits["sft"]]
    assert phases == sorted(phases)
    assert [phases.count(p) / len(phases) for p in range(3)] == pytest.approx(synthetic_settings.phases, abs=0.01)
    assert all(len(row.meta["listed"]) == 1 for row in splits["sft"] if row.phase == 0)
    assert {row.kind for row in splits["sft"] if row.phase < 2} == {"one_call"}
    assert {row.kind for row in splits["sft"] if row.phase == 2} == {"one_call", "several_calls", "no_tool", "history"}


def test_history_rows_show_an_earlier_call_and_its_observation(splits):
    rows = [row for row in splits["held_out"] if row.kind == "history"]
    assert rows
    for row in rows:
        assert row.user.count("<user>") == 2
        assert row.user.index("<tool_call>") < row.user.index("<obs>") < row.user.rindex("<user>")


def test_a_library_too_small_for_the_request_is_an_error_not_a_hang(synthetic_settings):
    greedy = synthetic_settings.model_copy(
        update={"questions_per_header": 4000, "demonstrations": 4000, "phases": (1, 0, 0)}
    )
    with pytest.raises(ConfigurationError, match="found no new prompt"):
        synthetic.generate(greedy)


def test_rightness_of_answers_that_are_wrong_in_one_way(splits):
    row = next(r for r in splits["held_out"] if set(r.opportunities) == set(synthetic.FLAWS) and r.kind == "one_call")
    call = row.meta["calls"][0]
    name, given = call["name"], call["parameters"]
    (parameter, word), *_ = call["aliases"].items()
    assert synthetic.rightness(row.meta, row.ground_truth) == dict.fromkeys(synthetic.FLAWS, True)

    sibling = tool_label([(TOOLS[name].sibling, given)])
    assert synthetic.rightness(row.meta, sibling) == {"name": False, "think": True, "arguments": True}
    dropped = {k: v for k, v in given.items() if k != list(given)[-1]}
    assert not synthetic.rightness(row.meta, tool_label([(name, dropped)]))["arguments"]
    assert not synthetic.rightness(row.meta, tool_label([(name, given | {parameter: word})]))["think"]
    forgotten = {k: v for k, v in given.items() if k != parameter}
    resolved = f"Yes. {word} means {given[parameter]}."
    assert synthetic.rightness(row.meta, tool_label([(name, forgotten)], resolved))["think"]
    assert not synthetic.rightness(row.meta, tool_label([(name, forgotten)], "Yes."))["think"]
    assert synthetic.rightness(row.meta, "") == dict.fromkeys(synthetic.FLAWS, False)


def test_the_bfcl_files_hold_every_row_once_and_give_the_user_message_back(tmp_path, splits):
    from restool import files

    counts = bfcl_export.write(splits["held_out"], tmp_path)
    assert set(counts) == {"multiple", "parallel", "parallel_multiple", "irrelevance"}
    by_id = {row.id: row for row in splits["held_out"]}
    seen = []
    for name, count in counts.items():
        entries = files.read_json_lines(tmp_path / "bfcl_synthetic" / f"{name}.jsonl")
        answers = files.read_json_lines(tmp_path / "bfcl_synthetic" / "possible_answer" / f"{name}.jsonl")
        assert [e["id"] for e in entries] == [f"{name}_{i}" for i in range(count)]
        assert [a["id"] for a in answers] == ([] if name == "irrelevance" else [e["id"] for e in entries])
        for entry in entries:
            row = by_id[entry["row"]]
            seen.append(row.id)
            assert bfcl_export.user_text(entry["question"][0]) == row.user
            assert [f["name"] for f in entry["function"]] == row.meta["listed"]
        for answer in answers:
            calls = by_id[answer["row"]].meta["calls"]
            assert [next(iter(truth)) for truth in answer["ground_truth"]] == [call["name"] for call in calls]
    assert sorted(seen) == sorted(by_id)


def test_the_generator_has_not_changed_unnoticed(small_run):
    """If this fails on purpose, raise `preparation._VERSION`, or data prepared earlier count as the new ones."""
    rows = synthetic.generate(small_run.data.synthetic)[0]
    assert fingerprint(rows) == "b309907435340f91"
