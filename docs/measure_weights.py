"""Measure what token weights do to real labels, and write the numbers into docs/weights.md.

    RESTOOL_MIRROR=<folder with rlla_4k/> .venv/bin/python docs/measure_weights.py

Labels are the 80 test labels and the 400 demonstrations of rlla_4k, each followed by a stop token. The tokenizer is a
byte-level BPE of 8,192 entries trained on the prompts and labels themselves, text cut as Qwen2 does before merging;
once with every tag as one token (Qwen3), once with tags as ordinary text (Llama 3). A test measures again where the
data are at hand and compares.
"""

from __future__ import annotations

import datetime
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from released_faults import FAULTS, faulty_weights
from torch import Tensor

from restool.analysis.answers import DOWN, UP
from restool.core import parsing, weights
from restool.core.batch import AnswerBatch
from restool.core.regions import Region, region_ids_batch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "weights.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
STOP = "<|im_end|>"
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "tool_call", "response") for slash in ("", "/"))
VOCABULARY = 8192
FIRST, LAST = 1, 105  # reference steps of the released run
# How Qwen2 cuts text before it merges bytes; its numbers are single digits.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGIONS = (Region.FORMAT, Region.NAME, Region.ARGUMENTS, Region.THINK, Region.RESPONSE, Region.OTHER)


# ----------------------------------------------------------------------------------------------------- the labels


def data_folder() -> Path | None:
    """The folder that holds rlla_4k/, or None."""
    folder = Path(os.environ.get("RESTOOL_MIRROR") or ROOT.parent / "shared" / "data") / "rlla_4k"
    return folder if (folder / "test.parquet").exists() and (folder / "rlla_sft.json").exists() else None


@dataclass(frozen=True)
class Corpus:
    """Labels with their stop token; the first ``tests`` are RL labels. ``prompts`` only train the tokenizer."""

    labels: list[str]
    tests: int
    prompts: list[str]


def read_corpus(folder: Path) -> Corpus:
    import pyarrow.parquet

    records = pyarrow.parquet.read_table(io.BytesIO((folder / "test.parquet").read_bytes())).to_pylist()
    rows = [record["extra_info"] for record in records] + json.loads((folder / "rlla_sft.json").read_text("utf-8"))
    prompts = [text for row in rows for text in (row["instruction"], row["input"])]
    return Corpus([row["output"] + STOP for row in rows], len(records), prompts)


Encode = Callable[[Sequence[str]], list[Tensor]]


