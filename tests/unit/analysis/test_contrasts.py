"""Two evaluated models against each other: pairing, tests, refusals, and what a person sees."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from restool import files
from restool.analysis import contrasts, contrasts_text, evaluated
from restool.analysis.experiment import load
from restool.core.errors import RunError

WEIGHTS = {"overall": {"first": 0.5, "second": 0.5}}
CATEGORIES = {"first": 40, "second": 10}


def write(folder: Path, right: dict[str, list[bool]], **summary: object) -> Path:
    """An evaluation of one benchmark: category -> whether each item is right."""
    rows = [
        {"id": f"{name}_{i}", "category": name, "correct": value, "overlap": None}
        for name, values in right.items()
        for i, value in enumerate(values)
    ]
    made = {"benchmark": "b", "version": "1", "data_sha256": "d" * 64, "weights": WEIGHTS, "decoding": {"t": 0}}
    made |= {"contamination": {"checked": True}, **summary}
    files.write_json_lines(folder / "items.jsonl", made.pop("items", rows))
    files.write_json(folder / "summary.json", made)
    return folder


def verdicts(seed: int, chance: float = 0.5) -> dict[str, list[bool]]:
    drawn = random.Random(seed)
    return {name: [drawn.random() < chance for _ in range(n)] for name, n in CATEGORIES.items()}


def compared(a: Path, b: Path) -> dict[str, dict]:
    return {row["category"]: row for row in contrasts.compare(evaluated.read(a), evaluated.read(b))["rows"]}


def test_categories_and_the_weighted_total_are_what_was_counted(tmp_path):
    a, b = verdicts(1), verdicts(2, 0.8)
    rows = compared(write(tmp_path / "a", a), write(tmp_path / "b", b))
    for name, n in CATEGORIES.items():
        row = rows[name]
        assert (row["n"], row["a"], row["b"]) == (n, sum(a[name]) / n, sum(b[name]) / n)
        only_a = sum(x and not y for x, y in zip(a[name], b[name], strict=True))
        only_b = sum(y and not x for x, y in zip(a[name], b[name], strict=True))
        assert (row["only_a"], row["only_b"]) == (only_a, only_b)
        assert row["p"] == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
        assert row["p_holm"] >= row["p"]
    assert rows["overall"]["difference"] == pytest.approx(
        (rows["first"]["difference"] + rows["second"]["difference"]) / 2
    )
    assert rows["overall"]["is_total"]
    assert math.isnan(rows["overall"]["p_holm"])


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.integers(0, 1000), st.randoms())
def test_neither_order_of_rows_nor_of_models_matters(tmp_path, first, second, shuffler):
    a, b = write(tmp_path / "a", verdicts(first)), write(tmp_path / "b", verdicts(second))
    before = compared(a, b)
    rows = files.read_json_lines(b / "items.jsonl")
    shuffler.shuffle(rows)
    files.write_json_lines(b / "items.jsonl", rows)
    assert compared(a, b) == before
    for name, row in compared(b, a).items():
        assert row["difference"] == pytest.approx(-before[name]["difference"])
        assert row["p"] == pytest.approx(before[name]["p"], abs=0.01)  # totals: drawn at random
        assert before[name]["low"] <= before[name]["difference"] <= before[name]["high"]


def test_a_model_against_itself_shows_nothing(tmp_path):
    a = write(tmp_path / "a", verdicts(1))
    for row in compared(a, a).values():
        assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)
        assert row["verdict"] == "not distinguishable"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_sha256": "e" * 64}, "b: scored on other data"),
        ({"version": "2"}, "b: scored on another version of the benchmark"),
        ({"items": [{"id": "stranger", "category": "first", "correct": True}]}, "b: scored on different items"),
        ({"metrics": {"f1": {"field": "f1"}}, "items": [{"id": "first_0", "category": "first"}]}, "evaluate it again"),
        ({"benchmark": "another"}, "share no evaluated benchmark"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, changed, message):
    a, b = write(tmp_path / "a", verdicts(1)), write(tmp_path / "b", verdicts(2), **changed)
    with pytest.raises(RunError, match=message) as raised:
        compared(a, b)
    assert "\n" not in str(raised.value)


def test_what_needs_care_is_a_warning(tmp_path):
    short = {name: values[:5] for name, values in verdicts(2).items()}
    a = write(tmp_path / "a", verdicts(1), prompt_template_sha256="p")
    b = write(tmp_path / "b", short, decoding={"t": 1}, prompt_template_sha256="q", missing=3)
    result = contrasts.compare(evaluated.read(a), evaluated.read(b))
    told = "\n".join(result["warnings"])
    assert "different items: A 50, B 10; compared on the 10 that both have" in told
    assert "different decoding (t: 0 and 1)" in told
    assert "different prompt templates" in told
    assert "3 answers of B are missing" in told
    assert {row["n"] for row in result["rows"]} == {5, 10}


def test_one_benchmark_that_cannot_be_compared_does_not_hide_another(tmp_path):
    for name, data in (("a", "d"), ("b", "e")):
        write(tmp_path / name / "one", verdicts(1))
        write(tmp_path / name / "two", verdicts(1), benchmark="other", data_sha256=data * 64)
    result = contrasts.compare(evaluated.read(tmp_path / "a"), evaluated.read(tmp_path / "b"))
    assert {row["benchmark"] for row in result["rows"]} == {"b"}
    assert "other data" in result["refused"]["other"]


def test_seen_items_are_counted_and_the_rest_is_scored_apart(tmp_path):
    a, b = write(tmp_path / "a", verdicts(1)), write(tmp_path / "b", verdicts(2))
    rows = files.read_json_lines(b / "items.jsonl")
    for row, kind in zip(rows, ("question", "question_and_tools", "tools"), strict=False):
        row["overlap"] = kind
    files.write_json_lines(b / "items.jsonl", rows)
    row = compared(a, b)["first"]
    assert row["contaminated"] == 2  # the same tools alone contaminate nothing
    clean = verdicts(1)["first"][2:], verdicts(2)["first"][2:]
    assert row["rest"]["n"] == 38
    assert row["rest"]["difference"] == pytest.approx((sum(clean[1]) - sum(clean[0])) / 38)
    told = printed(contrasts.compare(evaluated.read(a), evaluated.read(b)))
    assert "contaminated: 2 of 40 items of first; on the other 38" in told


def test_what_was_not_checked_is_not_called_clean(tmp_path):
    a = write(tmp_path / "a", verdicts(1), contamination={"checked": False})
    assert compared(a, write(tmp_path / "b", verdicts(2)))["first"]["contaminated"] is None


def test_the_table_fits_into_100_columns_and_escapes_names(tmp_path):
    long = {f"live_parallel_multiple_{i}": [True, False] * 20 for i in range(3)} | {"[red]x[/red]": [True] * 9}
    a, b = write(tmp_path / "a", long), write(tmp_path / "b", {k: v[::-1] for k, v in long.items()})
    told = printed(contrasts.compare(evaluated.read(a), evaluated.read(b)))
    assert max(map(len, told.splitlines())) <= 100
    assert "…" not in told
    assert "[red]x[/red]" in told


def printed(result: dict) -> str:
    console = Console(width=100, highlight=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    contrasts_text.print_comparison(console, result)
    return console.export_text()


def test_runs_are_compared_on_the_items_that_both_answered(quick):
    runs = {run.method: run for run in load(quick).runs if run.seed == 0}
    before, after = runs["sft"].directory.path, runs["rest_fixed"].directory.path
    rows = {(r["category"], r["metric"]): r for r in contrasts.compare(*map(evaluated.read, (before, after)))["rows"]}
    row = rows["held_out/greedy", "tool_exact"]
    first, second = (files.read_json_lines(p / "eval/held-out/items.jsonl") for p in (before, after))
    counted = [
        (a["tool_exact"], b["tool_exact"])
        for a, b in zip(first, second, strict=True)
        if a["tool"] and (a["split"], a["mode"]) == ("held_out", "greedy")
    ]
    assert row["n"] == len(counted)
    assert row["difference"] == pytest.approx(sum(b - a for a, b in counted) / len(counted))
    assert rows["held_out/greedy", "reward"]["binary"] is False


def test_groups_are_paired_by_seed(quick):
    groups = [evaluated.read_group(str(quick / "runs" / f"*{method}*")) for method in ("grpo", "rest_fixed")]
    result = contrasts.compare_groups(*groups)
    assert result["pairing"] == "seeds"
    assert result["seeds"] == {"a": [0, 1, 2], "b": [0, 1, 2]}
    row = next(r for r in result["rows"] if (r["category"], r["metric"]) == ("held_out/sampled", "reward"))
    scores = [[_mean_reward(one) for one in group] for group in groups]
    tested = stats.ttest_rel(scores[1], scores[0])
    assert row["p"] == pytest.approx(tested.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(tested.confidence_interval(0.95)))
    assert row["n_seeds"] == 3
    assert max(map(len, printed(result).splitlines())) <= 100


def test_seeds_that_only_one_group_has_are_left_out_and_said_so(quick):
    a = evaluated.read_group(str(quick / "runs" / "*grpo*"))
    b = evaluated.read_group(str(quick / "runs" / "*rest_fixed*"))[1:]
    result = contrasts.compare_groups(a, b)
    assert result["seeds"]["a"] == [1, 2]
    assert "left out: 0" in result["warnings"][0]
    unpaired = contrasts.compare_groups(a[:1], b)
    assert unpaired["pairing"] == "seeds, unpaired"


def test_groups_that_mix_methods_or_hold_no_runs_are_refused(quick, tmp_path):
    both = evaluated.read_group(str(quick / "runs" / "*rest_*"))
    with pytest.raises(RunError, match="two runs of seed 0"):
        contrasts.compare_groups(both, both)
    with pytest.raises(RunError, match="no folder matches"):
        evaluated.read_group(str(tmp_path / "*none*"))
    loose = [evaluated.read(write(tmp_path / "a", verdicts(1)))]
    with pytest.raises(RunError, match="must be a run"):
        contrasts.compare_groups(loose, loose)


def test_folders_that_hold_nothing_say_so(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        evaluated.read(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds no evaluation"):
        evaluated.read(tmp_path)


def _mean_reward(one: evaluated.Evaluated) -> float:
    values = [i["total"] for k, i in one.evaluations["held-out"].items.items() if k[0] == "held_out/sampled"]
    return sum(values) / len(values)
