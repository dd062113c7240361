"""Sampled ids as text, with the place of every token in it.

The text is the decoding of the ids that were sampled, never a second tokenisation of it: a model may sample
ids that its tokenizer would not produce, or bytes that are no valid UTF-8, and re-tokenising such text shifts
everything behind.

Which token owns a character: the one that holds the character's first byte. A token with only later bytes of
a character has an empty span just behind it, and a byte sequence that is no UTF-8 becomes one U+FFFD per
maximal invalid part, owned by the token that holds the part's first byte. Spans are monotone and tile the text.
"""

from __future__ import annotations

import codecs
import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import LongTensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Decoded:
    """One answer as text."""

    text: str  # all ids, special and added tokens literally
    offsets: LongTensor  # (t, 2): start and end of each token in `text`, in characters
    completion: str  # the text before the first stop token: what rewards and evaluation read


class Decoder:
    """Turns sampled ids into text and offsets; byte-level BPE tokenizers (Qwen, Llama 3, tiny) are fast."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_ids: Iterable[int], opening: str = ""):
        """``opening``: what the prompt has said of the answer already (`chat.opening`); every text begins with it."""
        self._tokenizer, self._opening = tokenizer, opening
        self._stop_ids = numpy.asarray(sorted(stop_ids), dtype=numpy.int64)
        self._table = _ByteTable(tokenizer) if _is_byte_level(tokenizer) else None

    def decode(self, ids: list[int]) -> Decoded:
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: list[list[int]]) -> list[Decoded]:
        """Decode many answers at once. Their offsets are views of one tensor; clone before saving a few."""
        lengths = [len(row) for row in rows]
        flat = numpy.fromiter(itertools.chain.from_iterable(rows), dtype=numpy.int64, count=sum(lengths))
        if self._table is None:
            texts, bounds = _decode_stepwise(self._tokenizer, rows)
        else:
            texts, bounds = self._table.decode(flat, lengths)
        if self._opening:
            texts, bounds = [self._opening + text for text in texts], bounds + len(self._opening)
        offsets = torch.from_numpy(bounds).split(lengths)
        stops = _first_stops(numpy.isin(flat, self._stop_ids), bounds[:, 0], lengths)
        return [
            Decoded(text, span, text if stop is None else text[:stop])
            for text, span, stop in zip(texts, offsets, stops, strict=True)
        ]


def _first_stops(is_stop: numpy.ndarray, starts: numpy.ndarray, lengths: list[int]) -> list[int | None]:
    """Per row, where in its text its first stop token starts; None if it has none."""
    found: list[int | None] = [None] * len(lengths)
    places = is_stop.nonzero()[0][::-1]
    rows = numpy.searchsorted(numpy.cumsum(lengths), places, side="right")
    for row, start in zip(rows.tolist(), starts[places].tolist(), strict=True):
        found[row] = start
    return found


# --- byte-level tokenizers -------------------------------------------------------------------------------


def _is_byte_level(tokenizer: PreTrainedTokenizerFast) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


class _ByteTable:
    """The bytes of every token id, end to end."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        vocabulary = tokenizer.get_vocab()
        byte_of = _byte_of_character()
        token_of = {index: token for token, index in vocabulary.items()}
        pieces = [_token_bytes(token_of.get(i, ""), byte_of) for i in range(max(token_of) + 2)]
        # The last, empty entry stands for ids that the tokenizer lacks: model heads are often padded.
        self._content = numpy.frombuffer(b"".join(pieces), dtype=numpy.uint8)
        self._width_V = numpy.array([len(piece) for piece in pieces], dtype=numpy.int32)
        self._begin_V = numpy.cumsum(self._width_V, dtype=numpy.int32) - self._width_V

    def decode(self, flat: numpy.ndarray, lengths: list[int]) -> tuple[list[str], numpy.ndarray]:
        """Texts of the rows that make up ``flat``, and the character bounds (tokens, 2) within them."""
        last = len(self._width_V) - 1
        if len(flat) and (flat.min() < 0 or flat.max() > last):
            flat = numpy.where((flat >= 0) & (flat <= last), flat, last)
        width_N = self._width_V[flat]
        byte_N1 = numpy.zeros(len(flat) + 1, dtype=numpy.int64)  # where each token begins, then the end
        numpy.cumsum(width_N, out=byte_N1[1:])
        content = self._content[self._sources(self._begin_V[flat], width_N, byte_N1)]
        row_R1 = byte_N1[numpy.concatenate([[0], numpy.cumsum(lengths, dtype=numpy.int64)])]
        if len(content) == 0 or content.max() < 0x80:  # a byte is a character
            text, place_N1, first_R = content.tobytes().decode(), byte_N1, row_R1[:-1]
            texts = [text[begin:end] for begin, end in itertools.pairwise(row_R1.tolist())]
        else:
            opens = (content & 0xC0) != 0x80  # first bytes of characters, while the UTF-8 is valid
            texts = _row_texts(content.tobytes(), row_R1.tolist(), opens)
            before = numpy.concatenate([[0], numpy.cumsum(opens)])  # characters before each byte
            place_N1, first_R = before[byte_N1], before[row_R1[:-1]]
        first_N = numpy.repeat(first_R, lengths)
        bounds = numpy.empty((len(flat), 2), dtype=numpy.int64)
        numpy.subtract(place_N1[:-1], first_N, out=bounds[:, 0])
        numpy.subtract(place_N1[1:], first_N, out=bounds[:, 1])
        return texts, bounds

    def _sources(self, begin_N: numpy.ndarray, width_N: numpy.ndarray, byte_N1: numpy.ndarray) -> numpy.ndarray:
        """Where in the table each byte of the tokens lies: one on from the byte before, but for a token's first.

        One array, summed in place: for the millions of bytes of a batch, new memory is what takes the time.
        """
        total = int(byte_N1[-1])
        source = numpy.ones(total, dtype=self._begin_V.dtype)
        filled = width_N > 0
        begin, behind = begin_N[filled], (begin_N + width_N)[filled]
        source[byte_N1[:-1][filled]] = begin - numpy.concatenate([[0], behind[:-1] - 1])
        return numpy.cumsum(source, out=source)


