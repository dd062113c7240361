"""The command line: one line and a status for every mistake, and each verb's help."""

from __future__ import annotations

import json
import sys

import pytest

from restool import cli
from restool.cli import evaluate
from restool.core.errors import ConfigurationError


@pytest.fixture
def restool(monkeypatch, capsys):
    """Call the command line in this process: (status, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["restool", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


VERBS = [
    *("prepare", "train", "generate", "chat", "analyze", "report", "track", "evaluate"),
    *("compare", "env", "plan", "doctor", "methods", "show", "mlflow"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(restool, verb):
    status, out, _ = restool(verb, "--help")
    assert status == 0
    assert "Usage" in out
    assert len(out.split()) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "No such command 'tran'"),
        (["train", "method=grpp"], "did you mean 'grpo'"),
        (["train", "training.rl.stepz=1"], "training.rl.steps"),
        (["train", "seed=one"], "seed"),
        (["plan", "quik"], "did you mean 'quick'"),
        (["train", "--plan", "nowhere/plan.json", "--run", "x"], "nowhere/plan.json does not exist"),
        (["analyze", "everything"], "there are: all, variance"),
        (["methods", "gprpo"], "did you mean 'grpo'"),
        (["show", "nowhere"], "not a run directory"),
        (["compare", "nowhere", "elsewhere"], "nowhere"),
        (["env", "build", "bfcll"], "did you mean 'bfcl'"),
        (["generate", "nowhere", "hello"], "nowhere"),
        (["evaluate", "bfcl", "--checkpoint"], "requires an argument"),
        (["evaluate", "bfcl"], "bfcl takes one of --checkpoint or --endpoint or --answers"),
        (["evaluate", "api-bank", "--checkpoint", "x", "--endpoint", "localhost"], "takes one of"),
        (["evaluate", "bfcl-synthetic", "--answers", "x"], "takes the held-out answers"),
        (["evaluate", "bfcl", "--checkpoint", "x", "--model", "y"], "belong to --endpoint"),
        (["evaluate", "bfcl", "--checkpoint", "x", "--engine", "vlm"], "vlm"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(restool, tmp_path, monkeypatch, arguments, message):
    status, _, err = restool(*arguments)
    assert status != 0
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_an_unknown_run_of_a_plan_is_named(restool, tmp_path):
    restool("plan", "quick", "--write", "--results", str(tmp_path))
    plan = str(tmp_path / "quick" / "plan.json")
    status, _, err = restool("train", "--plan", plan, "--run", "tiny-gropo-fraction-s0")
    assert status == 2
    assert "did you mean 'tiny-grpo-fraction-s0'" in err
    status, _, err = restool("evaluate", "held-out", "--plan", plan, "--run", "tiny-grpo-fraction-s0")
    assert "is not finished" in err


def test_plan_and_methods_speak_json(restool, tmp_path):
    small = ["experiment.matrix.models=[qwen3_1.7b]", "experiment.matrix.methods=[grpo]", "experiment.extra=[]"]
    status, out, _ = restool("plan", "paper", *small, "--json", "--results", str(tmp_path))
    plan = json.loads(out)
    assert status == 0
    assert plan["gpu_hours"] > 0
    assert plan["basis"] == ["assumed"]
    status, out, _ = restool("methods", "rest", "--json")
    assert json.loads(out)["id"] == "rest_released"


def test_a_defect_is_admitted_in_one_line(restool, monkeypatch):
    monkeypatch.setattr(cli, "compose", lambda overrides: 1 / 0)
    status, _, err = restool("train")
    assert status == 70
    assert err.startswith("restool: error: unexpected ZeroDivisionError")
    assert len(err.strip().splitlines()) == 1


def test_somebodys_checkpoint_meets_the_whole_benchmark_in_its_own_precision(tmp_path, monkeypatch):
    from restool import files, preparation

    asked = []
    monkeypatch.setattr(preparation, "prepare_benchmark", lambda *given, report: asked.append(given[:2]))
    monkeypatch.setattr(preparation, "prepare", lambda settings, out, report: asked.append(settings.data.name))
    files.write_json(tmp_path / "model" / "config.json", {"torch_dtype": "bfloat16"})
    settings, model, _ = evaluate._by_hand("bfcl", str(tmp_path / "model"), ["eval.bfcl_limit=3"], tmp_path)
    assert (settings.eval.name, settings.eval.bfcl_limit, settings.model.dtype) == ("paper", 3, "bfloat16")
    assert model == str(tmp_path / "model")
    assert evaluate._by_hand("bfcl", model, ["eval=tiny"], tmp_path)[0].eval.name == "tiny"
    assert evaluate._by_hand("bfcl", model, ["model.dtype=float32"], tmp_path)[0].model.dtype == "float32"
    assert evaluate._by_hand("bfcl", model, ["eval.bfcl_format=native"], tmp_path)[0].eval.bfcl_format == "native"
    assert evaluate._by_hand("bfcl", None, ["model.thinking=false"], tmp_path)[0].model.thinking is False
    assert asked == [("bfcl", None)] * 5
    settings, _, prepared = evaluate._by_hand("bfcl", model, ["model.thinking=true", "data.mirror=a"], tmp_path)
    assert (settings.model.dtype, settings.model.thinking) == ("bfloat16", True)  # the rest is still the checkpoint's
    assert (prepared.name, asked[5:]) == ("benchmark-bfcl", [("bfcl", "a")])


def test_a_run_is_evaluated_with_its_own_settings_but_for_what_is_overridden(tmp_path, monkeypatch):
    from restool import files, preparation, runs
    from restool.experiments import compose_run

    asked = []
    monkeypatch.setattr(preparation, "prepare", lambda settings, out, report: asked.append(settings.data))
    own = ["eval=rlla_tiny", "eval.bfcl_limit=5", "eval.bfcl.max_new_tokens=33", "data.max_prompt_tokens=999"]
    own += ["+eval.benchmarks.qa.limit=4", "model.dtype=bfloat16", "model.tiny.layers=2"]
    frozen = compose_run(own)
    directory = runs.open_run(tmp_path / "run", frozen, {"data": "d", "start": "s"})
    files.write_json(directory.path / "done.json", {})
    settings, model, _ = evaluate._by_hand("bfcl", str(directory.path), [], tmp_path)
    assert (settings.eval, settings.data, settings.model) == (frozen.eval, frozen.data, frozen.model)
    assert model == str(directory.path / "model")

    def changed(*overrides: str) -> set[tuple[str, object]]:
        settings, _, _ = evaluate._by_hand("bfcl", str(directory.path), list(overrides), tmp_path)
        before, after = (flat(each.model_dump(include=evaluate._OF_A_RUN)) for each in (frozen, settings))
        return {(key, value) for key, value in after.items() if key not in before or before[key] != value}

    def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
        pairs = ((prefix + key, value) for key, value in values.items())
        nested = [flat(v, f"{key}.") if isinstance(v, dict) and v else {key: str(v)} for key, v in pairs]
        return {key: value for part in nested for key, value in part.items()}

    assert changed("eval.bfcl_limit=null") == {("eval.bfcl_limit", "None")}  # also where configs/ says the same
    assert changed("+eval.benchmarks.qa.limit=9") == {("eval.benchmarks.qa.limit", "9")}
    assert changed("eval.bfcl.temperature=1", "model.thinking=true") == {
        ("eval.bfcl.temperature", "1.0"),
        ("model.thinking", "True"),
    }
    assert changed("data.overlong=truncate_left") == {("data.overlong", "truncate_left")}
    assert asked[-1].max_prompt_tokens == 999
    assert ("eval.bfcl_limit", "None") in changed("eval=paper")
    with pytest.raises(ConfigurationError, match=r"did you mean '(eval\.)?bfcl_limit'"):
        changed("eval.bfcl_limt=7")
