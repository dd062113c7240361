"""Prompts as token ids, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from restool.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Ends of a turn or a document in the model families that this project trains; the tokenizer's own
# end-of-sequence token is always added. Instruct models of both families may emit either of their two.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")

_CHUNK = 64
"""Dialogues tokenised at a time: enough to be fast, few enough that what the tokenizer makes besides ids is small."""


def prompt_ids(
    tokenizer: PreTrainedTokenizerFast, system: str, user: str, *, thinking: bool | None = None
) -> list[int]:
    """Token ids of one system and one user message, ending with the header of the assistant's turn.

    ``thinking`` is passed to the chat template as ``enable_thinking`` (Qwen3); None leaves the template's
    default, and templates without the switch ignore it. An empty ``system`` omits the system message.
    Raises :class:`ModelError` if the tokenizer has no chat template.
    """
    return prompt_ids_batch(tokenizer, [(system, user)], thinking=thinking)[0]


def prompt_ids_batch(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[tuple[str, str]],
    *,
    thinking: bool | None = None,
    last: int | None = None,
) -> list[list[int]]:
    """`prompt_ids` of many (system, user) pairs, several times faster than one at a time.

    ``last``: of longer prompts only so many ids, the last ones (`DataSettings.kept_ids`).
    """
    dialogues = [
        ([{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": user}], ())
        for system, user in prompts
    ]
    ids = dialogue_ids(tokenizer, dialogues, thinking=thinking)
    return ids if last is None else [prompt[-last:] for prompt in ids]


def opening(tokenizer: PreTrainedTokenizerFast, *, thinking: bool | None = None) -> str:
    """What the template itself writes at the beginning of every answer: an opened thought (models that always think), a
    whole empty one (Qwen3 with its thinking switched off), or nothing. The model goes on behind it."""
    asked: Sequence[dict[str, Any]] = [{"role": "user", "content": "?"}]
    _, found, written = _rendered(tokenizer, [(asked, ())], thinking)[0].rpartition("?")[2].partition("<think>")
    return found + written


def dialogue_ids(
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]],
    *,
    thinking: bool | None = None,
) -> list[list[int]]:
    """`prompt_ids` of many (messages, tools): whole chats, and the tools that the template itself lists.

    Raises :class:`ModelError` if the template refuses a chat (a role that it does not know, tools in a template
    that has no place for any).
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; "
            "use an instruct model, or add chat_template.jinja to its folder"
        )
    if not dialogues:
        return []
    return tokenizer(_rendered(tokenizer, dialogues, thinking), add_special_tokens=False)["input_ids"]


def each_dialogue_ids(
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Iterable[tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]],
    *,
    thinking: bool | None = None,
) -> Iterator[list[int]]:
    """`dialogue_ids` one after the other, for thousands of long dialogues: a few of them are in memory at a time."""
    rest = iter(dialogues)
    while chunk := list(islice(rest, _CHUNK)):
        yield from dialogue_ids(tokenizer, chunk, thinking=thinking)


def _rendered(
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]],
    thinking: bool | None,
) -> list[str]:
    """The chats as text, up to the header of the assistant's next turn."""
    import jinja2

    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    if thinking is not None:
        options["enable_thinking"] = thinking
    try:
        if not any(tools for _, tools in dialogues):
            return tokenizer.apply_chat_template([list(messages) for messages, _ in dialogues], **options)
        texts = [
            tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, **options)
            for messages, tools in dialogues
        ]
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template of {tokenizer.name_or_path} refuses a prompt: {error}") from error
    for text, (_, tools) in zip(texts, dialogues, strict=True):
        if not all(tool.get("function", tool)["name"] in text for tool in tools):  # a template that ignores tools
            raise ModelError(
                f"the chat template of {tokenizer.name_or_path} does not list tools; use a model that was made to call "
                "tools, or the prompts of the training data (eval.bfcl_format=rlla)"
            )
    return texts


def stop_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the tokens that end an answer, ascending."""
    vocabulary = tokenizer.get_vocab()
    found = {vocabulary[token] for token in _END_TOKENS if token in vocabulary}
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if not found:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json"
        )
    return sorted(found)
