"""Files of answers that others made: every fault is named, by line and by id."""

from __future__ import annotations

import pytest

from restool import files
from restool.core.errors import EvaluationError
from restool.evaluation import given

WANTED = [f"q{i}" for i in range(14)]


def _read(path, allow_missing=False):
    return given.read(path, WANTED, "SHAPE", lambda row: isinstance(row.get("text"), str), allow_missing=allow_missing)


@pytest.fixture
def path(tmp_path):
    files.write_json_lines(tmp_path / "a.jsonl", [{"id": name, "text": "é"} for name in WANTED])
    return tmp_path / "a.jsonl"


def test_whole_rows_are_read(path):
    assert [row["id"] for row in _read(path)] == WANTED
    path.write_bytes(path.read_bytes()[:-1])  # no newline behind the last row: it is whole all the same
    assert len(_read(path)) == 14


def test_all_faults_are_told_at_once(path):
    lines = path.read_bytes().split(b"\n")
    lines[1] = b'{"id": "q1", "te'
    lines[2] = b'{"id": "q2", "text": 5}'
    lines[3] = b'["q3"]'
    lines[4] = lines[5]
    lines[6] = b'{"id": "who", "text": ""}'
    lines[13:] = [b'{"text": "\xc3']
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(EvaluationError) as told:
        _read(path)
    assert str(told.value) == (
        f"{path}: answers do not fit the benchmark: line 14: cut off; line 2 (q1): no JSON; "
        "line 3 (q2), line 4: not as expected, SHAPE; 1 duplicate (q5); 1 unknown (who); "
        "6 missing (q1, q2, q3, q4, q6, q13); --allow-missing counts missing ones as wrong"
    )


def test_what_is_cut_off_is_named_and_may_be_missing(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'"q2"') + 8])
    with pytest.raises(EvaluationError, match=r"line 3 \(q2\): cut off; 12 missing \(q2, q3, .*, q11, …\); --allow"):
        _read(path)
    assert [row["id"] for row in _read(path, allow_missing=True)] == ["q0", "q1"]
    path.write_bytes(whole + b'{"id": "q0"')
    with pytest.raises(EvaluationError, match=r"line 15 \(q0\): cut off$"):  # nothing is missing
        _read(path)
