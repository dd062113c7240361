"""Items that a model was trained on: hashes, the lineage of a run, and the overlaps of the real data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from restool import files
from restool.core.errors import DataError
from restool.data import api_bank, bfcl_export, overlap, prompts, rows, synthetic
from restool.data.overlap import Content
from restool.evaluation import contamination
from restool.evaluation.contamination import Training
from restool.runs import RunDirectory
from restool.settings import SyntheticSettings

ROOT = Path(__file__).parents[3]
SKELETON = f"You have:\n{prompts.SLOT}\n\n1. **Think:** first\n"


def system(*names: str) -> str:
    return prompts.system_prompt(SKELETON, [(name, "does it", {"x": {"type": "string"}}) for name in names])


def user(text: str) -> str:
    return f"{prompts.HISTORY}<user> {text} </user>"


def row(number: int, question: str, *tools: str) -> rows.Row:
    return rows.Row(f"train/{number}", "train", system(*tools), user(question), "", "one_call")


def training(tmp_path: Path, *content: rows.Row) -> Training:
    prepared = tmp_path / "results" / "prepared" / "p"
    prepared.mkdir(parents=True)
    record = overlap.write(prepared, {"train": list(content)})
    files.write_json(prepared / "manifest.json", {"fingerprint": "f", "training_hashes": record})
    entry = {"prepared": "p", "fingerprint": "f", "split": "train"}
    return Training.of_splits(prepared.parent, [entry])


def test_kinds_of_overlap(tmp_path):
    known = training(tmp_path, row(0, "Book a table in Rome", "book_table", "book_hotel"), row(1, "Hello", "greet"))
    asked = {
        "question_and_tools": ("book a TABLE,  in Rome!", ("book_hotel", "book_table")),
        "question": ("Book a table in Rome", ("reserve",)),
        "tools": ("Book a table in Paris", ("book_table", "book_hotel")),
        None: ("Book a table in Paris", ("book_table",)),
    }
    for kind, (question, names) in asked.items():
        assert known.overlap(Content.of_prompt(system(*names), user(question))) == kind


@settings(deadline=None)
@given(st.text(max_size=60))
def test_spacing_case_and_punctuation_hide_nothing(text):
    plain = overlap.normalised(text)
    assert overlap.normalised(f"  {text.upper().lower()} ?!\n") == overlap.normalised(text.upper().lower())
    assert overlap.normalised(plain) == plain


def test_tool_lists_are_read_in_both_published_forms():
    assert overlap.tool_names(system("get_weather", "Find It")) == ["get_weather", "Find It"]
    level_3 = (
        "You can use:\n1. QueryMeeting: retrieves: meetings\nParameters: {'a': {}}\n2. Delete: x\nParameters: {}\n"
    )
    assert overlap.tool_names(level_3) == ["QueryMeeting", "Delete"]
    assert overlap.tool_names("1. **Think:** first\n2. **Act**\n") == []


def test_an_entry_in_bfcls_format_is_the_prompt_that_it_came_from(tmp_path):
    values = yaml.safe_load((ROOT / "configs/data/synthetic.yaml").read_text())["synthetic"]
    small = {"train_rows": 1, "demonstrations": 4, "transfer_rows": 0, "held_out_rows": 80}
    held_out = synthetic.generate(SyntheticSettings(**(values | small)))[0]["held_out"]
    bfcl_export.write(held_out, tmp_path)
    of_row = {one.id: Content.of_prompt(one.system, one.user) for one in held_out}
    entries = [
        entry for path in (tmp_path / bfcl_export.FOLDER).glob("*.jsonl") for entry in files.read_json_lines(path)
    ]
    assert len(entries) == 80
    assert all(bfcl_export.content(entry) == of_row[entry["row"]] for entry in entries)


def test_rows_are_marked_counted_and_the_rest_is_scored(tmp_path):
    known = training(tmp_path, row(0, "one", "f"), row(1, "two", "g"))
    contents = {
        "a": Content.of_prompt(system("f"), user("one")),
        "b": Content.of_prompt(system("h"), user("two")),
        "c": Content.of_prompt(system("f"), user("three")),
        "d": Content.of_prompt(system("f"), user("three")),
    }
    marked = [{"id": name, "correct": name in "abd"} for name in contents]
    contamination.mark(marked, contents, known)
    assert [one["overlap"] for one in marked] == ["question_and_tools", "question", "tools", "tools"]
    assert [one["duplicate_of"] for one in marked] == [None, None, None, "c"]
    record = contamination.record(marked, known, {"all": (marked, "correct")})
    assert (record["contaminated"], record["items"], record["duplicates"]) == (2, 4, 1)
    assert record["kinds"] == {"question_and_tools": 1, "question": 1, "tools": 2}
    assert record["categories"]["all"]["rest"]["accuracy"] == 0.5
    assert record["categories"]["all"]["rest"]["n"] == 2


def test_what_is_not_known_is_not_called_clean():
    marked = [{"id": "a", "correct": True}]
    contamination.mark(marked, {"a": Content.of("x", [])}, Training.unknown())
    record = contamination.record(marked, Training.unknown(), {"all": (marked, "correct")})
    assert record["checked"] is False
    assert "contaminated" not in record


def test_a_runs_lineage_leads_to_the_data_of_its_start_model(tmp_path):
    """RL on `train` from a model that saw `sft`: both count, each from the prepared data that was used."""
    results = tmp_path / "results"
    for name, split, question in (("old", "sft", "from the demonstrations"), ("new", "train", "from RL")):
        folder = results / "prepared" / name
        folder.mkdir(parents=True)
        record = overlap.write(folder, {split: [row(0, question, "f")]})
        files.write_json(folder / "manifest.json", {"fingerprint": name, "training_hashes": record})
    seen = [{"prepared": n, "fingerprint": n, "split": s} for n, s in (("old", "sft"), ("new", "train"))]
    run = RunDirectory(results / "x" / "runs" / "r")
    files.write_json(run.path / "env.json", {"trained_on": seen})
    known = Training.of_model(run.model)
    for question in ("from the demonstrations", "from RL"):
        assert known.overlap(Content.of_prompt(system("f"), user(question))) == "question_and_tools"
    files.write_json(results / "prepared" / "old" / "manifest.json", {"fingerprint": "another"})
    assert "replaced by other rows" in Training.of_run(run).reason
    (results / "prepared" / "old" / "manifest.json").unlink()
    assert "is gone: old" in Training.of_run(run).reason
    files.write_json(run.path / "env.json", {})
    assert Training.of_run(run).reason == contamination.NOT_RECORDED
    assert Training.of_model(Path("Qwen/Qwen3-1.7B")).reason == contamination.NOT_RECORDED


def test_changed_hashes_are_an_error_that_says_what_to_do(tmp_path):
    training(tmp_path, row(0, "one", "f"))
    path = tmp_path / "results" / "prepared" / "p" / overlap.FILE
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match="restool prepare"):
        Training.of_splits(path.parents[1], [{"prepared": "p", "fingerprint": "f", "split": "train"}])


def mirror() -> Path:
    folder = Path(os.environ.get("RESTOOL_MIRROR") or ROOT.parent / "shared" / "data")
    if not (folder / "api_bank").is_dir():
        pytest.skip("the real data is not here (RESTOOL_MIRROR)")
    return folder


def test_the_one_test_row_that_the_demonstrations_hold(tmp_path):
    import pyarrow.parquet

    folder = mirror() / "rlla_4k"
    demonstrations = json.loads((folder / "rlla_sft.json").read_text())
    published = [
        rows.Row(f"sft/{i}", "sft", r["instruction"], r["input"], "", "") for i, r in enumerate(demonstrations)
    ]
    known = training(tmp_path, *published)
    with open(folder / "test.parquet", "rb") as file:
        test = [r["extra_info"] for r in pyarrow.parquet.read_table(file).to_pylist()]
    contents = {str(r["index"]): Content.of_prompt(r["instruction"], r["input"]) for r in test}
    marked = [{"id": name, "correct": True} for name in contents]
    contamination.mark(marked, contents, known)
    record = contamination.record(marked, known, {"test": (marked, "correct")})
    assert (record["contaminated"], record["items"]) == (1, 80)
    assert record["kinds"] == {"question_and_tools": 1, "question": 0, "tools": 1}


def test_api_banks_ten_duplicates(tmp_path):
    samples = api_bank.load_samples(mirror() / "api_bank")
    contents = {s["id"]: Content.of_prompt(s["system"], s["user"]) for s in samples}
    marked = [{"id": name, "correct": True} for name in contents]
    contamination.mark(marked, contents, Training())
    twice = [one for one in marked if one["duplicate_of"]]
    assert len(twice) == 10
    assert {one["id"].partition("/")[0] for one in twice} == {"level-1"}
    gold = {s["id"]: s["gold"] for s in samples}
    assert all(gold[one["id"]] == gold[one["duplicate_of"]] for one in twice)
