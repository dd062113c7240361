"""From configuration to prepared data: a folder of parquet files, the benchmarks, the tiny model and a manifest.

The folder is built beside its place and renamed, with the manifest written last: it is whole or absent.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restool import files, seals
from restool.core.errors import DataError, ModelError
from restool.data import api_bank, bfcl_export, overlap, rows
from restool.data.fetch import API_BANK, Fetcher, Unreachable, mirror_folder
from restool.data.rows import DataSet, Demonstration, Row
from restool.settings import RunSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Report = Callable[[str], None]

MANIFEST = "manifest.json"
_VERSION = 2  # raise when the same settings come to mean other data, or other files
_NOT_CONTENT = {"mirror"}  # where files are looked for says nothing about what they hold
_ENCODED_AT_ONCE = 1000
_HOW_TO_ADD = "`restool prepare` adds it once it can be had, and so does the workflow once RESTOOL_MIRROR has it"


def prepared_id(settings: RunSettings) -> str:
    """``<model>-<data>-<hash of the settings that decide the prepared data>``."""
    return f"{settings.model.name}-{settings.data.name}-{_identity(settings)}"


def prepare(settings: RunSettings, out: Path, *, report: Report) -> dict[str, Any]:
    """Make the prepared data at ``out`` and return its manifest; at once if it is there and whole.

    Raises :class:`DataError` (a source is unreachable or corrupt, ``out`` holds something else) and
    :class:`ModelError` (the model's tokenizer cannot be had). A killed call leaves nothing that counts.
    """
    from filelock import FileLock

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{out.name}.lock"):
        manifest = _existing(out, settings, report)
        if manifest is None:
            _clear(out)
            with files.atomic_path(out) as temporary:
                temporary.mkdir()
                _build(settings, temporary, _cache(out), report)
            manifest = files.read_json(out / MANIFEST)
    return manifest


def prepare_benchmark(benchmark: str, mirror: str | None, out: Path, *, report: Report) -> None:
    """What scoring somebody's checkpoint on ``benchmark`` needs, and no more, at ``out``: API-Bank's samples for
    ``api-bank``, the prompt skeleton of rlla_4k for ``bfcl`` (None if it cannot be had: the native format needs
    none). At once if it is there."""
    from restool.data import rlla

    if (out / MANIFEST).exists() and (benchmark != "bfcl" or files.read_json(out / MANIFEST)["skeleton"]):
        return
    fetcher = Fetcher(mirror_folder(mirror), _cache(out), report)
    manifest: dict[str, Any] = {"name": benchmark, "benchmarks": {}, "skeleton": None}
    if benchmark == "api-bank":
        path = Path("benchmarks") / "api_bank"
        api_bank.fetch(fetcher, out / path)
        manifest["benchmarks"] = {"api_bank": {"available": True, "reason": None, "path": str(path)}}
    else:
        try:
            manifest["skeleton"] = rlla.published_skeleton(fetcher)
        except Unreachable as error:
            report(f"no prompts in the rlla format: {error}")
    files.write_json(out / MANIFEST, manifest | {"sources": list(fetcher.sources.values())})


def _identity(settings: RunSettings) -> str:
    data = settings.data.model_dump(mode="json", exclude=_NOT_CONTENT)
    model = settings.model.model_dump(mode="json", include={"name", "path", "revision", "tiny", "thinking"})
    return files.content_hash({"version": _VERSION, "data": data, "model": model}, length=10)


def _existing(out: Path, settings: RunSettings, report: Report) -> dict[str, Any] | None:
    """The manifest of ``out`` if it is what was asked for and no file is missing or changed."""
    if not (out / MANIFEST).exists():
        return None
    try:
        manifest = files.read_json(out / MANIFEST)
    except files.FileError:
        report(f"{out / MANIFEST} cannot be read; preparing the data again")
        return None
    if manifest.get("identity") != _identity(settings):
        raise DataError(f"{out} holds data prepared with other settings; choose another folder or delete it")
    for problem in seals.damage(out, manifest.get("sealed", {})):
        report(f"{problem}; preparing the data again")
        return None
    for split, entry in manifest["files"].items():
        path = out / f"{split}.parquet"
        if not path.is_file() or files.sha256(path) != entry["sha256"]:
            report(f"{path} is missing or was changed; preparing the data again")
            return None
    if settings.model.tiny and not (out / "model" / "config.json").is_file():
        report(f"{out / 'model'} is missing; preparing the data again")
        return None
    if _lacks_api_bank(manifest) and _reaches_api_bank(settings, out):
        report("API-Bank can be had now; preparing the data again")
        return None
    return manifest


def can_be_completed(settings: RunSettings, out: Path) -> bool:
    """Whether ``out`` was prepared without API-Bank and a mirror or an earlier download has it now (no network)."""
    if not _lacks_api_bank(files.read_json(out / MANIFEST)):
        return False
    fetcher = Fetcher(mirror_folder(settings.data.mirror), _cache(out), lambda line: None)
    return all(fetcher.has(file) for file in API_BANK.values())


def _lacks_api_bank(manifest: dict[str, Any]) -> bool:
    return manifest.get("benchmarks", {}).get("api_bank", {}).get("available") is False


def _reaches_api_bank(settings: RunSettings, out: Path) -> bool:
    fetcher = Fetcher(mirror_folder(settings.data.mirror), _cache(out), lambda line: None, attempts=1)
    try:
        return all(fetcher.get(file) for file in API_BANK.values())
    except Unreachable:
        return False


def _clear(out: Path) -> None:
    """Remove what stands in the way: leftovers of killed calls and a damaged or half-deleted earlier result."""
    for leftover in out.parent.glob(f".{out.name}.*.tmp"):  # safe under the lock
        shutil.rmtree(leftover, ignore_errors=True)
    if not out.exists():
        return
    ours = re.compile(r"[a-z_]+\.parquet|manifest\.json|training_hashes\.json|model|benchmarks|bfcl_synthetic|\..*")
    foreign = sorted(path.name for path in out.iterdir() if not ours.fullmatch(path.name))
    if foreign:
        raise DataError(f"{out} holds other files ({', '.join(foreign[:3])}); choose another folder or delete it")
    shutil.rmtree(out)


def _cache(out: Path) -> Path:
    """Where verified downloads stay: results/cache beside results/prepared."""
    return (out.parent.parent if out.parent.name == "prepared" else out.parent) / "cache"


def _build(settings: RunSettings, folder: Path, cache: Path, report: Report) -> None:
    fetcher = Fetcher(mirror_folder(settings.data.mirror), cache, report)
    data = _load(settings, fetcher, report)
    benchmarks = {"api_bank": _api_bank(settings, fetcher, folder, report)}
    tokenizer = _tokenizer(settings, data, folder, report)
    _measure_and_filter(settings, data, tokenizer)
    for split, content in data.splits.items():
        rows.write_rows(folder / f"{split}.parquet", content)
    if settings.data.kind == "synthetic":
        data.counts["bfcl_synthetic"] = bfcl_export.write(data.splits["held_out"], folder)
    hashes = overlap.write(folder, {name: data.splits[name] for name in data.splits if name not in data.held_out})
    files.write_json(folder / MANIFEST, _manifest(settings, data, folder, fetcher, benchmarks, hashes))


def _load(settings: RunSettings, fetcher: Fetcher, report: Report) -> DataSet:
    if settings.data.kind == "rlla":
        from restool.data import rlla

        return rlla.load(settings.data, fetcher)
    from restool.data import synthetic

    if settings.data.synthetic is None:
        raise DataError("data.kind=synthetic needs the section data.synthetic")
    report("generating the synthetic tasks")
    return synthetic.load(settings.data.synthetic)


def _api_bank(settings: RunSettings, fetcher: Fetcher, folder: Path, report: Report) -> dict[str, Any]:
    """Copy API-Bank into the prepared data; where it is optional, an unreachable source is recorded instead."""
    path = Path("benchmarks") / "api_bank"
    try:
        api_bank.fetch(fetcher, folder / path)
    except Unreachable as error:
        if not settings.data.optional_benchmarks:
            raise
        report(f"going on without API-Bank: {error}")
        return {"available": False, "reason": f"{error}; {_HOW_TO_ADD}", "path": None}
    return {"available": True, "reason": None, "path": str(path)}


def _manifest(
    settings: RunSettings,
    data: DataSet,
    folder: Path,
    fetcher: Fetcher,
    benchmarks: dict[str, Any],
    hashes: dict[str, Any],
) -> dict[str, Any]:
    written = {
        split: {"rows": len(content), "sha256": files.sha256(folder / f"{split}.parquet")}
        for split, content in data.splits.items()
    }
    return {
        "name": settings.data.name,
        "kind": settings.data.kind,
        "identity": _identity(settings),
        "fingerprint": rows.fingerprint(data.splits),
        "files": written,
        "held_out_splits": list(data.held_out),
        "sources": list(fetcher.sources.values()),
        "counts": data.counts,
        "lengths": data.lengths,
        "dropped": data.dropped,
        "notes": data.notes,
        "benchmarks": benchmarks,
        "training_hashes": hashes,
        "skeleton": data.skeleton,
        "sealed": seals.sizes(folder, folder.rglob("*")),
    }


# ------------------------------------------------------------------------------------------- tokenizer, lengths


def _tokenizer(settings: RunSettings, data: DataSet, folder: Path, report: Report) -> PreTrainedTokenizerFast:
    """The model's tokenizer. The tiny model gets one trained on the training texts, and is saved with it."""
    if settings.model.tiny is None:
        return _published_tokenizer(settings, report)
    from restool.models import loading, tiny

    report("training the tokenizer and building the tiny model")
    tokenizer = tiny.train_tokenizer(_training_texts(data), settings.model.tiny.vocabulary)
    loading.save(tiny.build_tiny(settings.model.tiny, tokenizer), tokenizer, folder / "model")
    return tokenizer


def _published_tokenizer(settings: RunSettings, report: Report) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face model; its weights are fetched too, because compute nodes may be offline."""
    from transformers import AutoTokenizer

    path, revision = settings.model.path, settings.model.revision
    try:
        if not Path(path).is_dir():
            from huggingface_hub import snapshot_download

            report(f"fetching {path}")
            path = snapshot_download(path, revision=revision, ignore_patterns=["original/*", "*.pth", "*.gguf"])
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the hub's own errors, OSError, ValueError of a broken file
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"cannot get the model {settings.model.path}: {reason}; give a folder with model.path=DIR or go online"
        ) from error


def _training_texts(data: DataSet) -> Iterable[str]:
    """What a model reads and writes in training, with the names of the chat's roles."""
    yield from ("system\n", "user\n", "assistant\n") * 100  # often enough to become one token each
    for split, content in data.splits.items():
        if split not in data.held_out:
            yield from (text for row in content for text in (row.system, row.user, _answer(row)))


def _answer(row: Row) -> str:
    return row.output if isinstance(row, Demonstration) else row.ground_truth


def _measure_and_filter(settings: RunSettings, data: DataSet, tokenizer: PreTrainedTokenizerFast) -> None:
    """Fill ``data.lengths``; drop the RL prompts that are too long (unless they are to be cut), and count them."""
    from restool.models.chat import prompt_ids_batch

    limit = settings.data.max_prompt_tokens
    for split, content in data.splits.items():
        texts = [(row.system, row.user) for row in content]
        prompts = [len(ids) for ids in prompt_ids_batch(tokenizer, texts, thinking=settings.model.thinking)]
        answers = _encoded_lengths(tokenizer, [_answer(row) for row in content])
        data.lengths[split] = {
            "prompt_tokens": summary(prompts),
            "answer_tokens": summary(answers),
            "system_characters": summary([len(row.system) for row in content]),
            "user_characters": summary([len(row.user) for row in content]),
            "prompt_characters": summary([len(row.system) + len(row.user) for row in content]),
            "answer_characters": summary([len(_answer(row)) for row in content]),
            "prompts_over_limit": sum(tokens > limit for tokens in prompts),
        }
        if split == "train" and settings.data.overlong == "drop":
            kept = [row for row, tokens in zip(content, prompts, strict=True) if tokens <= limit]
            if len(kept) < len(content):
                data.dropped[f"train: prompt longer than {limit} tokens"] = len(content) - len(kept)
                data.splits[split] = kept
            if not kept:
                raise DataError(f"no training prompt has at most {limit} tokens; raise data.max_prompt_tokens")


def _encoded_lengths(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[int]:
    lengths: list[int] = []
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        encoded = tokenizer(list(texts[start : start + _ENCODED_AT_ONCE]), add_special_tokens=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
    return lengths


def summary(values: Sequence[int]) -> dict[str, float | int]:
    """Mean, median, 90th and 99th percentile (nearest rank below) and maximum; {} of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {f"p{share}": ordered[(len(ordered) - 1) * share // 100] for share in (50, 90, 99)}
    return {"mean": round(sum(ordered) / len(ordered), 1), **at, "max": ordered[-1]}
