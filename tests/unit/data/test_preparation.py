from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from restool import files, preparation
from restool.core.errors import ConfigurationError, DataError, ModelError
from restool.data import fetch
from restool.data.fetch import Unreachable
from restool.data.rows import read_demonstrations, read_rows
from restool.preparation import prepare, prepared_id

pytestmark = pytest.mark.usefixtures("no_mirror")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(url):
        raise OSError("no network in this test")

    monkeypatch.setattr(fetch, "_read_url", refuse)
    monkeypatch.setattr(fetch, "_FIRST_WAIT_S", 0.001)


def _with(settings, **data):
    return settings.model_copy(update={"data": settings.data.model_copy(update=data)})


def quiet(line):
    pass


def test_synthetic_data_are_prepared_with_a_model_and_found_again(small_run, tmp_path):
    out = tmp_path / "prepared" / "data"
    lines = []
    manifest = prepare(small_run, out, report=lines.append)
    assert any("going on without API-Bank" in line for line in lines)
    assert {name: entry["rows"] for name, entry in manifest["files"].items()} == {
        "train": 40, "sft": 60, "held_out": 30, "transfer": 10,
    }  # fmt: skip
    assert len(read_rows(out, "held_out")) == 30
    assert read_demonstrations(out)[0].phase == 0
    assert manifest["held_out_splits"] == ["held_out", "transfer"]
    assert manifest["lengths"]["train"]["prompt_tokens"]["max"] <= 512
    assert sum(manifest["counts"]["bfcl_synthetic"].values()) == 30
    record = manifest["benchmarks"]["api_bank"]
    assert record["available"] is False
    assert "no network in this test" in record["reason"]
    assert (out / "model" / "config.json").is_file()
    assert (out / "model" / "tokenizer.json").is_file()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    lines.clear()
    assert prepare(small_run, out, report=lines.append) == manifest
    assert lines == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_two_folders_hold_the_same_bytes(small_run, tmp_path):
    for name in ("a", "b"):
        prepare(small_run, tmp_path / name, report=quiet)
    for path in (tmp_path / "a").rglob("*.*"):
        if path.is_file():
            assert files.sha256(path) == files.sha256(tmp_path / "b" / path.relative_to(tmp_path / "a")), path


def test_the_id_follows_the_content_and_costs_no_torch(small_run):
    identity = prepared_id(small_run)
    assert identity.startswith("tiny-synthetic-")
    assert prepared_id(_with(small_run, mirror="elsewhere")) == identity
    assert prepared_id(_with(small_run, max_prompt_tokens=100)) != identity
    program = "import restool.preparation, sys; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_damaged_or_half_deleted_data_are_made_again(small_run, tmp_path):
    out = tmp_path / "data"
    manifest = prepare(small_run, out, report=quiet)
    (out / "train.parquet").write_bytes(b"torn")
    assert prepare(small_run, out, report=quiet) == manifest
    assert len(read_rows(out, "train")) == 40
    (out / "manifest.json").unlink()  # as Snakemake does before it runs a job again
    assert prepare(small_run, out, report=quiet) == manifest
    shutil.rmtree(out / "model")
    assert prepare(small_run, out, report=quiet) == manifest
    assert (out / "model" / "config.json").is_file()


