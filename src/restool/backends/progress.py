"""Lines about where training is."""

from __future__ import annotations

import time
from collections.abc import Callable

_LINES = 20  # of a whole run


class Progress:
    """A line now and then: where training is, and how long it will take."""

    def __init__(self, report: Callable[[str], None], begin: int, total: int):
        self.report, self.begin, self._total = report, begin, total
        self._every = max(1, total // _LINES)
        self._started = time.perf_counter()

    def show(self, step: int, metrics: dict[str, float]) -> None:
        if step % self._every and step != self._total:
            return
        seconds = (time.perf_counter() - self._started) / (step - self.begin)
        self.report(
            f"step {step}/{self._total}{_summary(metrics)} | {_duration(seconds)} a step, "
            f"{_duration(seconds * (self._total - step))} left"
        )


def _summary(metrics: dict[str, float]) -> str:
    text = ""
    for title, prefix in (("loss", "loss/sft"), ("reward", "reward/"), ("entropy", "entropy/")):
        found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        if found:
            text += f" | {title} " + " ".join(f"{name} {value:.2f}".strip() for name, value in found.items())
    return text


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
