"""Sampled answers under two weightings: recomputed weights, merged pieces, hostile text, and the verb that prints."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from restool import cli, files, runs
from restool.analysis import answers
from restool.analysis.answers_text import print_comparison, visible
from restool.core import weights
from restool.core.errors import ConfigurationError, RunError
from restool.experiments import compose_run

CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'
GOOD = f"<think> I look. </think>\n<tool_call>\n{CALL}\n{CALL}\n</tool_call><|im_end|>"
TEXTS = [GOOD, "<think> \x1b]0;title\x07 [red]x[/] \ud800 </think> 東京", "", "no tags at all"]


def offsets_of(text: str) -> list[list[int]]:
    """Tokens of four characters."""
    bounds = [*range(0, len(text), 4), len(text)]
    return [list(pair) for pair in itertools.pairwise(bounds)] if text else []


def write_run(folder: Path, method: str = "rest_released", *overrides: str) -> runs.RunDirectory:
    """A run directory with answers at steps 1 and 4 of 4, its stored weights those of its method."""
    settings = compose_run([f"method={method}", "training=test", *overrides])
    run = runs.open_run(folder, settings, {"data": "d", "start": "s"})
    scheme = {"rest_released": "released", "rest_fixed": "fixed", "grpo": "uniform", "rest_entropy": "fixed"}[method]
    rows = [{"step": step, "prompt": "hello", "answers": _answers(scheme, step)} for step in (1, 4)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    files.write_text(run.rollouts_path, content)
    names = ("mean", "format", "name", "arguments", "think", "response", "other")
    entropies = {f"entropy/{name}": 0.1 * place for place, name in enumerate(names, 1)}
    files.write_json_lines(run.metrics_path, [{"step": step, **entropies} for step in (1, 2, 3, 4)])
    return run


def _answers(scheme: str, step: int) -> list[dict[str, object]]:
    reference = step / 4 * 105
    found = []
    for place, text in enumerate(TEXTS):
        offsets = offsets_of(text)
        mask = torch.ones(len(offsets))
        single = weights._single(text, offsets, mask, reference)
        used = weights.weigh(scheme, single)[0].tolist()
        found.append(
            {
                "text": text,
                "offsets": offsets,
                "weights": [round(value, 4) for value in used],
                **dict.fromkeys(("reward", "format", "correctness", "advantage"), float(-place)),
                "ground_truth": "label",
            }
        )
    return found


@pytest.fixture
def run(tmp_path) -> runs.RunDirectory:
    return write_run(tmp_path / "run")


def printed(comparison: answers.Comparison, width: int = 100) -> str:
    out = io.StringIO()
    print_comparison(Console(file=out, width=width, highlight=False), comparison)
    return out.getvalue()


def test_recomputed_weights_are_those_that_training_stored(run):
    for step in (1, 4):
        found = answers.compare(run, step=step, second=answers.parse_weighting("released"))
        assert found.reference_step == pytest.approx(step / 4 * 105)
        for answer in found.answers:
            assert answer.weights[0] == answer.weights[1]


def test_the_last_step_and_the_runs_own_weights_are_the_default(run, tmp_path):
    found = answers.compare(run)
    assert (found.step, found.weightings[0].label, found.weightings[1].label) == (4, "released", "uniform")
    uniform = answers.compare(write_run(tmp_path / "grpo", "grpo"))
    assert [w.label for w in uniform.weightings] == ["uniform", "fixed"]


def test_worst_come_before_best_and_none_twice(run):
    order = [a.reward for a in answers.compare(run, worst=1, best=2).answers]
    assert order == [-3.0, -1.0, 0.0]
    assert len(answers.compare(run, worst=3, best=3).answers) == len(TEXTS)


def test_pieces_tile_the_answer_and_merge_what_is_equal(run):
    for answer in answers.compare(run).answers:
        pieces = answer.pieces()
        assert "".join(piece.text for piece in pieces) == answer.text
        assert sum(piece.tokens for piece in pieces) == len(answer.offsets)
        for left, right in itertools.pairwise(pieces):
            assert (left.region, left.weights) != (right.region, right.weights)


def test_merging_by_region_keeps_the_range_of_weights():
    pieces = answers.pieces("abcd", [(0, 1), (1, 2), (2, 2), (2, 4)], ["name"] * 4, ([0, 1, 2, 1],), by_region=True)
    assert pieces == [answers.Piece("abcd", "name", 4, ((0, 2),))]


def test_spread_counts_each_kind_of_weight():
    found = answers.spread(["name", "name", "other", "other"], [0.0, 1.2, 1.0, 0.5])
    assert found["all"] == {
        "tokens": 4,
        "mean": pytest.approx(0.675),
        **dict.fromkeys(("zero", "lowered", "unchanged", "raised"), 0.25),
    }
    assert found["name"]["mean"] == pytest.approx(0.6)


def test_schemes_with_arguments_change_what_they_name(run):
    found = answers.compare(run, second=answers.parse_weighting("fixed:other=1,response=0.5"))
    other = found.spread()[1]["other"]
    assert other["zero"] == 0
    beta = "{format=4,name=1,arguments=2,think=2,response=3,other=5}"
    optimal = answers.compare(run, best=1, second=answers.parse_weighting(f"optimal:beta={beta}"))
    of_name = [w for w, r in zip(optimal.answers[0].weights[1], optimal.answers[0].regions, strict=True) if r == "name"]
    assert min(of_name) > 1


def test_entropy_weights_come_from_the_steps_metrics(run):
    text = "entropy:form=inverse,alpha_format=0,alpha_parameters=0,alpha_think=0,w_min=0.01,w_max=8"
    spread = answers.compare(run, best=1, second=answers.parse_weighting(text)).spread()[1]
    assert spread["format"]["mean"] / spread["name"]["mean"] == pytest.approx(0.3 / 0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixd", "did you mean 'fixed'"),
        ("fixed:thik=1", "did you mean 'think'"),
        ("fixed:{", "scheme:argument=value"),
        ("entropy", "also needs form"),
    ],
)
def test_a_wrong_weighting_says_so(text, message):
    with pytest.raises(ConfigurationError, match=message):
        answers.parse_weighting(text)


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(ConfigurationError, match="there are: 1, 4"):
        answers.compare(run, step=2)
    files.write_json_lines(run.rollouts_path, [{"step": 1, "prompt": "p", "answers": [{"text": "x"}]}])
    with pytest.raises(RunError, match="without 'offsets'"):
        answers.compare(run)
    files.write_json_lines(run.rollouts_path, [{"step": 1}])
    with pytest.raises(RunError, match="cannot read"):
        answers.compare(run)
    run.rollouts_path.unlink()
    with pytest.raises(RunError, match="only RL runs"):
        answers.compare(run)


def test_the_print_fits_a_narrow_terminal_and_holds_no_control_character(run):
    for width in (100, 80):
        text = printed(answers.compare(run, second=answers.parse_weighting("fixed")), width)
        assert max(map(len, text.splitlines())) <= width
        assert all(character == "\n" or character.isprintable() for character in text)
        assert "get_weather"[:4] in text
        assert "[red]x[/]" in text


def test_control_characters_become_symbols():
    assert visible("a\x1b[0m\x07\n\x7f\x9b\u202e\ud800é") == "a␛[0m␇\n␡" + "\ufffd" * 3 + "é"


def test_weights_that_nothing_merges_share_rows_by_region(run):
    text = printed(answers.compare(run, best=1, first=answers.parse_weighting("shuffled")))
    assert len(text.splitlines()) < 90


def test_the_verb_prints_text_or_json(run, monkeypatch, capsys):
    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["restool", "show", str(run.path), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert "\x1b" not in call("--best", "1")
    found = json.loads(call("--weights", "rest_fixed", "--against", "fixed:think=1", "--json", "--step", "1"))
    assert found["weightings"] == ["rest_fixed", "fixed:think=1"]
    assert found["step"] == 1
    assert len(found["answers"]) == len(TEXTS)
    assert "".join(piece["text"] for piece in found["answers"][0]["pieces"]) == GOOD
