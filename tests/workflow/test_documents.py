"""Documents say what the programs do."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "README.md"]
BLOCK = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.DOTALL)


def commands() -> list[str]:
    """Every command line in a shell block of the documents, without comments."""
    lines = [line for page in PAGES for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]
    return sorted({line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")})


def test_generated_files_are_in_step_with_the_code():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [path.name for path, content in generate.generated().items() if path.read_text("utf-8") != content]
    assert stale == [], "run: .venv/bin/python docs/generate.py"


def test_relative_links_lead_somewhere():
    for page in PAGES:
        shown = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", shown):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_documents_name_no_place_of_one_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|tmp|root|opt|home)/", page.read_text()), page


def test_every_named_configuration_option_exists():
    for command in commands():
        for group, option in re.findall(
            r"\b(model|data|method|schedule|reward|training|backend|eval)=([\w.]+)", command
        ):
            assert (ROOT / "configs" / group / f"{option}.yaml").exists(), command


@pytest.mark.parametrize("command", [c for c in commands() if re.match(r"(\./reproduce-paper|snakemake)\b", c)])
def test_documented_workflow_commands_are_accepted(clone, command):
    words = shlex.split(command)
    if words[0] == "snakemake":
        call = [*words, "-n"]
    else:
        call = clone.reproduce(*words[1:], *([] if "--help" in words or "-n" in words else ["-n"]))
    done = clone.call(*call)
    assert done.status == 0, f"{command}\n{done.output}"


@pytest.mark.parametrize("command", [c for c in commands() if re.match(r"restool\b", c)])
def test_documented_verbs_and_options_of_restool_exist(clone, command):
    words = command.split()[1:]
    verb = [word for word in words if not word.startswith("-")][:1]
    if verb in (["evaluate"], ["env"], ["analyze"]) and len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]):
        verb = [verb[0], words[1]]
    help_text = clone.call("restool", *verb, "--help")
    if help_text.status:  # a verb that takes its second word as an argument
        help_text = clone.call("restool", verb[0], "--help")
    assert help_text.status == 0, help_text.output
    for option in re.findall(r"--[a-z][a-z-]+", command):
        assert option in help_text.output, f"{command}: {option}"
