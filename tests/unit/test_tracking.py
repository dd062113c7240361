import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from restool import files, tracking
from restool.analysis.experiment import load
from restool.core.errors import ConfigurationError, TrackingError
from restool.tracking import access, importing, serving, store, views

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


@pytest.fixture(scope="module")
def tracked(_made_up, tmp_path_factory):
    """A finished experiment that was imported once; tests that change it take `again`."""
    results = tmp_path_factory.mktemp("tracked") / "results"
    shutil.copytree(_made_up.parent, results)
    files.write_text(results / "quick/report.html", "<!doctype html>")
    tracking.track(results / "quick")
    return results / "quick"


@pytest.fixture
def again(tracked, tmp_path):
    """A copy of the tracked experiment and its store."""
    shutil.copytree(tracked.parent, tmp_path / "results")
    return tmp_path / "results/quick"


def _client(directory):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{directory.parent / 'mlflow.db'}")


def _all_runs(directory):
    client = _client(directory)
    return list(client.search_runs([client.get_experiment_by_name("quick").experiment_id]))


def _runs(directory):
    return {run.data.tags["restool.key"]: run for run in _all_runs(directory)}


def _stored_points(directory) -> int:
    with sqlite3.connect(directory.parent / "mlflow.db") as database:
        return database.execute("select count(*) from metrics").fetchone()[0]


def test_one_parent_and_one_child_a_run(tracked) -> None:
    runs = _runs(tracked)
    parent = runs.pop("quick")
    assert set(runs) == {f"quick/{run.id}" for run in load(tracked).runs}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_child_holds_settings_tags_and_every_point_with_its_step(tracked) -> None:
    run = next(run for run in load(tracked).rl_runs if run.method == "rest_fixed" and run.seed == 1)
    stored = _runs(tracked)[f"quick/{run.id}"]
    assert stored.data.params["training.rl.steps"] == str(run.settings.training.rl.steps)
    assert stored.data.params == importing.flatten(run.settings.model_dump(mode="json"))
    wanted = {
        "method": "rest_fixed",
        "seed": "1",
        "model": "tiny",
        "schedule": "fraction",
        "data_fingerprint": "f" * 12,
    }
    assert wanted.items() <= stored.data.tags.items()
    assert stored.data.tags["commit"] == run.environment["commit"]
    assert stored.data.tags["run_directory"] == f"quick/runs/{run.id}"
    history = _client(tracked).get_metric_history(stored.info.run_id, "reward/total")
    assert [(m.step, m.value, m.timestamp) for m in sorted(history, key=lambda m: m.step)] == [
        (row["step"], row["reward/total"], int(1000 * row["timestamp"])) for row in run.metrics
    ]
    assert stored.data.metrics["bfcl-synthetic/overall"] == 0.4


def test_report_and_figures_are_artifacts_of_the_parent(tracked) -> None:
    parent = _runs(tracked)["quick"].info.run_id
    names = {item.path for item in _client(tracked).list_artifacts(parent)}
    assert {"report.html", "analysis"} <= names
    assert (tracked.parent / "mlartifacts/quick").is_dir()


def test_a_child_says_where_its_model_lies_and_which_it_is(again) -> None:
    run = load(again).run("tiny-grpo-fraction-s0")
    files.write_text(run.directory.model / "model.safetensors", "weights")
    run.directory.finish({"steps": 12})
    tracking.track(again)
    tags = _runs(again)[f"quick/{run.id}"].data.tags
    assert (again.parent / tags["model_directory"] / "model.safetensors").exists()
    assert tags["model_fingerprint"] == run.directory.done()["model"]


def test_importing_twice_changes_nothing(again) -> None:
    before = _stored_points(again)
    imported = tracking.track(again)
    assert (imported.added, imported.replaced, imported.points, imported.parts) == (0, 0, 0, 0)
    assert _stored_points(again) == before
    assert len(_runs(again)) == 14


def test_an_import_that_was_cut_off_logs_no_point_twice(again) -> None:
    before = _stored_points(again)
    run = _runs(again)["quick/tiny-grpo-fraction-s0"]
    _client(again).delete_tag(run.info.run_id, "restool.part.metrics")
    tracking.track(again)
    assert _stored_points(again) == before


def test_a_later_evaluation_is_added_to_the_run_that_is_there(again) -> None:
    run = next(run for run in load(again).runs if run.id == "tiny-grpo-fraction-s1")
    identity = _runs(again)[f"quick/{run.id}"].info.run_id
    path = again / "plan.json"
    plan = files.read_json(path)
    next(r for r in plan["runs"] if r["id"] == run.id)["evaluations"].append("api-bank")
    files.write_json(path, plan)
    summary = {"benchmark": "api-bank", "categories": {}, "aggregates": {"compat/overall": 0.25}}
    files.write_json(run.directory.evaluation("api-bank") / "summary.json", summary)
    imported = tracking.track(again)
    stored = _runs(again)[f"quick/{run.id}"]
    assert (imported.added, imported.replaced) == (0, 0)
    assert stored.info.run_id == identity
    assert stored.data.metrics["api-bank/compat/overall"] == 0.25


