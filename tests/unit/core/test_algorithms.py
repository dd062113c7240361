from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restool import algorithms
from restool.core.advantages import ADVANTAGES
from restool.core.aggregates import AGGREGATES
from restool.core.errors import ConfigurationError
from restool.core.rewards import score
from restool.core.scheme_arguments import ARGUMENTS, REQUIRED, check_arguments
from restool.core.surrogates import SURROGATES
from restool.core.weights import SCHEMES

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
PAPER = ["base", "sft", "tsft", "rsft", "ppo", "grpo", "sft_grpo", "dr_grpo", "toolrl", "rest_released", "rest_fixed"]
CONTROLS = ["masked_uniform", "uniform_released_normaliser", "static", "no_think", "name_only", "arguments_only"]


def test_the_registry_has_the_paper_and_the_controls() -> None:
    ids = [*PAPER, *CONTROLS, "shuffled", "optimal", "rest_entropy", "sft_rest", "rest_gspo"]
    assert set(ids) <= set(algorithms.ALGORITHMS)
    assert algorithms.get("rest").id == "rest_released"


@pytest.mark.parametrize("record", algorithms.ALGORITHMS.values(), ids=lambda record: record.id)
def test_every_record_can_be_composed(record: algorithms.Algorithm) -> None:
    assert record.needs <= set(algorithms.NEEDS)
    assert record.weights in SCHEMES
    if record.kind == "none":
        return
    assert record.surrogate in SURROGATES
    assert record.aggregate in AGGREGATES
    assert (record.kind == "rl") == (record.advantage in ADVANTAGES or record.advantage == "gae")
    assert ("critic" in record.needs) == (record.advantage == "gae")
    assert record.foldable == (record.kind == "rl")


@pytest.mark.parametrize("id", algorithms.ALGORITHMS)
def test_every_algorithm_has_a_method_whose_arguments_fit(id: str) -> None:
    method = yaml.safe_load((CONFIGS / "method" / f"{id}.yaml").read_text())
    assert (method["name"], method["algorithm"]) == (id, id)
    assert method["start"] == algorithms.get(id).start
    check_arguments(algorithms.get(id).weights, method.get("weights", {}))


def test_the_table_of_arguments_is_that_of_the_schemes() -> None:
    parameters = {name: list(inspect.signature(scheme).parameters.values())[1:] for name, scheme in SCHEMES.items()}
    assert {name: tuple(p.name for p in found) for name, found in parameters.items()} == ARGUMENTS
    needed = {name: tuple(p.name for p in found if p.default is p.empty) for name, found in parameters.items()}
    assert {name: found for name, found in needed.items() if found} == REQUIRED


@pytest.mark.parametrize("path", sorted((CONFIGS / "reward").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_reward_file_is_valid(path: Path) -> None:
    reward = yaml.safe_load(path.read_text())
    assert reward["name"] == path.stem
    assert score("", "", preset=reward["preset"], **reward["switches"]).correctness == 0


def test_what_is_not_offered_is_refused_with_the_way_to_provide_it() -> None:
    algorithms.check("grpo", {"groups"})
    with pytest.raises(ConfigurationError, match=r"ppo needs .*'critic': set training\.rl\.critic_learning_rate"):
        algorithms.check("ppo", {"groups", "offsets"})
    with pytest.raises(ConfigurationError, match="also needs form"):
        algorithms.check("rest_entropy", algorithms.NEEDS, {})
    with pytest.raises(ConfigurationError, match="did you mean 'rest_fixed'"):
        algorithms.get("rest_fixd")


def test_listing_methods_does_not_load_torch() -> None:
    code = "import sys, restool.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_checking_a_run_does_not_load_torch() -> None:
    code = (
        "import sys; from restool import backends; from restool.experiments import compose_run; "
        "[backends.check(compose_run([f'method={m}'])) for m in ('rest_fixed', 'rest_entropy')]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
