"""Speed of the sampler against ``transformers`` generate: same model, prompts, lengths and number of answers.

    python benchmarks/sampling.py [--model FOLDER] [--prompts 8] [--samples 8] [--max-new-tokens 80]

Prints answer tokens per CPU second of both, their ratio, and two checks: identical greedy ids, and the largest
difference between the sampler's log-probabilities and a full forward pass. Without ``--model`` it takes an
untrained tiny model, in two cases: nobody stops early, and one token in forty ends an answer (a mean length
of about 34 of 80 tokens, as trained models have). Exit status 1 if a check fails or the last case's ratio is below
``--at-least``. Other work on the machine lowers the sampler's ratio: it is bound by matrix products.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import SimpleNamespace

import torch

from restool.models import chat, loading, tiny
from restool.models.sampling import make_sampler

ARCHITECTURE = SimpleNamespace(
    hidden_size=128,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    feed_forward=384,
    vocabulary=1024,
    max_positions=8192,
    rope_theta=10000.0,
    init_seed=0,
)
SYSTEM = "You may call {a} and {b}. {a} takes city, date and guests; {b} takes name, time and table."
USER = "Please {a} in Lisbon for {n} people at 18:30 on Apr 4, then tell {name} about it and {b} if you can."


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    if options.model:
        model, tokenizer = loading.load(options.model)
    else:
        tokenizer = tiny.train_tokenizer([SYSTEM, USER] * 2 + _texts(200), ARCHITECTURE.vocabulary)
        model = tiny.build_tiny(ARCHITECTURE, tokenizer)
    prompts = [chat.prompt_ids(tokenizer, *text) for text in _dialogues(options.prompts)]
    lengths = sorted(map(len, prompts))
    print(
        f"{model.num_parameters() / 1e6:.2f}M parameters, {options.prompts} prompts of {lengths[0]} to "
        f"{lengths[-1]} tokens x {options.samples}, at most {options.max_new_tokens} new, "
        f"{options.threads} thread(s)"
    )
    stop = chat.stop_ids(tokenizer)
    cases = {"as the model stops" if options.model else "nobody stops": stop}
    if not options.model:
        cases["one token in 40 stops"] = list(range(0, len(tokenizer), 40))
    ratios = [_compare(name, model, tokenizer, prompts, ids, options) for name, ids in cases.items()]
    same, difference = _check(model, tokenizer, prompts, stop, options)
    print(f"greedy ids equal generate's: {same}; largest |log-probability - full forward|: {difference:.1e}")
    return 0 if ratios[-1] >= options.at_least and same and difference <= 1e-5 else 1


def _compare(name, model, tokenizer, prompts, stop, options) -> float:
    """Interleaved repetitions; the best of each, because other processes only ever slow one down."""
    sampler = make_sampler(model, tokenizer, stop)
    inputs = _left_padded(prompts, tokenizer.pad_token_id or 0)
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_return_sequences": options.samples,
        "max_new_tokens": options.max_new_tokens,
        "eos_token_id": stop,
        "pad_token_id": tokenizer.pad_token_id or 0,
    }
    ours, theirs = [], []
    for repetition in range(options.repetitions):
        torch.manual_seed(repetition)
        begin = time.process_time()
        output = model.generate(**inputs, **settings)
        seconds = time.process_time() - begin
        theirs.append(_tokens(output[:, inputs["input_ids"].shape[1] :].tolist(), stop) / seconds)
        begin = time.process_time()
        answers = sampler.generate(
            prompts, samples=options.samples, max_new_tokens=options.max_new_tokens, seed=repetition
        )
        seconds = time.process_time() - begin
        ours.append(sum(map(len, answers.ids)) / seconds)
    ratio = max(ours) / max(theirs)
    print(
        f"{name}: sampler {max(ours):,.0f}, transformers generate {max(theirs):,.0f} answer tokens per CPU "
        f"second, ratio {ratio:.2f}"
    )
    return ratio


def _check(model, tokenizer, prompts, stop, options) -> tuple[bool, float]:
    sampler = make_sampler(model, tokenizer, stop)
    length = options.max_new_tokens
    greedy = sampler.generate(prompts, temperature=0.0, max_new_tokens=length, seed=0).ids
    same = True
    for prompt, answer in zip(prompts, greedy, strict=True):
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=stop,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        same &= output[0, len(prompt) :].tolist() == answer
    sampled = sampler.generate(prompts, samples=options.samples, max_new_tokens=length, seed=0)
    differences = []
    for row, answer in enumerate(sampled.ids):
        prompt = prompts[row // options.samples]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logprob = logits.float().log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        differences.append(float((logprob - sampled.logprob_BT[row, : len(answer)]).abs().max()))
    return same, max(differences)


def _left_padded(prompts: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def _tokens(rows: list[list[int]], stop: list[int]) -> int:
    """Tokens up to and including the first stop token of each row."""
    ends = set(stop)
    return sum(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows)


def _dialogues(number: int) -> list[tuple[str, str]]:
    names = ("Anna", "Bert", "Clara", "David", "Emma")
    tools = ("book_hotel", "find_train", "book_table", "send_mail", "set_alarm")
    return [
        (
            SYSTEM.format(a=tools[i % 5], b=tools[(i + 2) % 5]) * (2 if i % 4 == 3 else 1),
            USER.format(a=tools[i % 5], b=tools[(i + 2) % 5], n=i, name=names[i % 5]),
        )
        for i in range(number)
    ]


def _texts(number: int) -> list[str]:
    return [text for dialogue in _dialogues(number) for text in dialogue]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder; default: an untrained tiny model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-least", type=float, default=3.0, help="ratio below which the exit status is 1")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