def test_a_run_made_anew_replaces_its_old_self_and_comes_back_with_it(again) -> None:
    run = next(run for run in load(again).runs if run.id == "tiny-grpo-fraction-s1")
    old_done = run.directory.done()
    old = _runs(again)[f"quick/{run.id}"]
    files.write_json(run.directory.path / "done.json", old_done | {"finished_at": old_done["finished_at"] + 60})
    assert tracking.track(again).replaced == 1
    new = _runs(again)[f"quick/{run.id}"]
    assert new.info.run_id != old.info.run_id
    assert new.data.tags["restool.replaces"] == old.info.run_id
    assert old.info.run_id in new.data.tags["mlflow.note.content"]
    aside = _client(again).get_run(old.info.run_id)
    assert aside.info.lifecycle_stage == "deleted"
    assert aside.data.tags["restool.superseded_by"] == new.info.run_id
    files.write_json(run.directory.path / "done.json", old_done)
    points = _stored_points(again)
    tracking.track(again)
    back = _runs(again)[f"quick/{run.id}"]
    assert back.info.run_id == old.info.run_id
    assert "restool.superseded_by" not in back.data.tags
    assert _client(again).get_run(new.info.run_id).data.tags["restool.superseded_by"] == old.info.run_id
    assert _stored_points(again) == points


def test_an_import_that_was_killed_while_it_replaced_a_run_leaves_one_of_each_key(again, monkeypatch) -> None:
    run = load(again).run("tiny-grpo-fraction-s1")
    done = run.directory.done()
    old = _runs(again)[f"quick/{run.id}"].info.run_id
    files.write_json(run.directory.path / "done.json", done | {"finished_at": done["finished_at"] + 60})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "_set_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.track(again)
    assert len(_all_runs(again)) == 15
    assert tracking.track(again).added == 0
    assert len(_all_runs(again)) == 14
    new = _runs(again)[f"quick/{run.id}"]
    assert new.data.tags["restool.replaces"] == old
    assert _client(again).get_run(old).data.tags["restool.superseded_by"] == new.info.run_id
    assert len(_client(again).get_metric_history(new.info.run_id, "reward/total")) == 12


def test_a_run_that_left_the_plan_leaves_the_store(again) -> None:
    path = again / "plan.json"
    plan = files.read_json(path)
    plan["runs"] = [run for run in plan["runs"] if not run["id"].endswith("masked_uniform-fraction-s2")]
    files.write_json(path, plan)
    assert tracking.track(again).removed == 1
    assert "quick/tiny-masked_uniform-fraction-s2" not in _runs(again)


def test_an_unfinished_run_is_named_and_left_out(again) -> None:
    (again / "runs/tiny-grpo-fraction-s2/done.json").unlink()
    shutil.rmtree(again.parent / "mlartifacts")
    (again.parent / "mlflow.db").unlink()
    lines: list[str] = []
    tracking.track(again, report=lines.append)
    assert any("not finished: tiny-grpo-fraction-s2" in line for line in lines)
    assert "quick/tiny-grpo-fraction-s2" not in _runs(again)


def test_a_locked_database_is_one_clear_line(again, monkeypatch) -> None:
    monkeypatch.setattr(access, "PATIENCE", 0.2)
    monkeypatch.setattr(access.time, "sleep", lambda seconds: None)
    database = sqlite3.connect(again.parent / "mlflow.db")
    database.execute("BEGIN EXCLUSIVE")
    lines: list[str] = []
    with pytest.raises(TrackingError, match=r"database is locked.*MLFLOW_TRACKING_URI") as caught:
        tracking.track(again, report=lines.append)
    assert "\n" not in str(caught.value)
    assert len(lines) == access.ATTEMPTS - 1
    database.rollback()
    assert tracking.track(again).points == 0


def test_a_lock_that_is_let_go_in_time_only_delays(again) -> None:
    database = sqlite3.connect(again.parent / "mlflow.db", check_same_thread=False)
    database.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.0, database.rollback).start()
    assert tracking.track(again).points == 0


def test_a_file_that_is_no_database_is_left_alone(quick) -> None:
    path = quick.parent / "mlflow.db"
    path.write_bytes(b"not a database, but something dear to somebody " * 100)
    with pytest.raises(TrackingError, match="no MLflow database"):
        tracking.track(quick)
    assert path.read_bytes().startswith(b"not a database")


