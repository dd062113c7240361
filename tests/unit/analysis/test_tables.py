import math
import shutil

import pytest

from restool import files
from restool.analysis import claims, report_tables, tables
from restool.analysis.experiment import Experiment, load
from restool.evaluation import held_out


def test_scores_are_those_of_the_evaluator(experiment: Experiment) -> None:
    run = experiment.rl_runs[0]
    mine = tables.scores(experiment)
    mine = mine[mine["run"] == run.id].set_index(["split", "mode", "metric"])["value"]
    theirs = held_out.totals(run.items("held-out"))["aggregates"]
    for metric in ("tool_exact", "flawless_tool_exact", "reward", "correctness", "right_name", "exact_no_tool"):
        assert mine["held_out", "greedy", metric] == pytest.approx(theirs[f"held_out/greedy/{metric}"])


def test_gains_are_after_minus_the_starting_run(experiment: Experiment) -> None:
    score = tables.scores(experiment)
    value = {(r.run, r.mode, r.metric): r.value for r in score[score["split"] == "held_out"].itertuples()}
    gain = tables.gains(experiment, score)
    row = gain[(gain["method"] == "grpo") & (gain["split"] == "held_out") & (gain["metric"] == "reward")]
    row = row[row["mode"] == "sampled"].iloc[0]
    after = [value[f"tiny-grpo-fraction-s{seed}", "sampled", "reward"] for seed in (0, 1, 2)]
    before = value["tiny-sft-none-s0", "sampled", "reward"]
    assert row["mean"] == pytest.approx(sum(after) / 3 - before)
    assert row["n_seeds"] == 3
    assert row["low"] < row["mean"] < row["high"]


def test_differences_are_paired_by_seed_and_corrected(experiment: Experiment) -> None:
    frame = tables.differences(experiment, tables.scores(experiment))
    pairs = set(zip(frame["a"], frame["b"], strict=True))
    assert ("rest_fixed", "grpo") in pairs
    assert ("rest_fixed", "rest_released") in pairs
    assert not any(a == b for a, b in pairs)
    assert (frame["p_holm"] >= frame["p"]).all()
    assert frame["detectable"].gt(0).any()


def test_training_reward_is_the_mean_over_steps(experiment: Experiment) -> None:
    run = experiment.rl_runs[0]
    frame = tables.scores(experiment)
    row = frame[(frame["run"] == run.id) & (frame["metric"] == "reward_mean")].iloc[0]
    assert row["value"] == pytest.approx(sum(m["reward/total"] for m in run.metrics) / len(run.metrics))


def test_benchmarks_say_what_was_not_run_and_why(experiment: Experiment) -> None:
    frame = tables.benchmarks(experiment)
    assert set(frame[frame["benchmark"] == "bfcl"]["not_run"]) == {"BFCL's data is not reachable"}
    row = frame[(frame["benchmark"] == "bfcl-synthetic") & (frame["category"] == "simple")].iloc[0]
    assert row["low"] < row["accuracy"] < row["high"]


def test_a_missing_evaluation_is_told_not_left_out(quick) -> None:
    shutil.rmtree(quick / "runs/tiny-grpo-fraction-s0/eval/bfcl-synthetic")
    frame = tables.benchmarks(load(quick))
    row = frame[(frame["run"] == "tiny-grpo-fraction-s0") & (frame["benchmark"] == "bfcl-synthetic")].iloc[0]
    assert row["not_run"] == "no result in the run directory"


def test_an_unfinished_run_gives_no_scores(quick) -> None:
    (quick / "runs/tiny-grpo-fraction-s1/done.json").unlink()
    frame = tables.scores(load(quick))
    assert "tiny-grpo-fraction-s1" not in set(frame["run"])
    assert tables.runs(load(quick)).set_index("run").loc["tiny-grpo-fraction-s1", "status"] == "unfinished"


def test_a_run_of_other_settings_gives_no_scores(quick, edit) -> None:
    def other_rate(plan: dict) -> None:
        for record in plan["runs"]:
            if record["id"] == "tiny-grpo-fraction-s1":
                record["config"]["training"]["rl"]["learning_rate"] = 9e-4

    edit(quick / "plan.json", other_rate)
    assert "tiny-grpo-fraction-s1" not in set(tables.scores(load(quick))["run"])


def test_a_torn_summary_hides_its_items(quick) -> None:
    (quick / "runs/tiny-grpo-fraction-s0/eval/held-out/summary.json").unlink()
    frame = tables.scores(load(quick))
    assert set(frame[frame["run"] == "tiny-grpo-fraction-s0"]["split"]) == {"train"}


def test_a_repeated_step_counts_once(quick) -> None:
    path = quick / "runs/tiny-grpo-fraction-s0/metrics.jsonl"
    rows = files.read_json_lines(path)
    files.write_json_lines(path, [*rows, rows[-1] | {"reward/total": 7.0}])
    run = next(run for run in load(quick).runs if run.id == "tiny-grpo-fraction-s0")
    assert [row["step"] for row in run.metrics] == list(range(1, len(rows) + 1))
    assert run.metrics[-1]["reward/total"] == 7.0


# ----------------------------------------------------------------------------------------------------- claims


def test_the_tiny_model_confirms_and_refutes_nothing_of_the_paper(experiment: Experiment) -> None:
    rows = claims.table(experiment)
    about_models = [row for row in rows if not row["claim"].startswith(("Lemma 2", "Mean entropy"))]
    assert {row["status"] for row in about_models} == {claims.NOT_RUN}
    assert all(row["ours"] is None for row in about_models)


