"""BFCL through its official checker, which runs behind walls in an environment of its own.

`evaluate`: the categories of V3, from a model or from answers that exist. `evaluate_synthetic`: our synthetic
held-out tasks, written in BFCL's own format, with answers that `held_out.evaluate` has made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from restool import environments, files
from restool.core.errors import ConfigurationError, EvaluationError, nearest
from restool.data.bfcl_export import content
from restool.evaluation import answering, contamination, examples, items
from restool.evaluation.bfcl import aggregates, episodes, native, prompts, results, scoring
from restool.evaluation.bfcl.checker import Checker
from restool.evaluation.bfcl.scoring import BENCHMARK
from restool.evaluation.bfcl.synthetic import evaluate_synthetic
from restool.evaluation.contamination import Training
from restool.settings import EvaluationSettings, RunSettings

__all__ = ["BENCHMARK", "evaluate", "evaluate_synthetic"]

Entries = Mapping[str, Sequence[dict[str, Any]]]
Report = Callable[[str], None]


def evaluate(
    model: answering.Answerer | None,
    prepared: Path,
    out: Path,
    settings: RunSettings,
    *,
    answers: Path | None = None,
    allow_missing: bool = False,
    training: Training | None = None,
    report: Report,
) -> dict[str, Any]:
    """Answer the categories of ``settings.eval`` with ``model``, or take ``answers``, and score them.

    ``answers``: a folder in BFCL's official result layout. Rows that are missing (no fault, but wrong, with
    ``allow_missing``), cut off, duplicate, unknown or malformed end in an `EvaluationError` that names them, after
    the categories without such a fault were scored. Writes answers.jsonl, items.jsonl, summary.json and the
    official layout below ``out``. Needs the ``bfcl`` environment.
    """
    categories = _checked(settings.eval.bfcl_categories)
    skeleton, form = files.read_json(prepared / "manifest.json")["skeleton"], settings.eval.bfcl_format
    if skeleton is None and answers is None and form == "rlla":
        return items.not_run(out, BENCHMARK, "the prepared data has no prompt skeleton in the rlla format")
    environments.python("bfcl")  # before anything expensive
    limit = None if answers else settings.eval.bfcl_limit  # answers that exist are all scored
    origin: dict[str, Any] = dict.fromkeys(("model", "source", "answers", "decoding", "prompt_template_sha256"))
    origin["format"] = form
    faults: dict[str, str] = {}
    with Checker(categories, format=form) as checker:
        entries = {name: checker.entries(name)[:limit] for name in categories}
        ids = {name: [row["id"] for row in rows] for name, rows in entries.items()}
        if answers:
            found, faults = results.read(answers, ids, allow_missing=allow_missing)
            origin |= {"answers": str(answers)}
            scored = scoring.score(checker, ids, found, report)
        elif model is not None:
            prompting = _prompting(form, entries, skeleton)
            asked = _Asked(model, entries, prompting, settings.eval, out, report)
            found = asked.answers(checker, allow_missing=allow_missing)
            origin |= {"model": model.fingerprint, "source": model.description}
            origin |= {"decoding": settings.eval.bfcl.model_dump()}
            own = model.description.get("chat_template_sha256")
            origin |= {"prompt_template_sha256": own if form == "native" else prompts.template_hash(skeleton)}
        else:
            raise EvaluationError(f"{BENCHMARK}: give a model or answers")
    if not answers:
        results.write(out, {name: {i: results.of(a) for i, a in rows.items()} for name, rows in found.items()})
        with Checker(categories, format=form) as checker:  # a process that has served no model
            scored = scoring.score(checker, ids, found, report)
    rows, judged = scored
    contents = {row["id"]: content(row) for name in found for row in entries[name]}
    contamination.mark(rows, contents, training or Training.unknown())
    asked_of = {row["id"]: row["question"] for name in found for row in entries[name]}
    given = [found[row["category"]].get(row["id"]) for row in rows]
    texts = [results.of(answer) if answer else "" for answer in given]
    shown = [scoring.shown(asked_of[row["id"]], row, text) for row, text in zip(rows, texts, strict=True)]
    summary = scoring.summarize(rows, judged, limit, faults, training) | origin | {"allow_missing": allow_missing}
    return _write(out, rows, summary, examples.choose(rows, shown))


def _write(
    out: Path, rows: list[dict[str, Any]], summary: dict[str, Any], wrong: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write what could be scored; then complain about what could not."""
    told = "; ".join(dict.fromkeys(summary["faults"].values()))
    if not rows:
        raise EvaluationError(told)
    summary = items.write(out, rows, summary, wrong)
    if told:
        raise EvaluationError(f"{told}; the other categories ({len(summary['categories'])}) are scored in {out}")
    return summary


