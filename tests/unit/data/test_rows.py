from __future__ import annotations

import json

import pyarrow.parquet
import pytest

from restool.core.errors import DataError
from restool.core.rewards import is_exact
from restool.data.rows import (
    Demonstration,
    Row,
    fingerprint,
    read_demonstrations,
    read_rows,
    response_label,
    tool_label,
    write_rows,
)

ROW = Row(
    "train/0", "train", "system é", "user", tool_label([("f", {"b": 1, "a": [None, "x"]})]), "one_call",
    ("name", "think"), {"calls": [{"name": "f", "parameters": {"b": 1, "a": [None, "x"]}}], "earlier": None},
)  # fmt: skip
DEMONSTRATION = Demonstration(
    "sft/3", "sft", "system", "user", response_label("ok"), "no_tool", output="flawed", group=2, phase=1
)


def test_rows_come_back_as_written_with_the_order_of_parameters(tmp_path):
    write_rows(tmp_path / "train.parquet", [ROW])
    write_rows(tmp_path / "sft.parquet", [DEMONSTRATION])
    assert read_rows(tmp_path, "train") == [ROW]
    assert list(read_rows(tmp_path, "train")[0].meta["calls"][0]["parameters"]) == ["b", "a"]
    assert read_demonstrations(tmp_path) == [DEMONSTRATION]


def test_the_columns_are_the_published_ones(tmp_path, real_data):
    write_rows(tmp_path / "train.parquet", [ROW])
    ours = pyarrow.parquet.read_schema(tmp_path / "train.parquet")
    published = pyarrow.parquet.read_schema(real_data / "rlla_4k" / "test.parquet")
    assert ours.names == published.names
    for name in ("data_source", "prompt", "ability", "reward_model"):
        assert ours.field(name).type == published.field(name).type
    inside = {f.name for f in published.field("extra_info").type}
    assert inside <= {f.name for f in ours.field("extra_info").type}


def test_labels_are_what_the_reward_reads():
    assert is_exact(ROW.ground_truth, ROW.ground_truth)
    body = ROW.ground_truth.split("<tool_call>\n")[1].split("\n</tool_call>")[0]
    assert json.loads(body) == {"name": "f", "parameters": {"b": 1, "a": [None, "x"]}}


def test_the_fingerprint_follows_the_contents():
    assert fingerprint({"train": [ROW]}) == fingerprint({"train": [ROW]})
    assert fingerprint({"train": [ROW]}) != fingerprint({"train": [DEMONSTRATION]})


def test_a_missing_split_is_named_with_what_there_is(tmp_path):
    write_rows(tmp_path / "train.parquet", [ROW])
    with pytest.raises(DataError, match=r"no split 'test' \(it has train\); run `restool prepare`"):
        read_rows(tmp_path, "test")


def test_a_damaged_file_is_an_error_in_one_line(tmp_path):
    write_rows(tmp_path / "train.parquet", [ROW])
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read"):
        read_rows(tmp_path, "train")
