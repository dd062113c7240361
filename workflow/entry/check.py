"""./run-tests: set up, then lint, layers, workflow format, and the tests, the fast ones first.

Standard library only; everything else is installed by the first step.
"""

from __future__ import annotations

import os
import subprocess
import sys

import environment

ROOT = environment.ROOT
HELP = """usage: ./run-tests [--all] [PYTEST ARGUMENTS]

Sets up .venv with the test tools, then checks style (ruff), layers (import-linter), the workflow's format (snakefmt)
and runs the tests: first the fast ones side by side, then those that run the pipeline through its command line.

  --all    also the slow ones (minutes each, or needing more than the core environment)

With further arguments only pytest runs, with them: ./run-tests tests/unit/core -k rewards
"""
WORKFLOW_FILES = ["Snakefile", "rules", "workflow/plan.smk"]


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    every = "--all" in arguments
    chosen = [argument for argument in arguments if argument != "--all"]
    try:
        environment.ensure(with_tests=True)
    except environment.SetupError as error:
        print(f"restool: {error}", file=sys.stderr)
        return 2
    if chosen:
        return _call("pytest", *([] if every else ["-m", "not slow"]), *chosen)
    failed = [name for name, command in _checks() if _call(*command)]
    for name, selection in _tests(every):
        print(f"== tests: {name}", flush=True)
        if _call("pytest", *QUIETLY, "-m", selection, *SIDE_BY_SIDE.get(name, [])) not in (0, NO_TESTS):
            failed.append(f"tests ({name})")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


NO_TESTS = 5
QUIETLY = ["-q", "--durations=12", "--durations-min=2"]  # the slowest are named: what all wait for
SIDE_BY_SIDE = {
    "fast": ["-n", "2"],
    # The pipeline's tests, half of the time in all, come first; reordered, they would follow all others on one process.
    "end to end": ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"],
}


def _checks() -> list[tuple[str, list[str]]]:
    return [
        ("ruff", ["ruff", "check", "--quiet", "."]),
        ("layers", ["lint-imports"]),
        ("snakefmt", ["snakefmt", "--check", "--line-length", "110", *WORKFLOW_FILES]),
    ]


def _tests(every: bool) -> list[tuple[str, str]]:
    stages = [("fast", "not slow and not end_to_end"), ("end to end", "end_to_end and not slow")]
    return [*stages, ("slow", "slow")] if every else stages


def _call(program: str, *arguments: str) -> int:
    """Run a program of .venv from the root; one thread a process, because the tests run side by side."""
    path = f"{environment.BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    settings = {**os.environ, "PATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.run([str(environment.BIN / program), *arguments], cwd=ROOT, env=settings).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