def _row_texts(content: bytes, bounds: list[int], opens: numpy.ndarray) -> list[str]:
    """Decode each row; where one is no valid UTF-8, correct ``opens`` to the replacement characters."""
    texts = []
    for begin, end in itertools.pairwise(bounds):
        row = content[begin:end]
        try:
            texts.append(row.decode())
        except UnicodeDecodeError:
            _invalid.spans = []
            texts.append(row.decode(errors=_REPLACE))
            for start, stop in _invalid.spans:
                opens[begin + start : begin + stop] = False
                opens[begin + start] = True
    return texts


_REPLACE = "restool-replace"
_invalid = threading.local()


def _note_and_replace(error: UnicodeError) -> tuple[str, int]:
    """As errors="replace" does, but note which bytes each replacement character stands for."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    _invalid.spans.append((error.start, error.end))
    return "\ufffd", error.end


codecs.register_error(_REPLACE, _note_and_replace)


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


def _token_bytes(token: str, byte_of: dict[str, int]) -> bytes:
    """A token's bytes; one with characters outside the alphabet is an added token and stands for itself."""
    try:
        return bytes(map(byte_of.__getitem__, token))
    except KeyError:
        return token.encode()


# --- any other tokenizer ---------------------------------------------------------------------------------


def _decode_stepwise(tokenizer: PreTrainedTokenizerFast, rows: list[list[int]]) -> tuple[list[str], numpy.ndarray]:
    """Decode every prefix of every row: quadratic, but right for any decoder whose text only grows."""
    texts, bounds = [], []
    for row in rows:
        prefixes = [
            tokenizer.decode(row[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for end in range(len(row) + 1)
        ]
        text = prefixes[-1]
        ends = [_shared(prefix, text) for prefix in prefixes[1:-1]]
        ends = numpy.maximum.accumulate(numpy.array([0, *ends, len(text)] if row else [0], dtype=numpy.int64))
        texts.append(text)
        bounds.append(numpy.stack([ends[:-1], ends[1:]], 1))
    return texts, numpy.concatenate([numpy.zeros((0, 2), dtype=numpy.int64), *bounds])


def _shared(prefix: str, text: str) -> int:
    """Length of the common beginning: a prefix may end in a replacement character that later ids complete."""
    differing = (place for place, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b)
    return len(prefix) if text.startswith(prefix) else next(differing, min(len(prefix), len(text)))
