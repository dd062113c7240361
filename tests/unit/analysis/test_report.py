import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from restool import files
from restool.analysis import figures, findings, report, samples, tables
from restool.analysis.experiment import analyze, load
from restool.core.errors import RunError


@pytest.fixture(scope="module")
def analyzed(_made_up: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment with its analysis and report."""
    results = tmp_path_factory.mktemp("analyzed") / "results"
    shutil.copytree(_made_up.parent, results)
    analyze(results / "quick")
    report.write(results / "quick")
    return results / "quick"


def test_every_figure_comes_as_png_svg_and_data(analyzed: Path) -> None:
    index = files.read_json(analyzed / "analysis/index.json")
    assert set(index["figures"]) == set(figures.NAMES)
    for entry in index["figures"].values():
        assert (analyzed / entry["png"]).read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(analyzed / entry["svg"])
        assert len(pd.read_csv(analyzed / entry["csv"])) > 0
        assert entry["title"]
        assert entry["caption"].endswith(".")


def test_every_figure_has_a_caption_for_the_workflows_report() -> None:
    folder = Path(__file__).parents[3] / "workflow/report"
    assert {path.stem for path in folder.glob("*.rst")} >= set(figures.NAMES)


@pytest.mark.slow
def test_drawing_twice_gives_the_same_bytes(analyzed: Path) -> None:
    before = {path: path.read_bytes() for path in (analyzed / "analysis/figures").iterdir()}
    analyze(analyzed)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_data_of_a_figure_is_what_the_runs_say(analyzed: Path) -> None:
    data = pd.read_csv(analyzed / "analysis/figures/reward_training.csv")
    row = data[(data["method"] == "grpo") & (data["metric"] == "reward/total") & (data["step"] == 3)].iloc[0]
    runs = [run for run in load(analyzed).rl_runs if run.method == "grpo"]
    values = [run.metrics[2]["reward/total"] for run in runs]
    assert row["unsmoothed_mean"] == pytest.approx(sum(values) / 3)
    assert row["low"] <= row["mean"] <= row["high"]


def test_every_figure_names_the_runs_and_commits_behind_it(analyzed: Path) -> None:
    index = files.read_json(analyzed / "analysis/index.json")
    experiment = load(analyzed)
    trained = {run.id for run in experiment.rl_runs}
    start = {run.parent for run in experiment.rl_runs}
    behind = {name: set(entry["runs"]) for name, entry in index["figures"].items()}
    assert behind["reward_training"] == behind["entropy_training"] == behind["paired_differences"] == trained
    assert behind["before_after"] == trained | start
    assert behind["gradient_variance"] == start
    assert behind["entropy_start"] < trained  # runs with one start and seed sample the same first batch
    for entry in index["figures"].values():
        commits = [experiment.run(run).environment["commit"] for run in entry["runs"]]
        assert {commit.rstrip("+") for commit in entry["commits"]} == set(commits)
        assert sum(entry["commits"].values()) == len(commits)


def test_a_run_that_gives_nothing_to_a_figure_is_not_behind_it(quick: Path) -> None:
    (quick / "runs/tiny-grpo-fraction-s2/done.json").unlink()
    (subject,) = figures.subjects(load(quick))
    runs = figures.reward_training(subject).runs
    assert "tiny-grpo-fraction-s2" not in runs
    assert len(runs) == 11


def test_the_report_links_each_figure_to_its_data_runs_and_commit(analyzed: Path) -> None:
    index = files.read_json(analyzed / "analysis/index.json")
    text = (analyzed / "report.html").read_text()
    for name, entry in index["figures"].items():
        figure = text.split(f'<figure id="figure-{name}">')[1].split("</figure>")[0]
        linked = set(re.findall(r'href="([^"]+)"', figure))
        assert linked == {entry["csv"], entry["png"], entry["svg"], *(f"runs/{run}/" for run in entry["runs"])}
        assert all(commit[:12] in figure for commit in entry["commits"])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        own = tag == "script" and not values  # the page's own, written in it
        if tag in ("img", "script", "link", "iframe", "source") and not own:
            self.outside += [tag] if not str(values.get("src", "")).startswith("data:") else []
        if tag == "a" and not str(values["href"]).startswith("#"):
            self.links.append(str(values["href"]))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_stands_alone_and_its_links_lead_somewhere(analyzed: Path) -> None:
    page = _Page()
    text = (analyzed / "report.html").read_text()
    page.feed(text)
    assert page.outside == []
    assert page.open == []
    assert "url(" not in text.split("</style>")[0]
    assert page.links
    assert all((analyzed / link).exists() for link in page.links)


def test_model_output_is_shown_as_text(analyzed: Path) -> None:
    page = _Page()
    text = (analyzed / "report.html").read_text()
    page.feed(text)
    assert page.scripts == 1  # the page's own; none of a model
    assert "&lt;script&gt;alert(1)" in text
    assert "alert(1)" not in text.replace("&lt;script&gt;alert(1)", "")


def test_failures_are_counted_and_wrong_answers_can_be_read(analyzed: Path) -> None:
    text = (analyzed / "report.html").read_text()
    section = text[text.index('id="failures"') : text.index('id="claims"')]
    items = [run.items("held-out") for run in load(analyzed).runs if run.method == "grpo"]
    cell = [item for rows in items for item in rows if item["category"] == "held_out/greedy"]
    share = 100 * sum(item["failure_kind"] == "tool name" for item in cell) / len(cell)
    assert "held-out: kinds of failure by method and category" in section
    assert f"{share:.1f}</span>" in section
    assert "Wrong answers to read" in section
    assert "&lt;b id=pwned&gt;" in section
    assert "alert(2)&gt;" in section
    assert "<b id" not in section
    assert "\x1b" not in section
    assert "\u202e" not in section


def test_seen_items_are_flagged_at_the_head_and_in_the_tables(analyzed: Path) -> None:
    text = (analyzed / "report.html").read_text()
    head = text[text.index("<header>") : text.index("</header>")]
    assert "held-out: contaminated: 1 of 120 items (question and tools 1, question 0)" in head
    assert "contaminated: 1 of 60 items" in text[text.index('id="seen"') :]


def test_every_answer_can_be_seen_under_every_weighting(analyzed: Path) -> None:
    text = (analyzed / "report.html").read_text()
    section = text[text.index('id="answers"') : text.index('id="methods"')]
    chosen = samples.choose(load(analyzed))
    assert set(samples.SCHEMES) <= {w.label for w in chosen.weightings}
    for number in range(len(chosen.answers)):
        panes = section.partition(f'<template data-answer="{number}">')[2].partition("</template>")[0]
        titles = re.findall(r'<div class="weighed"><div class="small">(.*?)</div>', panes)
        assert titles == [w.label for w in chosen.weightings]
    # What one sees first is the two that the choice names.
    first = section.partition('data-answer="0"')[2].partition("<template")[0]
    assert re.findall(r'<div class="weighed"><div class="small">(.*?)</div>', first) == [samples.FIRST, samples.SECOND]


def test_the_report_opens_with_question_label_and_verdicts(analyzed: Path) -> None:
    text = (analyzed / "report.html").read_text()
    head = text[text.index("<header>") : text.index("</header>")]
    assert "do better than grpo" in head
    assert "never evidence for or against the paper" in " ".join(head.split())
    assert "rest_released against grpo" in head
    assert "not distinguishable with 3 seeds" in head


def test_findings_follow_the_intervals(experiment) -> None:
    frames = tables.build(experiment)
    told = {
        f.verdict.split(" against ")[0]: f.verdict
        for f in findings.state(experiment, frames)
        if " against grpo" in f.verdict
    }
    for row in frames["differences"].itertuples():
        if row.b == "grpo" and not row.metric.startswith("right_"):
            clear = row.low > 0 or row.high < 0
            named = findings.name(row.metric, row.mode) in told[row.a]
            assert named == clear


def test_of_many_methods_each_measure_is_told_once(experiment, monkeypatch) -> None:
    monkeypatch.setattr(findings, "MOST_NAMED", 1)
    frames = tables.build(experiment)
    told = [f.verdict for f in findings.state(experiment, frames)]
    plain = frames["differences"].query("question == '' and not metric.str.startswith('right_')")
    for (mode, metric), rows in plain.groupby(["mode", "metric"], sort=False):
        (line,) = (x for x in told if x.startswith(f"{findings.name(metric, mode).capitalize()} against grpo"))
        silent = sum(findings.verdict(row) == "not distinguishable" for row in rows.itertuples())
        assert (f"not distinguishable for {silent} of {len(rows)} methods" in line) == bool(silent)
        assert all((row.a in line) == (findings.verdict(row) != "not distinguishable") for row in rows.itertuples())
    assert not any(x.startswith("masked_uniform against grpo") for x in told)
    assert any(x.startswith("rest_fixed against masked_uniform") for x in told)  # a question of its own
    assert "Does any of" in report._question(experiment)


def test_one_seed_and_nothing_else_still_makes_a_report(tmp_path: Path, write_experiment) -> None:
    directory = write_experiment(tmp_path / "results", "experiment.matrix.seeds=[0]", steps=3, items=20)
    for path in directory.glob("runs/*/eval/*"):
        if path.name != "held-out":
            shutil.rmtree(path)
    shutil.rmtree(directory / "runs/tiny-rest_fixed-fraction-s0")
    for path in directory.glob("runs/*/rollouts.jsonl"):
        path.unlink()
    analyze(directory)
    text = " ".join(report.write(directory).read_text().split())
    assert "one seed" in text
    assert "gradient variance was not measured" in text
    assert "not run: no result in the run directory" in text
    assert "No sampled answers" in text
    assert "1 of 5 runs are not finished" in text


def test_a_plan_without_any_run_still_makes_a_report(tmp_path: Path) -> None:
    from restool.experiments import load_plan

    directory = load_plan("quick", (), tmp_path / "results").directory
    analyze(directory)
    text = report.write(directory).read_text()
    assert "No RL run is finished" in text


def test_several_schedules_get_their_own_figures_and_rows(tmp_path: Path, write_experiment) -> None:
    matrix = ("experiment.matrix.methods=[grpo,rest_fixed]", "experiment.matrix.schedules=[fraction,cosine]")
    directory = write_experiment(tmp_path / "results", *matrix, steps=3, items=20)
    analyze(directory)
    index = files.read_json(directory / "analysis/index.json")
    assert "reward_training-tiny-cosine" in index["figures"]
    assert "grpo (tiny, cosine)" in report.write(directory).read_text()


def test_a_report_before_its_analysis_names_what_to_do(quick: Path) -> None:
    with pytest.raises(RunError, match="restool analyze"):
        report.write(quick)


def test_a_folder_without_a_plan_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="restool plan"):
        analyze(tmp_path)


def test_the_pages_style_knows_dark_and_print() -> None:
    template = (Path(report.__file__).parent / "report.html.j2").read_text()
    assert re.search(r"prefers-color-scheme: dark", template)
    assert "@media print" in template
