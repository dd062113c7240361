"""Speed of the token weights against tokenising the text again for every span, as the released code does.

    python benchmarks/weights.py [--answers 2048] [--tokens 600] [--baseline-answers 2048] [--at-least 50]

Both sides get the same sampled ids, on one thread; time is CPU seconds, and for this repository the best of three, from
ids to weights (decoding and regions included) and from offsets to weights. The baseline is written from the description
of the released code: for every span found by its patterns it tokenises the whole text and walks the offsets. Exit
status 1 if the weights of the two differ or the ratio is below ``--at-least``.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from answers import answer

from restool.core.batch import AnswerBatch
from restool.core.normalisers import normalise_positive
from restool.core.regions import region_ids_batch
from restool.core.released import arguments_weight, braced, think_weight
from restool.core.weights import SCHEMES
from restool.models.offsets import Decoder
from restool.models.tiny import train_tokenizer

STEP = 50


def main() -> int:
    options = _options()
    torch.set_num_threads(1)

    def words(calls: int) -> int:  # what the calls leave of an answer's tokens
        return (options.tokens - 40 * calls) * 4 // 7

    texts = [answer(random.Random(i), words) for i in range(options.answers)]
    tokenizer = train_tokenizer(texts[:256], 1024)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [stop] for text in texts]
    decoder = Decoder(tokenizer, [stop])
    lengths = torch.tensor([len(row) for row in ids])
    print(f"{len(ids)} answers, {lengths.float().mean():.0f} tokens on average, one thread, CPU seconds")

    decoded = decoder.decode_batch(ids)
    batch = _batch(decoded)
    from_offsets = {
        name: _best(lambda name=name: SCHEMES[name](_batch(decoded, regions=name != "released")))
        for name in ("released", "fixed")
    }
    from_ids = {
        name: _best(lambda name=name: SCHEMES[name](_batch(decoder.decode_batch(ids), regions=name != "released")))
        for name in ("released", "fixed")
    }
    rows = range(min(options.baseline_answers, len(ids)))
    started = time.process_time()
    expected = [_retokenising(decoded[i].text, tokenizer, len(ids[i])) for i in rows]
    baseline = (time.process_time() - started) * len(ids) / len(rows)
    ours = SCHEMES["released"](batch)
    same = all(torch.allclose(ours[i, : len(ids[i])], expected[i], atol=1e-6) for i in rows)

    measured = f"measured on {len(rows)} answers" + (", scaled up" if len(rows) < len(ids) else "")
    print(f"tokenising again for every span  {baseline:8.3f} s ({measured})")
    for title, times in (("from sampled ids", from_ids), ("from offsets", from_offsets)):
        for name, seconds in times.items():
            print(f"{name:9}{title:24}{seconds:8.3f} s   {baseline / seconds:6.0f} x")
    print(f"weights equal to the baseline's: {'yes' if same else 'NO'}")
    return 0 if same and baseline / max(from_ids.values()) >= options.at_least else 1


def _batch(decoded: list[Any], regions: bool = True) -> AnswerBatch:
    texts, offsets = [d.text for d in decoded], [d.offsets for d in decoded]
    lengths = torch.tensor([len(pairs) for pairs in offsets])
    width = int(lengths.max())
    mask_BT = torch.arange(width) < lengths[:, None]
    region_BT = region_ids_batch(texts, offsets, width) if regions else mask_BT
    return AnswerBatch(texts, offsets, mask_BT, region_BT, step=STEP)


def _best(work: Callable[[], object], times: int = 3) -> float:
    spent = []
    for _ in range(times):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return min(spent)


# The baseline


def _retokenising(text: str, tokenizer: Any, width: int) -> torch.Tensor:
    raw_T = torch.zeros(width)
    for value, start, end in _spans(text):
        pairs = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        low = next(i for i, (begin, _) in enumerate(pairs) if begin >= start)
        high = max(low + 1, next((i for i, (_, stop) in enumerate(pairs) if stop >= end), len(pairs)))
        raw_T[low:high] = raw_T[low:high].clamp(min=value)
    return normalise_positive(raw_T[None], torch.ones(1, width))[0]


def _spans(text: str) -> list[tuple[float, int, int]]:
    found = []
    for tag in ("think", "response", "tool_call"):
        for match in re.finditer(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            found += [(1.0, match.start(), match.start(1)), (1.0, match.end(1), match.end())]
            if tag == "think":
                found.append((think_weight(STEP), *match.span(1)))
    for block in re.finditer("(?:<tool_call>|<toolcall>)(.*?)(?:</tool_call>|</toolcall>)", text, re.DOTALL):
        name = re.search(r'"name"\s*:\s*"([^"]+)"', block[1])
        key = re.search(r'"(?:arguments|parameters)"\s*:\s*', block[1])
        base = block.start(1)
        if name:
            found.append((1.2, base + name.start(1), base + name.end(1)))
        object_ = braced(block[1], block[1].find("{", key.end())) if key else None
        if object_:
            found.append((arguments_weight(STEP), base + object_[0], base + object_[1]))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--baseline-answers", type=int, default=2048, help="fewer: its time is scaled up")
    parser.add_argument("--at-least", type=float, default=50.0, help="ratio from sampled ids below which it fails")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
