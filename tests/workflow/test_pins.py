"""The two environments of verl hold what fits together: with verl's own metadata, with each other and with our code."""

from __future__ import annotations

import email
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from restool import environments
from restool.backends.verl import cpu_only

ROOT = Path(__file__).resolve().parents[2]
SHARED = ["verl", "transformers", "tensordict", "ray", "transferqueue"]  # whose functions we call, on CPU and GPU


def pins(name: str) -> dict[str, str]:
    """Canonical name → version of everything that an environment installs."""
    lines = (ROOT / "envs" / f"{name}.txt").read_text().splitlines()
    given = [line for line in lines if line and not line.startswith("#")]
    given += [line.split()[-1] for line in lines if line.startswith("# then:")]
    found = [Requirement(line) for line in given]
    assert all([s.operator for s in requirement.specifier] == ["=="] for requirement in found)
    names = [canonicalize_name(requirement.name) for requirement in found]
    assert len(names) == len(set(names)), "named twice"
    return dict(zip(names, (next(iter(r.specifier)).version for r in found), strict=True))


def test_what_our_code_calls_has_one_version_on_cpu_and_gpu():
    cpu, gpu = pins("verl-cpu"), pins("verl-gpu")
    assert {name: cpu[name] for name in SHARED} == {name: gpu[name] for name in SHARED}
    written_for = {name: cpu[name].partition("+")[0] for name in cpu_only.VERSIONS}
    assert written_for == cpu_only.VERSIONS


def test_the_versions_that_the_documentation_names_are_those_that_are_installed():
    page, gpu = (ROOT / "docs" / "verl.md").read_text(), pins("verl-gpu")
    for name in ("verl", "vllm", "torch", "transformers", "ray", "flash-attn"):
        assert f"{name} {gpu[name]}" in page, name


@pytest.mark.slow
def test_verls_own_metadata_is_content_with_the_gpu_pins():
    """Read from the wheel that the CPU environment has; verl names the versions in its extras."""
    python, gpu = environments.build("verl-cpu"), pins("verl-gpu")
    [metadata] = python.parents[1].glob("lib/python*/site-packages/verl-*.dist-info/METADATA")
    wanted = [Requirement(line) for line in email.message_from_string(metadata.read_text()).get_all("Requires-Dist")]
    extras = {"vllm", "verl-core", "flash-attn-cu130torch211"}
    checked = []
    for requirement in wanted:
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras)
        name = canonicalize_name(requirement.name)
        if applies and name != "verl":
            assert requirement.specifier.contains(gpu[name]), f"{requirement} but {gpu[name]}"
            checked.append(name)
    assert {"vllm", "torch", "transformers", "tensordict", "flash-attn", "ray", "numpy"} <= set(checked)
