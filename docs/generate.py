"""Write what is generated from the code: docs/methods.md and workflow/schemas/*.json.

Run `.venv/bin/python docs/generate.py` after a change of the registry or of the typed configuration; a test fails
until the files on disk are what this program writes.
"""

from __future__ import annotations

import json
from pathlib import Path

from restool.algorithms import ALGORITHMS, Algorithm
from restool.explanations import CONFIDENCE, parts
from restool.settings import ExperimentSettings, RunSettings, SiteSettings, WorkflowSettings

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {
    "config": WorkflowSettings,
    "experiment": ExperimentSettings,
    "run": RunSettings,
    "site": SiteSettings,
}
INTRODUCTION = """\
# Methods

*Generated from the registry, `src/restool/algorithms.py`, by `docs/generate.py`; do not edit.*

A method is a composition of core functions: token weights, an advantage, a surrogate and an aggregate. `restool
methods` prints the same list; `configs/method/<id>.yaml` holds the values. The column "known from" says how sure we
are that a composition is what its source does:
"""


def generated() -> dict[Path, str]:
    """Path → content of every generated file."""
    files = {ROOT / "docs" / "methods.md": methods_page()}
    for name, settings in SCHEMAS.items():
        schema = json.dumps(settings.model_json_schema(), indent=2, ensure_ascii=False)
        files[ROOT / "workflow" / "schemas" / f"{name}.schema.json"] = schema + "\n"
    return files


def methods_page() -> str:
    meanings = "\n".join(f"- *{name}*: {meaning}" for name, meaning in CONFIDENCE.items())
    return "\n".join([INTRODUCTION, meanings, *(_section(record) for record in ALGORITHMS.values())]) + "\n"


def _section(record: Algorithm) -> str:
    composition = ", ".join(f"{part} `{name}`" for part, name in parts(record).items())
    facts = [
        ("source", record.paper),
        ("composition", composition or "none"),
        ("needs", ", ".join(sorted(record.needs)) or "nothing special"),
        ("known from", record.confidence),
    ]
    lines = [f"\n## {record.title} (`{record.id}`)\n", record.summary, ""]
    lines += [f"- {name}: {value}" for name, value in facts]
    lines += [f"- deviation: {deviation}" for deviation in record.deviations]
    return "\n".join(lines)


if __name__ == "__main__":
    for path, content in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))
