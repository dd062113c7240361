"""The real tiny model, untrained: what it says is noise, but always the same noise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from restool import files
from restool.evaluation.answering import GeneratedAnswer, LocalModel, Prompt, Question, answer, collect
from restool.settings import DecodingSettings, TinyArchitecture

ROOT = Path(__file__).parents[3]
GREEDY = DecodingSettings(max_new_tokens=6, temperature=0.0, max_model_tokens=80, batch_tokens=120)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0})
QUESTIONS = [Question.of(f"q{i}", "You are a tool.", " ".join(["please"] * i) + " help") for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from restool.models import loading, tiny

    values = yaml.safe_load((ROOT / "configs/model/tiny.yaml").read_text())["tiny"]
    arch = TinyArchitecture(**(values | {"layers": 1, "vocabulary": 400}))
    tokenizer = tiny.train_tokenizer([str(q.prompt.messages) for q in QUESTIONS], arch.vocabulary)
    path = tmp_path_factory.mktemp("models") / "tiny"
    loading.save(tiny.build_tiny(arch, tokenizer), tokenizer, path)
    return path


def _model(folder) -> LocalModel:
    return LocalModel(folder, "cpu", "float32")


def _quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_resumed_answers_equal_uninterrupted_ones(folder, tmp_path, decoding):
    whole = collect(_model(folder), QUESTIONS, decoding, 3, tmp_path / "whole.jsonl", report=_quiet)
    rows = files.read_json_lines(tmp_path / "whole.jsonl")
    assert decoding is GREEDY or len({row["text"] for row in rows}) > 1
    files.write_json_lines(tmp_path / "half.jsonl", rows[::2])
    half = collect(_model(folder), QUESTIONS, decoding, 3, tmp_path / "half.jsonl", report=_quiet)
    assert half == whole


def test_nothing_is_loaded_when_nothing_is_missing(folder, tmp_path):
    path = tmp_path / "answers.jsonl"
    collect(_model(folder), QUESTIONS, SAMPLED, 3, path, report=_quiet)
    again = _model(folder)
    collect(again, QUESTIONS, SAMPLED, 3, path, report=_quiet)
    assert again._loaded is None


def test_seeds_decide_sampled_answers(folder):
    prompts = [q.prompt for q in QUESTIONS]
    model = _model(folder)
    assert answer(model, prompts, SAMPLED, 3) == answer(model, prompts, SAMPLED, 3)
    assert answer(model, prompts, SAMPLED, 3) != answer(model, prompts, SAMPLED, 4)
    assert answer(model, prompts, GREEDY, 3) == answer(model, prompts, GREEDY, 4)


def test_prompts_without_room_are_recorded_and_never_sent(folder, tmp_path):
    """As many tokens as fit are generated; a prompt that leaves none is over length."""
    long = [Question.of("long", "s", "please " * 200), *QUESTIONS]
    found = collect(_model(folder), long, GREEDY, 0, tmp_path / "a.jsonl", report=_quiet)
    assert found["long"] == GeneratedAnswer("", 0, False, over_length=True)
    model = _model(folder)
    model._load()
    from restool.models import chat

    first = QUESTIONS[0].prompt
    (ids,) = chat.dialogue_ids(model._loaded[1], [(first.messages, first.tools)])
    tight = len(ids) + 2
    decoding = GREEDY.model_copy(update={"max_model_tokens": tight})
    (short,) = answer(model, [first], decoding, 0)
    assert short.tokens <= 2
    assert not short.over_length
    assert len(collect(_model(folder), long, GREEDY, 0, tmp_path / "a.jsonl", report=_quiet)) == 13


def test_a_context_is_never_longer_than_the_models_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    files.write_json(config, files.read_json(config) | {"max_position_embeddings": 64})
    decoding = GREEDY.model_copy(update={"max_model_tokens": 4096})
    prompts = [Prompt.of("", "please"), Prompt.of("", "please " * 200)]
    assert [one.over_length for one in answer(_model(tmp_path / "model"), prompts, decoding, 0)] == [False, True]
    assert [one.over_length for one in answer(_model(folder), prompts, decoding, 0)] == [False, False]
