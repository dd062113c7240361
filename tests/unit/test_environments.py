from __future__ import annotations

import threading

import pytest

from restool import environments
from restool.core.errors import ToolEnvironmentError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An environment definition that needs no index."""
    definitions = tmp_path / "envs"
    definitions.mkdir()
    (definitions / "small.txt").write_text("# pip-options: --no-index --no-deps\n")
    monkeypatch.setattr(environments, "_definitions", lambda: definitions)
    monkeypatch.setenv("RESTOOL_ENVS", str(tmp_path / "built"))
    return tmp_path


def test_the_errors_say_what_to_do(root):
    with pytest.raises(ToolEnvironmentError, match="restool env build small"):
        environments.python("small")
    with pytest.raises(ToolEnvironmentError, match=r"no environment 'smal' \(did you mean 'small'\?\)"):
        environments.build("smal")


def test_a_failing_build_is_one_line_and_leaves_nothing_that_counts(root):
    (root / "envs" / "small.txt").write_text("# pip-options: --no-index\nno-such-package==1\n")
    with pytest.raises(ToolEnvironmentError, match="no-such-package"):
        environments.build("small")
    with pytest.raises(ToolEnvironmentError, match="not built"):
        environments.python("small")


def test_built_once_rebuilt_when_incomplete_and_renamed_when_changed(root):
    lines: list[str] = []
    threads = [
        threading.Thread(target=environments.build, args=("small",), kwargs={"report": lines.append}) for _ in "12"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines) == 1
    assert environments.python("small").exists()
    environments.stamp("small").unlink()  # as if killed before the end
    environments.build("small", report=lines.append)
    assert len(lines) == 2
    before = environments.path("small")
    (root / "envs" / "small.txt").write_text("# pip-options: --no-index\n")
    assert environments.path("small") != before


def test_bfcl_environment_is_the_pinned_one():
    environments.build("bfcl")
    found = environments.packages("bfcl")
    assert found["bfcl-eval"] == "2026.3.23"
    assert found["mpmath"] == "1.3.0"
    assert "numpy" not in found
