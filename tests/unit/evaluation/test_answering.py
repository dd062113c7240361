from __future__ import annotations

import pytest

from restool import files
from restool.core.errors import ModelError
from restool.evaluation.answering import (
    GeneratedAnswer,
    Prompt,
    Question,
    answer_keys,
    collect,
    model_fingerprint,
    plan_batches,
)
from restool.settings import DecodingSettings

GREEDY = DecodingSettings(max_new_tokens=8, temperature=0.0, max_model_tokens=64, batch_tokens=100)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0})
QUESTIONS = [Question.of(f"q{i}", "s", f"u{i}") for i in range(6)]


class Echo:
    """Answers with its name and the question, two at a time; stops after ``patience`` batches as if killed."""

    def __init__(self, name: str, patience: int = 99):
        self.fingerprint = name
        self.patience = patience
        self.asked = 0

    def batches(self, questions, decoding, seed, wanted):
        for number in range(0, len(questions), 2):
            indices = [number, number + 1]
            if wanted & set(indices):
                if self.patience == 0:
                    raise KeyboardInterrupt
                self.patience -= 1
                self.asked += 1
                yield indices, [GeneratedAnswer(f"{self.fingerprint} {questions[i].id}", 3, True) for i in indices]


def _collect(model, path, questions=QUESTIONS, decoding=GREEDY, seed=0):
    return collect(model, questions, decoding, seed, path, report=lambda line: None)


def test_only_what_is_missing_is_generated(tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _collect(Echo("a", patience=2), path)
    path.write_bytes(path.read_bytes()[:-9])  # killed in mid-line: one answer of the second batch is torn
    model = Echo("a")
    found = _collect(model, path)
    assert model.asked == 2
    assert {name: answer.text for name, answer in found.items()} == {f"q{i}": f"a q{i}" for i in range(6)}
    assert sorted(row["id"] for row in files.read_json_lines(path)) == [q.id for q in QUESTIONS]
    again = Echo("a")
    assert _collect(again, path) == found
    assert again.asked == 0


def test_answers_of_another_model_are_never_used(tmp_path):
    path = tmp_path / "answers.jsonl"
    for name in ("bad", "good", "bad"):
        found = _collect(Echo(name), path)
        assert {answer.text for answer in found.values()} == {f"{name} q{i}" for i in range(6)}
        assert len(files.read_json_lines(path)) == 6


def test_question_sets_share_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    others = [Question(f"other/{q.id}", q.prompt) for q in QUESTIONS]
    _collect(Echo("a"), path)
    _collect(Echo("a"), path, others, SAMPLED)
    model = Echo("a")
    _collect(model, path)
    _collect(model, path, others, SAMPLED)
    assert model.asked == 0
    assert len(files.read_json_lines(path)) == 12


def test_what_an_answer_depends_on():
    def key(fingerprint="m", questions=QUESTIONS, decoding=GREEDY, seed=0):
        return answer_keys(fingerprint, questions, decoding, seed)["q0"]

    assert key() == key(questions=QUESTIONS[:3], seed=1)  # greedy: neither its companions nor the seed
    assert key() == key(decoding=GREEDY.model_copy(update={"batch_tokens": 7}))
    assert key() != key(fingerprint="n")
    assert key() != key(decoding=GREEDY.model_copy(update={"max_new_tokens": 9}))
    assert key() != key(questions=[Question.of("q0", "s", "another")])
    sampled = key(decoding=SAMPLED)
    assert sampled != key()
    assert sampled != key(decoding=SAMPLED, seed=1)
    assert sampled != key(decoding=SAMPLED, questions=QUESTIONS[:3])  # its place in a batch decides its numbers


def test_keys_of_one_version_fit_the_next():
    """Answers that were stored by an earlier version stay usable: these hashes are recorded, not computed."""
    assert answer_keys("m", QUESTIONS, GREEDY, 0)["q0"] == "00d2a3ff295cd639"
    assert answer_keys("m", QUESTIONS, SAMPLED, 0)["q0"] == "f7d073cad0a03ced"


def test_every_part_of_a_chat_counts():
    tool = {"type": "function", "function": {"name": "f"}}
    user, assistant = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    prompts = [
        Prompt.of("s", "u"),
        Prompt.of("", "u"),
        Prompt((user, assistant, user)),
        Prompt((user, assistant)),
        Prompt((user,), (tool,)),
        Prompt(({"role": "tool", "content": "u", "name": "f"},)),
        Prompt(({"role": "system", "content": ""}, user)),
    ]
    for decoding in (GREEDY, SAMPLED):
        keys = [answer_keys("m", [Question("q", prompt)], decoding, 0)["q"] for prompt in prompts]
        assert len(set(keys)) == len(prompts)


def test_batches_respect_the_limit_and_lose_nothing():
    lengths = [5, 90, 30, 30, 300, 1]
    batches = plan_batches(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches[0] == [4]  # longer than the limit: alone
    for batch in batches[1:]:
        assert len(batch) * max(lengths[i] for i in batch) <= 100


def test_fingerprint_sees_weights_and_tokenizer(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError, match="no config"):
        model_fingerprint(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1" * 100)
    first = model_fingerprint(folder)
    assert first == model_fingerprint(folder)
    (folder / "model.safetensors").write_bytes(b"1" * 99 + b"2")
    second = model_fingerprint(folder)
    assert second != first
    (folder / "tokenizer.json").write_text("{}")
    assert model_fingerprint(folder) != second
    assert model_fingerprint("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