def _prompting(form: str, entries: Entries, skeleton: str) -> episodes.Prompting:
    """(entry, messages so far) → prompt, in the format ``form``."""
    if form == "native":
        return native.prompt
    systems = {row["id"]: prompts.system(skeleton, row["function"]) for rows in entries.values() for row in rows}
    return lambda row, messages: answering.Prompt.of(systems[row["id"]], prompts.user(messages))


class _Asked:
    """The answers of a model to all categories: one load, batches across categories, episodes side by side."""

    def __init__(
        self,
        model: answering.Answerer,
        entries: Entries,
        prompting: episodes.Prompting,
        chosen: EvaluationSettings,
        out: Path,
        report: Report,
    ):
        self.model, self.chosen, self.path, self.report = model, chosen, out / "answers.jsonl", report
        self.entries, self._prompt = entries, prompting

    def answers(self, checker: Checker, *, allow_missing: bool) -> scoring.Answers:
        """Category → entry → answer or episode; what the source failed to answer is an error, or left out."""
        single = {name: rows for name, rows in self.entries.items() if name not in aggregates.MULTI_TURN}
        multi = {name: rows for name, rows in self.entries.items() if name in aggregates.MULTI_TURN}
        found: dict[str, Any] = {}
        if single:
            found |= self._single_turn(single, allow_missing)
        if multi:
            found |= self._multi_turn(multi, checker, allow_missing)
        return {
            name: {row["id"]: found[row["id"]] for row in rows if row["id"] in found}
            for name, rows in self.entries.items()
        }

    def _single_turn(self, entries: Entries, allow_missing: bool) -> dict[str, Any]:
        rows = [row for listed in entries.values() for row in listed]
        questions = [answering.Question(row["id"], self._prompt(row, row["question"][0])) for row in rows]
        decoding, seed = self.chosen.bfcl, self.chosen.seed
        options: dict[str, Any] = {"allow_missing": allow_missing, "report": self.report}
        return answering.collect(self.model, questions, decoding, seed, self.path, **options)

    def _multi_turn(self, entries: Entries, checker: Checker, allow_missing: bool) -> dict[str, Any]:
        rounds = episodes.Rounds(self.model, self.chosen.bfcl, self.chosen.seed, self.path)
        done = episodes.run(entries, checker, self._prompt, rounds, self.report)
        failed = {name: episode.unanswered for name, episode in done.items() if episode.unanswered}
        if failed and not allow_missing:
            first, names = next(iter(failed.values())), items.some(sorted(failed))
            raise EvaluationError(
                f"{len(failed)} of {len(done)} episodes broke off for want of an answer ({names}), the first: {first}; "
                f"what there is is kept in {self.path}; run the same command to ask again, or --allow-missing counts "
                "them wrong"
            )
        rounds.tidy()
        return {name: episode for name, episode in done.items() if name not in failed}


def _checked(categories: list[str]) -> list[str]:
    known = (*aggregates.SINGLE_TURN, *aggregates.MULTI_TURN)
    for name in categories:
        if name not in known:
            close = nearest(name, known)
            there = ", ".join(known)
            raise ConfigurationError(f"eval.bfcl_categories: unknown category '{name}'{close}; there are: {there}")
    return list(dict.fromkeys(categories))
