"""Prompts as token ids, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from restool.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Ends of a turn or a document in the model families that this project trains; the tokenizer's own
# end-of-sequence token is always added. Instruct models of both families may emit either of their two.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")


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
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[tuple[str, str]], *, thinking: bool | None = None
) -> list[list[int]]:
    """`prompt_ids` of many (system, user) pairs, several times faster than one at a time."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template; "
            "use an instruct model, or add chat_template.jinja to its folder"
        )
    dialogues = [
        [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": user}]
        for system, user in prompts
    ]
    if not dialogues:
        return []
    switches = {} if thinking is None else {"enable_thinking": thinking}
    texts = tokenizer.apply_chat_template(dialogues, tokenize=False, add_generation_prompt=True, **switches)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


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