def train_tokenizers(corpus: Corpus) -> dict[str, Encode]:
    """Text → token offsets (t, 2), with tags as single tokens and as ordinary text; the merges are the same."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[STOP], initial_alphabet=alphabet, show_progress=False
    )
    apart = re.compile("|".join(map(re.escape, (*TAGS, STOP))))
    texts = (*corpus.labels, *corpus.prompts)
    tokenizer.train_from_iterator((piece for text in texts for piece in apart.split(text)), trainer)
    split = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return {"single": functools.partial(_encode, tokenizer), "split": functools.partial(_encode, split)}


def _encode(tokenizer: object, texts: Sequence[str]) -> list[Tensor]:
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [torch.tensor(encoding.offsets, dtype=torch.long).reshape(-1, 2) for encoding in found]


def make_batch(texts: Sequence[str], encode: Encode, step: float) -> AnswerBatch:
    offsets = encode(texts)
    count_B = torch.tensor([len(pairs) for pairs in offsets])
    width = int(count_B.max())
    mask_BT = torch.arange(width) < count_B[:, None]
    region_BT = region_ids_batch(texts, offsets, width)
    return AnswerBatch(list(texts), offsets, mask_BT, region_BT, step=step, progress=step / LAST, seed=1)


# ------------------------------------------------------------------------------------------------------- measuring

SCHEMES = (
    *("uniform", "released", "fixed", "masked_uniform", "uniform_released_normaliser", "static", "no_think"),
    *("name_only", "arguments_only", "shuffled", "tool_block", "think_block"),
)


def measured(folder: Path) -> str:
    """The generated part of the page, without the line that says when."""
    corpus = read_corpus(folder)
    encoders = train_tokenizers(corpus)
    batches = {name: make_batch(corpus.labels, encode, FIRST) for name, encode in encoders.items()}
    late = make_batch(corpus.labels, encoders["single"], LAST)
    parts = [
        _labels_table(batches, corpus),
        _scheme_table(batches["single"], late, corpus),
        _split_table(batches["split"]),
        _region_table(batches["single"], late),
        _fault_tables(batches, corpus, encoders),
        _silent_table(batches["single"], corpus),
    ]
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _percent(share: float) -> str:
    if share == 0:
        return "0"
    return f"{100 * share:.1f} %" if share >= 0.0005 else f"{100 * share:.2f} %" if share >= 5e-5 else "< 0.01 %"


def _share(part: Tensor, whole: Tensor) -> str:
    total = int(whole.sum())
    return _percent(int((part & whole).sum()) / total) if total else "none"


def _labels_table(batches: dict[str, AnswerBatch], corpus: Corpus) -> str:
    rows = []
    for title, batch in (("tags are single tokens", batches["single"]), ("tags are split", batches["split"])):
        mask = batch.mask_BT
        shares = [_share(batch.region_BT == region, mask) for region in REGIONS]
        rows.append([title, f"{int(mask.sum()):,}", *shares])
    header = ["tokens by region", "tokens", *(region.name.lower() for region in REGIONS)]
    return "### The labels\n\n" + _table(header, rows)


def _scheme_table(batch: AnswerBatch, late: AnswerBatch, corpus: Corpus) -> str:
    mask = batch.mask_BT
    is_test = (torch.arange(len(batch)) < corpus.tests)[:, None] & mask
    rows = []
    for name in SCHEMES:
        weight, end = weights.weigh(name, batch), weights.weigh(name, late)
        rows.append(
            [
                f"`{name}`",
                *(_share(part, mask) for part in _parts(weight)),
                _share(weight == 0, is_test),
                _share(weight == 0, mask & ~is_test),
                _share(end > UP, mask),
            ]
        )
    header = ["scheme", "zero", f"lowered (< {DOWN})", "left alone", f"raised (> {UP})"]
    header += ["zero, 80 RL labels", "zero, 400 demonstrations", f"raised at step {LAST}"]
    return "### Share of tokens by scheme\n\n" + _table(header, rows)


def _parts(weight: Tensor) -> tuple[Tensor, ...]:
    zero, raised, lowered = weight == 0, weight > UP, (weight > 0) & (weight < DOWN)
    return zero, lowered, ~(zero | raised | lowered), raised


def _split_table(batch: AnswerBatch) -> str:
    rows = []
    for name in ("released", "fixed"):
        weight = weights.weigh(name, batch)
        rows.append([f"`{name}`, tags split", *(_share(part, batch.mask_BT) for part in _parts(weight))])
    return _table(["scheme", "zero", "lowered", "left alone", "raised"], rows)


def _region_table(batch: AnswerBatch, late: AnswerBatch) -> str:
    rows = []
    for name in SCHEMES:
        first, last = (_mean_cells(weights.weigh(name, of), of) for of in (batch, late))
        if first == last:
            rows.append([f"`{name}`", *first])
        else:
            rows += [[f"`{name}`, step {FIRST}", *first], [f"`{name}`, step {LAST}", *last]]
    header = ["mean weight (share at zero)", *(region.name.lower() for region in REGIONS)]
    return "### Mean weight by region\n\n" + _table(header, rows)


def _mean_cells(weight: Tensor, batch: AnswerBatch) -> list[str]:
    cells = []
    for region in REGIONS:
        value_N = weight[(batch.region_BT == region) & batch.mask_BT].double()
        zero = float((value_N == 0).double().mean())
        cells.append("0" if zero == 1 else f"{float(value_N.mean()):.2f}" + (f" ({_percent(zero)})" if zero else ""))
    return cells


def _fault_tables(batches: dict[str, AnswerBatch], corpus: Corpus, encoders: dict[str, Encode]) -> str:
    halves = make_batch([_cut(text) for text in corpus.labels], encoders["single"], FIRST)
    given = make_batch([text.removeprefix("<think>") for text in corpus.labels], encoders["single"], FIRST)
    rows = []
    for title, batch in (("", batches["single"]), (", tags split", batches["split"])):
        rows += [_fault_row(text + title, batch, [name], corpus.tests) for name, text in FAULTS.items()]
        rows.append(_fault_row("**all: `released`**" + title, batch, FAULTS, corpus.tests))
    header = ["fault, alone on `fixed`", "answers touched", "tokens lost", "lost, RL labels", "tokens gained"]
    header += [f"of {region.name.lower()}" for region in REGIONS[:4]]
    other = [
        _fault_row("labels cut off in the middle: unclosed blocks get nothing", halves, ["patterns"], corpus.tests),
        _fault_row(
            "`<think>` comes from the chat template: its thought gets nothing", given, ["patterns"], corpus.tests
        ),
    ]
    return (
        "### Each fault alone\n\n"
        + _table(header, rows)
        + "\n### Faults that whole labels cannot show\n\n"
        + _table([header[0].replace("fault", "answers and fault"), *header[1:]], other)
    )


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _fault_row(title: str, batch: AnswerBatch, faults: Iterable[str], tests: int) -> list[str]:
    right, wrong = faulty_weights(batch, ()) > 0, faulty_weights(batch, faults) > 0
    lost, gained, mask = right & ~wrong, wrong & ~right, batch.mask_BT
    touched = (lost | gained).any(1)
    by_region = [_share(lost, (batch.region_BT == region) & mask) for region in REGIONS[:4]]
    whole = torch.ones_like(touched)
    of_tests = _share(lost[:tests], mask[:tests])
    return [title, _share(touched, whole), _share(lost, mask), of_tests, _share(gained, mask), *by_region]


def _silent_table(batch: AnswerBatch, corpus: Corpus) -> str:
    mask, region = batch.mask_BT, batch.region_BT
    stops = torch.zeros_like(mask)
    stops[torch.arange(len(batch)), mask.sum(1) - 1] = True
    glue = (region == Region.OTHER) & mask & ~stops
    answers = torch.ones(len(batch), dtype=torch.bool)
    rows = []
    for title, inside in (
        ("response content", (region == Region.RESPONSE) & mask),
        ("stop token", stops),
        ("JSON around name and arguments, newlines", glue),
    ):
        rows.append([title, _share(inside, mask), _share(inside.any(1), answers)])
    crashes = int(weights.released_crashes(batch).sum())
    facts = [
        ("spans at which the released code raises", crashes),
        ("arguments objects that hold a key `name`", sum(_keys_called_name(text) for text in corpus.labels)),
        ("labels with a literal `<tool_call>` in the thought", sum(map(_literal, corpus.labels))),
        ("labels with two calls or more", sum(len(parsing.parse(text).calls) > 1 for text in corpus.labels)),
        ("calls", sum(len(parsing.parse(text).calls) for text in corpus.labels)),
        ("labels spelled `<toolcall>`", sum("<toolcall>" in text for text in corpus.labels)),
    ]
    return (
        "### What `released` and `fixed` both leave at zero\n\n"
        + _table(["part", "of all tokens", "answers that have it"], rows)
        + "\n"
        + _table(["counted in the 480 labels", "number"], [[title, str(count)] for title, count in facts])
    )


def _keys_called_name(text: str) -> int:
    answer = parsing.parse(text)
    return sum('"name"' in answer.part(call.arguments) for call in answer.calls)


def _literal(text: str) -> bool:
    answer = parsing.parse(text)
    return "<tool_call>" in answer.part(answer.think)


def page_parts(text: str) -> tuple[str, str, str]:
    """Before, within and behind the markers."""
    before, _, rest = text.partition(BEGIN)
    within, _, behind = rest.partition(END)
    return before, within, behind


def without_date(text: str) -> str:
    return re.sub(r"^Measured on .*\n", "", text, flags=re.MULTILINE).strip()


def main() -> None:
    folder = data_folder()
    if folder is None:
        sys.exit("no rlla_4k with test.parquet and rlla_sft.json: set RESTOOL_MIRROR to the folder that holds it")
    before, old, behind = page_parts(PAGE.read_text("utf-8"))
    new = measured(folder)
    if without_date(old) == new.strip():
        print(f"{PAGE.relative_to(ROOT)} is up to date")
        return
    when = f"Measured on {datetime.date.today()} by `docs/measure_weights.py`."
    PAGE.write_text(f"{before}{BEGIN}\n{when}\n\n{new.strip()}\n{END}{behind}", "utf-8")
    print(f"{PAGE.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
