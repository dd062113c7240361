from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restool.core.regions import Region, region_ids
from restool.models import chat
from restool.models.offsets import Decoder, _decode_stepwise

fixture_is_constant = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
rows_of_ids = st.lists(st.lists(st.integers(0, 399), max_size=40), max_size=5)


@pytest.fixture(scope="module")
def decoder(tokenizer):
    return Decoder(tokenizer, chat.stop_ids(tokenizer))


def _text(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@fixture_is_constant
@given(rows=rows_of_ids)
def test_random_ids_decode_as_the_tokenizer_does_and_offsets_tile_the_text(decoder, tokenizer, rows):
    for ids, decoded in zip(rows, decoder.decode_batch(rows), strict=True):
        assert decoded.text == _text(tokenizer, ids)
        assert decoded.offsets.shape == (len(ids), 2)
        bounds = decoded.offsets.tolist()
        assert [begin for begin, _ in bounds] == [0, *[end for _, end in bounds]][: len(ids)]
        assert all(begin <= end for begin, end in bounds)
        assert not bounds or bounds[-1][1] == len(decoded.text)


@fixture_is_constant
@given(rows=rows_of_ids)
def test_a_row_does_not_depend_on_its_neighbours(decoder, rows):
    for ids, decoded in zip(rows, decoder.decode_batch(rows), strict=True):
        alone = decoder.decode(ids)
        assert (alone.text, alone.offsets.tolist(), alone.completion) == (
            decoded.text,
            decoded.offsets.tolist(),
            decoded.completion,
        )


@fixture_is_constant
@given(text=st.text(max_size=60))
def test_each_token_of_plain_text_covers_its_own_characters(decoder, tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded = decoder.decode(ids)
    assert decoded.text == text
    for token, (begin, end) in zip(ids, decoded.offsets.tolist(), strict=True):
        alone = _text(tokenizer, [token])
        if "\ufffd" not in alone:  # holds whole characters
            assert text[begin:end] == alone


def test_a_character_belongs_to_the_token_with_its_first_byte(decoder, tokenizer):
    byte = tokenizer.convert_tokens_to_ids
    ids = [*tokenizer.encode("a"), byte("Ã"), byte("©"), *tokenizer.encode("<think>")]  # a, C3, A9
    decoded = decoder.decode(ids)
    assert decoded.text == "aé<think>"
    assert decoded.offsets.tolist() == [[0, 1], [1, 2], [2, 2], [2, 9]]


def test_invalid_bytes_become_one_replacement_character_each(decoder, tokenizer):
    byte = tokenizer.convert_tokens_to_ids
    decoded = decoder.decode([byte("Ã"), byte("Ã"), byte("©"), byte("©")])
    assert decoded.text == "\ufffdé\ufffd"
    assert decoded.offsets.tolist() == [[0, 1], [1, 2], [2, 2], [2, 3]]


def test_completion_ends_before_the_first_stop_token(decoder, tokenizer):
    ids = tokenizer.encode("<think> a </think><|im_end|>b<|im_end|>")
    decoded = decoder.decode(ids)
    assert decoded.text == "<think> a </think><|im_end|>b<|im_end|>"
    assert decoded.completion == "<think> a </think>"
    assert decoder.decode(ids[:4]).completion == decoder.decode(ids[:4]).text


def test_non_canonical_ids_are_not_retokenised(decoder, tokenizer):
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "Lisbon"]
    assert letters != tokenizer.encode("Lisbon")
    assert decoder.decode(letters).offsets.tolist() == [[i, i + 1] for i in range(6)]


def test_ids_beyond_the_tokenizer_are_empty(decoder, tokenizer):
    decoded = decoder.decode([len(tokenizer) + 7, *tokenizer.encode("a"), 10**9])
    assert decoded.text == "a"
    assert decoded.offsets.tolist() == [[0, 0], [0, 1], [1, 1]]


@fixture_is_constant
@given(text=st.text(max_size=20))
def test_the_stepwise_decoder_agrees_on_valid_text(decoder, tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts, bounds = _decode_stepwise(tokenizer, [ids])
    assert texts == [text]
    ends = [0, *bounds[:, 1].tolist()]
    assert bounds[:, 0].tolist() == ends[:-1]
    assert ends[-1] == len(text) or not ids
    if text.isascii():
        assert bounds.tolist() == decoder.decode(ids).offsets.tolist()


def test_a_metaspace_tokenizer_takes_the_stepwise_decoder():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"▁": 0, "h": 1, "i": 2, "▁h": 3, "</s>": 4}, merges=[("▁", "h")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    decoded = Decoder(spaced, [4]).decode([3, 2, 3, 4])
    assert decoded.text == "hi h</s>"
    assert decoded.offsets.tolist() == [[0, 1], [1, 2], [2, 4], [4, 8]]
    assert decoded.completion == "hi h"


def test_what_the_template_writes_of_an_answer_belongs_to_its_text(tokenizer):
    template = tokenizer.chat_template
    try:
        end = "assistant: "
        plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + end
        for opening in ("", "<think>\n", "<think>\n\n</think>\n\n"):
            tokenizer.chat_template = plain + "{{ " + repr(opening) + " }}"
            assert chat.opening(tokenizer) == opening
            ids = tokenizer("so </think>", add_special_tokens=False)["input_ids"]
            decoded = Decoder(tokenizer, chat.stop_ids(tokenizer), opening).decode(ids)
            assert decoded.text == decoded.completion == opening + "so </think>"
            assert decoded.offsets[0].tolist()[0] == len(opening)
            regions = region_ids(decoded.text, decoded.offsets)
            if opening == "<think>\n":
                assert regions[0] == Region.THINK
    finally:
        tokenizer.chat_template = template
