"""What a person sees: the saved view of an experiment in MLflow's own pages, opened in a headless browser."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import matplotlib.image
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]

LINES = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length"
BARS = "document.querySelectorAll('.js-plotly-plot .barlayer .trace').length"


@pytest.fixture(scope="module", autouse=True)
def _browser() -> None:
    if problem := browser.install():
        pytest.skip(problem)


@contextmanager
def opened(clone, *arguments: str) -> Iterator[str]:
    """`restool mlflow …`; yields the address that it prints."""
    process = clone.start("restool", "mlflow", *arguments, "--no-browser", "--port", "5300")
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("http://"):
                yield line.strip()
                break
        else:
            pytest.fail("".join(said))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def look(url: str, picture: Path, methods: list[str]) -> browser.Seen:
    """The page as soon as the charts of the first row have a line a method."""
    named = " && ".join(f"document.body.innerText.includes('{method}')" for method in methods)
    until = f"{named} && {LINES} >= {2 * len(methods)}"
    return browser.look(url, picture, until=until, storage=browser.QUIET_MLFLOW)


def test_the_saved_view_shows_the_methods_side_by_side(finished_clone, tmp_path: Path) -> None:
    with opened(finished_clone, "test") as url:
        assert "viewStateShareKey=test" in url
        seen = look(url, tmp_path / "methods.png", ["grpo", "rest_fixed"])
    for text in ("Group: grpo", "Group: rest_fixed", "reward/total", "reward/correctness", "Methods side by side"):
        assert text in seen.text
    assert "Error" not in seen.text
    assert "sft" not in seen.text, "only what trains by RL is compared"
    pixels = matplotlib.image.imread(seen.picture)
    assert pixels.shape[:2] == (1000, 1600)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100


def test_chosen_methods_are_shown_alone(finished_clone, tmp_path: Path) -> None:
    with opened(finished_clone, "test", "rest_fixed") as url:
        seen = look(url, tmp_path / "chosen.png", ["rest_fixed"])
    assert "Group: rest_fixed" in seen.text
    assert "Group: grpo" not in seen.text


def test_the_description_of_the_experiment_links_to_the_view(finished_clone, tmp_path: Path) -> None:
    with opened(finished_clone, "test") as url:
        page = url.partition("/runs?")[0] + "/runs"
        link = "[...document.querySelectorAll('a')].find(a => a.href.includes('viewStateShareKey=test'))"
        seen = browser.look(page, tmp_path / "experiment.png", until=link)
    assert "side by side" in seen.text
