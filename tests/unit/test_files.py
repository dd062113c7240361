"""Files are whole or absent, whatever kills the writer."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restool import files


def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a.json"
    files.write_json(target, {"old": 1})

    def killed_in_mid_write():
        with files.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed_in_mid_write()
    assert files.read_json(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_lone_surrogates_are_written_as_text(tmp_path):
    files.write_text(tmp_path / "t", "a\ud83db")
    assert (tmp_path / "t").read_bytes() == b"a?b"


@given(st.integers(0, 200))
def test_any_torn_tail_is_dropped_and_mended_by_the_next_append(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "m.jsonl"
    rows = [{"step": i, "text": "é" * i} for i in range(5)]
    content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    kept = content[: max(0, len(content) - cut)]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    assert files.read_json_lines(path)[:whole] == rows[:whole]
    with files.JsonLinesWriter(path) as writer:
        writer.append({"step": "new"})
    assert files.read_json_lines(path) == [*rows[:whole], {"step": "new"}]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(files.FileError, match="line 2"):
        files.read_json_lines(path)


def test_missing_and_malformed_json_are_named(tmp_path):
    with pytest.raises(files.FileError, match="does not exist"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(files.FileError, match=r"bad\.json is not valid JSON"):
        files.read_json(tmp_path / "bad.json")


def test_blob_id_is_gits_own():
    assert files.git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_full_disk_is_one_clear_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    writer = files.JsonLinesWriter.__new__(files.JsonLinesWriter)
    writer.path = "/dev/full"
    writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - the writer closes it
    with pytest.raises(files.FileError, match="No space left"), writer:
        writer.append({"a": 1})
