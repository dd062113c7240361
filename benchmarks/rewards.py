"""Speed of the rewards: 2,048 answers of a real answer's size, on one core.

    python benchmarks/rewards.py [--answers 2048] [--at-most 0.15]

Prints CPU seconds (best of five) for each preset. Exit status 1 if the slowest exceeds ``--at-most``.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from answers import answer

from restool.core.rewards import PRESETS, score_batch


def main() -> int:
    options = _options()
    labels = [answer(random.Random(i // 8), lambda calls: 480) for i in range(options.answers)]
    answers = [answer(random.Random(i), lambda calls: 480) if i % 2 else label for i, label in enumerate(labels)]
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2048)
    parser.add_argument("--at-most", type=float, default=0.15, help="CPU seconds above which it fails")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
