"""Made-up answers of realistic shape, for the benchmarks that score and weigh text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

WORDS = ["the", "user", "wants", "a", "table", "for", "two", "people", "near", "old", "town", "so", "I", "will", "call"]


def answer(random_: random.Random, thought_words: Callable[[int], int]) -> str:
    """Two or three calls with three parameters each behind a thought of ``thought_words(number of calls)`` words."""

    def pick() -> str:
        return random_.choice(WORDS)

    calls = [
        {
            "name": f"{pick()}_{pick()}",
            "parameters": {"city": pick(), "date": f"Apr {i + 1}", "guests": int(pick() > "t")},
        }
        for i in range(random_.randint(2, 3))
    ]
    thought = " ".join(pick() for _ in range(thought_words(len(calls))))
    return f"<think> {thought} </think>\n<tool_call>\n" + "\n".join(map(json.dumps, calls)) + "\n</tool_call>"