def test_a_folder_with_other_things_is_left_alone(small_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds other files \(thesis\.tex\)"):
        prepare(small_run, tmp_path, report=quiet)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"

    out = tmp_path / "data"
    prepare(small_run, out, report=quiet)
    with pytest.raises(DataError, match="prepared with other settings"):
        prepare(_with(small_run, max_prompt_tokens=300), out, report=quiet)


def test_a_failure_leaves_nothing_behind(small_run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation.rows, "write_rows", fail)
    with pytest.raises(files.FileError, match="No space left on device"):
        prepare(small_run, tmp_path / "data", report=quiet)
    assert [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_killed_call_is_followed_by_a_whole_result(small_run, tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from restool.preparation import prepare; from restool.settings import RunSettings\n"
        "def report(line):\n"
        "    if line.startswith('training the tokenizer'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(RunSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), report=report)"
    )
    out = tmp_path / "data"
    settings = _with(small_run, mirror=str(tmp_path))  # an empty mirror; the network fails at once
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", program, settings.model_dump_json(), str(out)]
    killed = subprocess.run(command, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    prepare(settings, out, report=quiet)
    assert len(read_rows(out, "train")) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.lock", "data"]


def test_overlong_rl_prompts_are_dropped_and_counted(small_run, tmp_path):
    everything = prepare(small_run, tmp_path / "all", report=quiet)
    limit = everything["lengths"]["train"]["prompt_tokens"]["p50"]
    manifest = prepare(_with(small_run, max_prompt_tokens=limit), tmp_path / "short", report=quiet)
    dropped = manifest["dropped"][f"train: prompt longer than {limit} tokens"]
    assert dropped == manifest["lengths"]["train"]["prompts_over_limit"] > 0
    assert manifest["files"]["train"]["rows"] == len(read_rows(tmp_path / "short", "train")) == 40 - dropped
    assert manifest["files"]["held_out"]["rows"] == 30
    with pytest.raises(DataError, match="no training prompt has at most 5 tokens"):
        prepare(_with(small_run, max_prompt_tokens=5), tmp_path / "none", report=quiet)
    cut = prepare(_with(small_run, max_prompt_tokens=limit, overlong="truncate_left"), tmp_path / "cut", report=quiet)
    assert not cut["dropped"]
    assert cut["lengths"]["train"]["prompts_over_limit"] == dropped


def test_api_bank_may_be_missing_only_where_it_is_optional_and_never_be_corrupt(small_run, real_data, tmp_path):
    with pytest.raises(Unreachable, match=r"api_bank/level-1-api_processed\.json.*no network in this test"):
        prepare(_with(small_run, optional_benchmarks=False), tmp_path / "a", report=quiet)
    mirror = tmp_path / "mirror" / "api_bank"
    shutil.copytree(real_data / "api_bank", mirror)
    path = mirror / "level-3-api_processed.json"
    path.chmod(0o600)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"John", b"Jack", 1))
    settings = _with(small_run, mirror=str(tmp_path / "mirror"))
    with pytest.raises(DataError, match=r"altered: expected git blob id 5d80fb.*found"):
        prepare(settings, tmp_path / "b", report=quiet)
    path.write_bytes(content)
    manifest = prepare(settings, tmp_path / "b", report=quiet)
    assert manifest["benchmarks"]["api_bank"] == {"available": True, "reason": None, "path": "benchmarks/api_bank"}
    assert len(manifest["sources"]) == 3


def test_the_real_rows_are_prepared_for_the_tiny_model(rlla_run, real_data, tmp_path):
    manifest = prepare(_with(rlla_run, mirror=str(real_data)), tmp_path / "data", report=quiet)
    dropped = manifest["dropped"].get("train: prompt longer than 2048 tokens", 0)
    assert manifest["files"]["train"]["rows"] == 400 - dropped
    assert (manifest["files"]["sft"]["rows"], manifest["files"]["test"]["rows"]) == (400, 80)
    assert manifest["held_out_splits"] == ["test"]
    assert any("RL draws its prompts and labels from the 400 demonstrations" in note for note in manifest["notes"])
    assert {s["git_blob"] for s in manifest["sources"]} >= {fetch.TEST.blob, fetch.SFT_JSON.blob}
    assert manifest["skeleton"].count("{{TOOLS}}") == 1
    json.dumps(manifest, allow_nan=False)


def test_the_published_train_split_that_cannot_be_reached_is_one_line(rlla_run, real_data, tmp_path):
    settings = _with(rlla_run, mirror=str(real_data), splits=["train", "test", "sft"], rl_rows_from="train")
    with pytest.raises(Unreachable) as caught:
        prepare(settings, tmp_path / "data", report=quiet)
    assert str(real_data) in str(caught.value)
    assert "raw.githubusercontent.com" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_settings_without_their_section_are_an_error(small_run, tmp_path):
    with pytest.raises((DataError, ConfigurationError), match=r"data\.synthetic"):
        prepare(_with(small_run, synthetic=None), Path(tmp_path / "data"), report=quiet)


def test_a_model_of_ones_own_measures_with_its_tokenizer_and_is_not_copied(small_run, tmp_path):
    manifest = prepare(small_run, tmp_path / "tiny", report=quiet)
    model = small_run.model.model_copy(update={"path": str(tmp_path / "tiny" / "model"), "tiny": None})
    again = prepare(small_run.model_copy(update={"model": model}), tmp_path / "own", report=quiet)
    assert again["lengths"] == manifest["lengths"]
    assert not (tmp_path / "own" / "model").exists()

    (tmp_path / "nothing").mkdir()
    broken = model.model_copy(update={"path": str(tmp_path / "nothing")})
    with pytest.raises(ModelError, match=r"cannot get the model .*nothing") as caught:
        prepare(small_run.model_copy(update={"model": broken}), tmp_path / "broken", report=quiet)
    assert "\n" not in str(caught.value)


def test_api_bank_is_added_once_it_can_be_had_and_nothing_else_changes(small_run, real_data, tmp_path, monkeypatch):
    out = tmp_path / "prepared" / "data"
    without = prepare(small_run, out, report=quiet)
    assert not preparation.can_be_completed(small_run, out)
    monkeypatch.setenv("RESTOOL_MIRROR", str(real_data))
    assert preparation.can_be_completed(small_run, out)
    lines: list[str] = []
    completed = prepare(small_run, out, report=lines.append)
    assert any("API-Bank can be had now" in line for line in lines)
    assert completed["benchmarks"]["api_bank"]["available"]
    assert (out / "benchmarks" / "api_bank" / "level-1-api_processed.json").exists()
    assert completed["fingerprint"] == without["fingerprint"]
    assert not preparation.can_be_completed(small_run, out)
