"""Speed of scoring API-Bank: all 597 answers read, judged and written down with their summary.

    RESTOOL_MIRROR=DIR python benchmarks/api_bank.py [--at-most 1]

Answers hold one call each, every third of them the right one, behind some words of thought. Prints CPU seconds, the
libraries that scoring imports included, and the memory of this process. Exit status 1 if it takes more.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from restool import files, preparation
from restool.data.api_bank import load_samples
from restool.experiments import compose_run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-most", type=float, default=1.0, help="CPU seconds")
    options = parser.parse_args()
    settings = compose_run(["eval=paper"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preparation.prepare_benchmark("api-bank", settings.data.mirror, folder, report=print)
        samples = load_samples(folder / "benchmarks" / "api_bank")
        files.write_json_lines(
            folder / "answers.jsonl",
            [{"id": row["id"], "text": _answer(row["gold"], number)} for number, row in enumerate(samples)],
        )
        started = time.process_time()
        from restool.evaluation import api_bank

        given = {"answers": folder / "answers.jsonl", "report": lambda line: None}
        summary = api_bank.evaluate(None, folder, folder / "out", settings, **given)
        spent = time.process_time() - started
    right = sum(summary["categories"][f"strict/level-{level}"]["correct"] for level in (1, 2, 3))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"scoring {len(samples)} answers, {right} of them right: {spent:.2f} CPU seconds, {memory:.0f} MB")
    return int(spent > options.at_most)


def _answer(gold: dict[str, object], number: int) -> str:
    call = gold if number % 3 == 0 else {**gold, "name": "another"}
    return f"<think> {'so I will call ' * 20}</think>\n<tool_call>\n{json.dumps(call)}\n</tool_call>"


if __name__ == "__main__":
    sys.exit(main())
