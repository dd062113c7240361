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
