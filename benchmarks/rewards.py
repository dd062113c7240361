"""Speed of the rewards: 2,048 answers of a real answer's size, on one core.

    python benchmarks/rewards.py [--answers 2048] [--at-most 0.15]

Prints CPU seconds (best of five) for each preset. Exit status 1 if the slowest exceeds ``--at-most``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time

from restool.core.rewards import PRESETS, score_batch

WORDS = ["the", "user", "wants", "a", "table", "for", "two", "people", "near", "old", "town", "so", "I", "will", "call"]


def main() -> int:
    options = _options()
    labels = [_answer(random.Random(i // 8)) for i in range(options.answers)]
    answers = [_answer(random.Random(i)) if i % 2 else label for i, label in enumerate(labels)]
    size = sum(map(len, answers)) / len(answers)
    print(f"{len(answers)} answers of {size:.0f} characters, groups of 8, half of them right, CPU seconds")
    slowest = 0.0
    for preset in PRESETS:
        spent = []
        for repeat in range(5):
            started = time.process_time()
            score_batch(answers, labels, preset=preset, step=repeat, WITHLENGTH=True)
            spent.append(time.process_time() - started)
        slowest = max(slowest, min(spent))
        print(f"{preset:18}{min(spent):8.4f} s   {len(answers) / min(spent):10.0f} answers a second")
    return 0 if slowest <= options.at_most else 1


def _answer(random_: random.Random) -> str:
    """A thought of about 480 words and two or three calls with three parameters each."""

    def pick() -> str:
        return random_.choice(WORDS)

    calls = [
        {
            "name": f"{pick()}_{pick()}",
            "parameters": {"city": pick(), "date": f"Apr {i + 1}", "guests": int(pick() > "t")},
        }
        for i in range(random_.randint(2, 3))
    ]
    thought = " ".join(random_.choice(WORDS) for _ in range(480))
    return f"<think> {thought} </think>\n<tool_call>\n" + "\n".join(map(json.dumps, calls)) + "\n</tool_call>"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2048)
    parser.add_argument("--at-most", type=float, default=0.15, help="CPU seconds above which it fails")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
