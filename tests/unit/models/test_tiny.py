from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restool.core.errors import ModelError
from restool.models import chat, tiny

fixture_is_constant = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_same_seed_same_bits_and_the_global_random_state_is_left_alone(tokenizer, architecture):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = tiny.build_tiny(architecture(), tokenizer).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = tiny.build_tiny(architecture(), tokenizer).state_dict()
    other = tiny.build_tiny(architecture(init_seed=4), tokenizer).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_same_texts_same_tokenizer(tokenizer, texts):
    again = tiny.train_tokenizer(iter(texts), 400)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= 400


def test_model_fits_the_tokenizer_and_caches(tokenizer, architecture):
    built = tiny.build_tiny(architecture(), tokenizer)
    assert built.config.vocab_size == len(tokenizer)
    assert built.config.use_cache is True
    assert built.dtype == torch.float32


def test_tags_are_single_ordinary_tokens_and_markers_are_special(tokenizer):
    for tag in tiny.TAGS:
        ids = tokenizer.encode(tag)
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag
    assert set(tiny.SPECIAL) <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer.encode("<|im_end|>"), skip_special_tokens=True) == ""


def test_a_word_is_the_same_token_in_a_sentence_and_in_json(tokenizer):
    sentence, call = tokenizer.encode("book a table in Lisbon for 4"), tokenizer.encode('{"city": "Lisbon"}')
    (word,) = tokenizer.encode("Lisbon")
    assert word in sentence
    assert word in call


@fixture_is_constant
@given(text=st.text())
def test_any_text_can_be_encoded(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_a_vocabulary_too_small_for_the_bytes_is_refused(texts):
    with pytest.raises(ModelError, match="vocabulary of 260"):
        tiny.train_tokenizer(texts, 260)


def test_chat_template_is_chatml_with_a_generation_prompt(tokenizer):
    ids = chat.prompt_ids(tokenizer, "Be brief.", "Hello")
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.prompt_ids(tokenizer, "Be brief.", "Hello", thinking=False) == ids
    assert tokenizer.decode(chat.prompt_ids(tokenizer, "", "Hello")).startswith("<|im_start|>user")


def test_thinking_reaches_a_template_with_the_switch(tokenizer):
    import copy

    switchable = copy.deepcopy(tokenizer)
    switchable.chat_template += "{% if enable_thinking is false %}<think> </think>{% endif %}"
    assert tokenizer.decode(chat.prompt_ids(switchable, "", "a", thinking=False)).endswith("<think> </think>")
    assert tokenizer.decode(chat.prompt_ids(switchable, "", "a")).endswith("assistant\n")


def test_stop_ids_are_the_end_of_turn_and_of_text(tokenizer):
    assert tokenizer.convert_ids_to_tokens(chat.stop_ids(tokenizer)) == ["<|endoftext|>", "<|im_end|>"]