def test_a_second_import_at_the_same_time_waits_then_says_so(quick, monkeypatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(access, "PATIENCE", 0.05)
    monkeypatch.setattr(access, "QUEUE", 0.05)
    lines: list[str] = []
    with FileLock(quick.parent / ".mlflow.db.lock"), pytest.raises(TrackingError, match="another import"):
        tracking.track(quick, report=lines.append)
    assert any("waiting" in line for line in lines)
    with FileLock(quick.parent / ".mlflow.db.lock", thread_local=False) as held:
        monkeypatch.setattr(access, "QUEUE", 60)
        threading.Timer(0.5, lambda: held.release(force=True)).start()
        with access.turn(access.address(quick.parent), quick, lines.append):
            pass


def test_the_results_of_another_folder_are_not_taken_for_old_selves(again, tmp_path, monkeypatch) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    shutil.copy(again.parent / "mlflow.db", tmp_path / "shared.db")
    shutil.copytree(again, tmp_path / "elsewhere/quick")
    assert tracking.track(again, uri=shared).added == 0
    with pytest.raises(TrackingError, match=rf"holds the results of \w+:{again.parent}.*MLFLOW_EXPERIMENT_NAME"):
        tracking.track(tmp_path / "elsewhere/quick", uri=shared)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "quick elsewhere")
    assert tracking.track(tmp_path / "elsewhere/quick", uri=shared).added == 14


def test_the_saved_view_shows_the_compared_runs_by_method(tracked) -> None:
    client = _client(tracked)
    experiment = client.get_experiment_by_name("quick")
    view = json.loads(experiment.tags["mlflow.sharedViewState.quick"])
    shown = client.search_runs([experiment.experiment_id], view["searchFilter"])
    assert {run.info.run_name for run in shown} == {run.id for run in load(tracked).rl_runs}
    assert [key["groupByData"] for key in view["groupBy"]["groupByKeys"]] == ["method"]
    drawn = {chart["metricKey"] for chart in view["compareRunCharts"]}
    assert drawn >= {"reward/total", "entropy/arguments", "bfcl-synthetic/overall"}
    assert drawn <= {name for run in shown for name in run.data.metrics}
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} <= sections
    assert "viewStateShareKey=quick" in experiment.tags["mlflow.note.content"]


def test_of_many_methods_the_view_shows_the_reference_and_those_with_rests_weights(experiment, monkeypatch) -> None:
    assert views.compared(experiment) == ["grpo", "rest_released", "rest_fixed", "masked_uniform"]
    monkeypatch.setattr(views, "MOST_COMPARED", 3)
    assert views.compared(experiment) == ["grpo", "rest_released", "rest_fixed"]


def test_a_view_of_chosen_methods_holds_their_runs_and_no_others(again) -> None:
    address = access.address(again.parent)
    path = serving._saved(load(again), address, ["grpo", "rest_fixed"])
    assert "viewStateShareKey=quick-grpo-rest_fixed" in path
    client = _client(again)
    experiment = client.get_experiment_by_name("quick")
    view = json.loads(experiment.tags["mlflow.sharedViewState.quick-grpo-rest_fixed"])
    shown = client.search_runs([experiment.experiment_id], view["searchFilter"])
    assert sorted(run.data.tags["method"] for run in shown) == 3 * ["grpo"] + 3 * ["rest_fixed"]
    with pytest.raises(ConfigurationError, match="did you mean 'grpo'"):
        serving._saved(load(again), address, ["gprpo"])


def test_opening_what_was_never_imported_says_how_to_import_it(quick) -> None:
    with pytest.raises(TrackingError, match=r"has no experiment 'quick'; import it first: restool track --plan"):
        tracking.show(quick, browser=False)
    assert not (quick.parent / "mlflow.db").exists()


def test_an_unreachable_server_is_one_clear_line(quick, monkeypatch) -> None:
    monkeypatch.setattr(access.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        tracking.track(quick)


def test_a_server_that_answers_nonsense_is_one_clear_line(quick, monkeypatch) -> None:
    class Nonsense(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Nonsense)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(access.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(access, "ATTEMPTS", 1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError):
        tracking.track(quick, uri=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


def test_tracking_imports_no_torch(tracked) -> None:
    code = (
        "import sys; from restool import tracking; assert 'mlflow' not in sys.modules;"
        f"tracking.track({str(tracked)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)


def test_a_new_database_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    import mlflow

    def interrupted(self, **options):
        raise KeyboardInterrupt

    store = tmp_path / "mlflow.db"
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "search_experiments", interrupted)
        with pytest.raises(KeyboardInterrupt):
            access.client(f"sqlite:///{store}")
    assert list(tmp_path.iterdir()) == []
    assert access.client(f"sqlite:///{store}").search_experiments()
