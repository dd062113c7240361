"""BFCL's categories as the official loader gives them, and the official verdict on single-turn answers."""

from __future__ import annotations

import hashlib
import json
import marshal
from pathlib import Path
from typing import Any

import decoding

MESSAGE_CAP = 1200
WRONG_FORMAT = (
    "Did not output in the specified format. Note: the model_result is wrapped in a string to ensure json "
    "serializability."
)
CALLED = "Valid syntax. Successfully decode AST when it should not."
NOT_CALLED = "Invalid syntax. Failed to decode AST when it should have."
"""What the official runner, which is not at hand here, says where its checker is not asked."""
_NOT_SHOWN = ("initial_config", "path", "involved_classes", "excluded_function")


class Category:
    """One category's entries as the official loader gives them, with the official verdict on an answer.

    ``reader.decode`` reads the calls of an answer: the module `decoding`, or a `native.Native`.
    """

    def __init__(self, name: str, folder: str | None, reader: Any):
        from bfcl_eval.constants import eval_config

        self.name, self.reader = name, reader
        self.is_relevance = "relevance" in name  # also irrelevance, as in the official runner
        self.data = Path(folder or eval_config.PROMPT_PATH)
        self.own = folder is not None
        self.documents = self._load()
        answers = [] if self.is_relevance else self._answers()
        if answers and [row["id"] for row in answers] != list(self.documents):
            raise ValueError(f"{name}: entries and possible answers do not belong together")
        self.answers = {row["id"]: row["ground_truth"] for row in answers}

    def entries(self) -> list[dict[str, Any]]:
        """What prompts are made from: with the language hints that the official runner shows to models."""
        from bfcl_eval.utils import add_language_specific_hint_to_function_doc

        rows = [{key: value for key, value in row.items() if key not in _NOT_SHOWN} for row in self.documents.values()]
        rows = marshal.loads(marshal.dumps(rows))  # a copy, because hints are written into it; copy.deepcopy takes 8 s
        if not self.own:
            rows = add_language_specific_hint_to_function_doc(rows)
        return [_shown(row) for row in rows]

    def expected(self) -> dict[str, Any]:
        """Entry → what would be right: calls with the values that each parameter may have; in multi-turn, calls by
        turn; of relevance and irrelevance, a word for it."""
        if self.is_relevance:
            return dict.fromkeys(self.documents, "no call" if "irrelevance" in self.name else "any call")
        return self.answers

    def digest(self) -> str:
        """sha256 over the category's data files."""
        total = hashlib.sha256()
        for path in (self.data / self._file(), self.data / "possible_answer" / self._file()):
            total.update(path.read_bytes() if path.exists() else b"")
        return total.hexdigest()

    def check(self, entry: str, text: str) -> dict[str, Any]:
        """``{"correct", "error_type", "error", "calls", ...}`` for one answer, by the official rules."""
        decoded = self.reader.decode(text)
        verdict = self._relevance(decoded) if self.is_relevance else self._ast(entry, decoded)
        return {
            "correct": verdict.get("valid", False),
            "error_type": verdict.get("error_type"),
            "error": shortened(_message(verdict.get("error"))),
            "calls": recorded(decoded.calls, 4096),
            "unreadable": decoded.unreadable,
            "capped": decoded.capped,
        }

    def _ast(self, entry: str, decoded: decoding.Decoded) -> dict[str, Any]:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        from bfcl_eval.utils import is_function_calling_format_output, is_java, is_js

        if not is_function_calling_format_output(decoded.calls):
            return {"error_type": "ast_decoder:decoder_wrong_output_format", "error": [WRONG_FORMAT]}
        if kind := decoding.illegal(decoded.calls):  # no documented function is called so: wrong in any case
            return {"error_type": f"not_allowed:{kind}", "error": [f"No documented function has such a {kind}."]}
        language = Language.PYTHON
        if is_java(self.name):
            language = Language.JAVA
        elif is_js(self.name):
            language = Language.JAVASCRIPT
        functions = self.documents[entry]["function"]
        verdict = ast_checker(functions, decoded.calls, self.answers[entry], language, self.name, "custom")
        return {"valid": True} if verdict["valid"] else verdict

    def _relevance(self, decoded: decoding.Decoded) -> dict[str, Any]:
        from bfcl_eval.utils import is_empty_output

        called = not is_empty_output(decoded.calls)
        if called != ("irrelevance" in self.name):
            return {"valid": True}
        if called:
            return {"valid": False, "error_type": "irrelevance_error:decoder_success", "error": [CALLED]}
        return {"valid": False, "error_type": "relevance_error:decoder_failed", "error": [NOT_CALLED]}

    def _load(self) -> dict[str, Any]:
        from bfcl_eval.utils import load_dataset_entry

        if self.own:
            rows = _json_lines(self.data / self._file())
        else:
            # The checker must see the documents without hints: those change every Java type to "string".
            rows = load_dataset_entry(self.name, include_language_specific_hint=False)
        return {row["id"]: row for row in rows}

    def _file(self) -> str:
        from bfcl_eval.constants.category_mapping import VERSION_PREFIX

        return f"{self.name}.jsonl" if self.own else f"{VERSION_PREFIX}_{self.name}.json"

    def _answers(self) -> list[dict[str, Any]]:
        from bfcl_eval.utils import load_ground_truth_entry

        if self.own:
            return _json_lines(self.data / "possible_answer" / self._file())
        return load_ground_truth_entry(self.name)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def shortened(error: Any) -> str | None:
    if not error:
        return None
    text = decoding.clean(str(error))
    return text if len(text) <= MESSAGE_CAP else text[:MESSAGE_CAP] + "..."


def _message(error: Any) -> Any:
    """The official checker gives a list of sentences, in parallel categories with details between them."""
    return " ".join(map(str, error)) if isinstance(error, list) else error


def recorded(calls: Any, most: int) -> Any:
    """The calls if their text is of a size worth recording, else the beginning of it."""
    text = json.dumps(calls)
    return calls if len(text) <= most else text[:most]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """What of an entry prompts are made from. A turn that brings a held-out function asks with the official words."""
    from bfcl_eval.constants.default_prompts import DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING as words

    missed = row.get("missed_function", {})
    question = list(row["question"])
    for turn, functions in missed.items():  # turns are named by strings
        question[int(turn)] = [{"role": "user", "content": words.format(functions=functions)}]
    return row | {"question": question}
