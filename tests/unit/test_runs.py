"""The run directory: frozen settings, lineage, superseding and revival."""

from __future__ import annotations

import pytest

from restool import runs
from restool.core.errors import RunError
from restool.experiments import compose_run

LINEAGE = {"data": "d0", "start": "m0"}


def finished_run(path, settings):
    run = runs.open_run(path, settings, LINEAGE)
    run.finish({"final": 1})
    return run


def test_settings_are_frozen_and_read_back(tmp_path):
    settings = compose_run(["method=grpo", "seed=3"])
    run = runs.open_run(tmp_path / settings.run_id, settings, LINEAGE)
    assert runs.RunDirectory(run.path).settings == settings
    assert run.lineage == LINEAGE
    assert not run.is_done


def test_other_settings_are_refused_by_key_name(tmp_path):
    finished_run(tmp_path / "r", compose_run([]))
    with pytest.raises(RunError, match=r"training\.rl\.learning_rate: 0\.0002 -> 0\.5"):
        runs.open_run(tmp_path / "r", compose_run(["training.rl.learning_rate=0.5"]), LINEAGE)


def test_another_start_model_is_another_run(tmp_path):
    finished_run(tmp_path / "r", compose_run([]))
    with pytest.raises(RunError, match=r"lineage\.start: 'm0' -> 'm1'"):
        runs.open_run(tmp_path / "r", compose_run([]), {**LINEAGE, "start": "m1"})


def test_replacing_keeps_the_old_run_and_changing_back_revives_it(tmp_path):
    first, second = compose_run([]), compose_run(["training.rl.steps=7"])
    finished_run(tmp_path / "r", first)
    assert not runs.open_run(tmp_path / "r", second, LINEAGE, replace=True).is_done
    back = runs.open_run(tmp_path / "r", first, LINEAGE, replace=True)
    assert back.is_done
    assert back.settings == first


def test_evaluation_settings_do_not_make_another_run(tmp_path):
    finished_run(tmp_path / "r", compose_run([]))
    changed = compose_run(["eval.held_out.max_new_tokens=5"])
    run = runs.open_run(tmp_path / "r", changed, LINEAGE)
    assert run.is_done
    assert run.settings.eval.held_out.max_new_tokens == 5


def test_rl_settings_do_not_touch_sft_runs():
    assert compose_run(["method=sft"]).decisive() == compose_run(["method=sft", "training.rl.steps=7"]).decisive()
    assert compose_run(["method=sft"]).decisive() != compose_run(["method=sft", "training.sft.steps=7"]).decisive()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"it has no config\.yaml"):
        _ = runs.RunDirectory(tmp_path).settings


def whole_run(path, settings=None):
    """A finished run with a log and a model of one file."""
    run = runs.open_run(path, settings or compose_run([]), LINEAGE)
    run.metrics_path.write_text('{"step": 1}\n')
    run.model.mkdir()
    (run.model / "model.safetensors").write_bytes(b"weights" * 9)
    run.finish({"steps": 1})
    return run


def settle(run):
    said = []
    return run.settle(said.append), said


def test_a_deleted_or_cut_done_file_is_put_back_and_nothing_is_trained_again(tmp_path):
    run = whole_run(tmp_path / "r")
    before = (run.path / "done.json").read_bytes()
    for spoil in (lambda path: path.unlink(), lambda path: path.write_text(""), lambda path: path.write_text("[1]")):
        spoil(run.path / "done.json")
        assert settle(run)[0]
        assert (run.path / "done.json").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "model/model.safetensors", "env.json"])
def test_a_finished_run_whose_file_was_cut_or_lost_is_not_taken_for_whole(tmp_path, name):
    run = whole_run(tmp_path / "r")
    assert run.damage() == []
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content[:5])
    assert run.damage() == [f"{run.path / name} has 5 bytes and had {len(content)}"]
    (run.path / name).unlink()
    assert run.damage() == [f"{run.path / name} is gone"]
    is_finished, said = settle(run)
    assert not is_finished
    assert f"{run.path / name} is gone" in said
    assert not run.is_done


def test_weights_changed_at_the_same_size_are_noticed_before_done_is_put_back(tmp_path):
    run = whole_run(tmp_path / "r")
    (run.path / "done.json").unlink()
    (run.model / "model.safetensors").write_bytes(b"WEIGHTS" * 9)
    assert not settle(run)[0]


def test_a_superseded_run_comes_back_finished_although_snakemake_removed_its_done_file(tmp_path):
    first, second = compose_run([]), compose_run(["training.rl.steps=7"])
    run = whole_run(tmp_path / "r", first)
    (run.path / "done.json").unlink()  # as before every rerun
    runs.open_run(tmp_path / "r", second, LINEAGE, replace=True)
    assert settle(runs.open_run(tmp_path / "r", first, LINEAGE, replace=True))[0]


@pytest.mark.parametrize("name", ["config.yaml", "env.json"])
def test_an_unreadable_run_is_kept_aside_and_begun_anew(tmp_path, name):
    run = whole_run(tmp_path / "r")
    (run.path / name).write_text("{")
    fresh = runs.open_run(run.path, compose_run([]), LINEAGE, replace=True)
    assert fresh.lineage == LINEAGE
    assert not fresh.settle(print)
    assert [kept.name.startswith("r-") for kept in (tmp_path / ".damaged").iterdir()] == [True]


def test_two_processes_never_work_on_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE_SECONDS", 0.1)
    with runs.alone(tmp_path / "r"):
        with pytest.raises(RunError, match=r"another process is at work on .*/r; wait"), runs.alone(tmp_path / "r"):
            pass
        with runs.alone(tmp_path / "s"):
            pass
    with runs.alone(tmp_path / "r"):
        pass