def test_lemma_2_is_judged_by_its_numbers(quick, edit) -> None:
    def status() -> str:
        return next(row["status"] for row in claims.table(load(quick)) if row["claim"].startswith("Lemma 2"))

    assert status() == claims.REPRODUCED
    edit(quick / "analysis/variance.json", lambda record: record["lemma2"]["all"].update(violations=1))
    assert status() == claims.NOT_REPRODUCED
    (quick / "analysis/variance.json").unlink()
    assert status() == claims.NOT_RUN


@pytest.mark.parametrize(
    ("scores", "status"),
    [([0.70, 0.71, 0.708], claims.REPRODUCED), ([0.50, 0.51, 0.505], claims.NOT_REPRODUCED), ([0.70], claims.NOT_RUN)],
)
def test_a_value_is_reproduced_if_it_lies_in_our_interval(quick, edit, scores: list[float], status: str) -> None:
    _as_the_papers_8b(quick, edit, {"rest_released": scores})
    row = _claim(quick, "API-Bank overall, Qwen3-8B: ResT", 70.69)
    assert row["status"] == status
    if len(scores) > 1:
        assert row["n_seeds"] == len(scores)
        assert row["gap"] == pytest.approx(row["ours"] - 70.69)


def test_a_difference_is_reproduced_if_our_interval_lies_on_its_side(quick, edit) -> None:
    arms = {"rest_released": [0.70, 0.71, 0.72], "masked_uniform": [0.65, 0.66, 0.672]}
    _as_the_papers_8b(quick, edit, arms, algorithm={"masked_uniform": "dr_grpo"})
    assert _claim(quick, "API-Bank overall, Qwen3-8B: ResT minus Dr.GRPO", 2.54)["status"] == claims.REPRODUCED


def test_cells_that_no_source_gives_stay_unknown(quick, edit) -> None:
    _as_the_papers_8b(quick, edit, {"grpo": [0.6, 0.61, 0.62]})
    row = _claim(quick, "API-Bank overall, Qwen3-8B: GRPO", None)
    assert row["status"] == claims.UNKNOWN
    assert row["paper"] is None
    assert row["ours"] == pytest.approx(61)


def test_a_limited_run_of_a_benchmark_is_no_measurement(quick, edit) -> None:
    _as_the_papers_8b(quick, edit, {"rest_released": [0.70, 0.71, 0.708]}, limit=20)
    assert _claim(quick, "API-Bank overall, Qwen3-8B: ResT", 70.69)["status"] == claims.NOT_RUN


def test_a_total_that_a_limit_leaves_open_says_so(quick, edit) -> None:
    _as_the_papers_8b(quick, edit, {"rest_fixed": [None, None, None]}, limit=20)
    frame = tables.benchmarks(load(quick))
    reasons = set(frame[frame["category"] == "= compat/overall"]["not_run"])
    assert reasons == {"a category that it needs was not run, or only in part (20 items a category)"}


def _claim(quick, statement: str, paper: float | None) -> dict:
    return next(r for r in claims.table(load(quick)) if (r["claim"], r["paper"]) == (statement, paper))


def _as_the_papers_8b(quick, edit, scores: dict[str, list[float]], algorithm=None, limit=None) -> None:
    """Pretend that the runs are of Qwen3-8B with these API-Bank results, one a seed."""

    def change(plan: dict) -> None:
        for record in plan["runs"]:
            config = record["config"]
            config["model"] |= {"tiny": None, "path": "Qwen/Qwen3-8B"}
            config["reward"] |= {"preset": "rest"}
            method = config["method"]["name"]
            config["method"]["algorithm"] = (algorithm or {}).get(method, method)

    edit(quick / "plan.json", change)
    for run in load(quick).runs:
        files.write_text(run.directory.path / "config.yaml", run.settings.model_dump_json())
        values = scores.get(run.method, [])
        if run.seed < len(values) and run.kind == "rl":
            value = values[run.seed]
            cell = {"n": 597, "correct": round(597 * (value or 0)), "accuracy": value}
            summary = {"categories": {"compat/level-1": cell}, "aggregates": {"compat/overall": value}, "limit": limit}
            files.write_json(
                run.directory.evaluation("api-bank") / "summary.json", {"benchmark": "api-bank", **summary}
            )
        else:
            shutil.rmtree(run.directory.evaluation("api-bank"), ignore_errors=True)


def test_nan_never_reaches_a_claim(experiment: Experiment) -> None:
    for row in claims.table(experiment):
        assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())


def test_training_means_are_over_the_steps_that_count(quick) -> None:
    run = next(run for run in load(quick).rl_runs if run.method == "grpo" and run.seed == 0)
    rows = files.read_json_lines(run.directory.metrics_path)
    for place, row in enumerate(rows):
        row["value/explained_variance"] = 0.0 if place < len(rows) - 2 else 0.5
        row["grad/norm"] = float(place)
    files.write_json_lines(run.directory.metrics_path, rows)
    score = tables.scores(load(quick))
    here = score[(score["run"] == run.id) & (score["split"] == "train")].set_index("metric")["value"]
    last = -(-len(rows) // 4)  # the last quarter, rounded up
    assert here["explained_variance"] == pytest.approx(1.0 / last)
    assert here["gradient_norm"] == pytest.approx((len(rows) - 1) / 2)
    titles = {t["title"]: t for t in report_tables.results(load(quick), tables.build(load(quick)))}
    head = titles["During training"]["head"]
    assert "critic's explained variance, last quarter" in head
    assert "spans a step at which the released code raises" not in head  # no run has logged it
