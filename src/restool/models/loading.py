"""Model folders in Hugging Face format: load, save, choose a device."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from restool import files
from restool.core.errors import ModelError
from restool.files import atomic_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_device(name: Literal["auto", "cpu", "cuda"] | str) -> torch.device:
    """``auto`` is the first CUDA device if there is one, else the CPU."""
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise ModelError("backend.device=cuda, but torch sees no CUDA device; use backend.device=auto or cpu")
    return torch.device(name)


def load(
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a causal language model and its tokenizer from a folder, or by its Hugging Face id.

    The model is in evaluation mode. A folder is never looked up on the network. Raises :class:`ModelError`, in
    one line, for a folder that is no model, a damaged file or a tokenizer without a chat template.
    """
    source = _source(path)
    _quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": Path(source).is_dir(), "revision": revision}
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, found = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # whatever a damaged file makes the libraries raise
        raise ModelError(f"cannot load a model from {path}: {_one_line(error)}") from error
    if found["missing_keys"]:  # the library would go on with random values
        missing = sorted(found["missing_keys"])
        raise ModelError(f"{path} lacks {len(missing)} weights, the first of them {missing[0]}; copy the folder again")
    return model.to(device).eval(), _with_template(tokenizer, path)


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or Hugging Face id, with its chat template; errors as in :func:`load`."""
    source = str(path) if Path(path).is_dir() else _source(path)
    _quiet()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir(), revision=revision)
    except Exception as error:  # whatever a damaged file makes the library raise
        raise ModelError(f"cannot load a tokenizer from {path}: {_one_line(error)}") from error
    return _with_template(tokenizer, path)


def _with_template(tokenizer: PreTrainedTokenizerFast, path: str | Path) -> PreTrainedTokenizerFast:
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer in {path} has no chat template; use an instruct model, or add chat_template.jinja to it"
        )
    return tokenizer


def traits(path: str) -> dict[str, Any]:
    """What a model folder says of itself: the type of its weights as ``dtype`` (float32 or bfloat16), and no
    thinking switch set. An id of the hub says nothing here: bfloat16, as all models of today have."""
    config = Path(path) / "config.json"
    known = files.read_json(config) if config.is_file() else {"dtype": "bfloat16"}
    stored = known.get("dtype") or known.get("torch_dtype")
    return {"dtype": "bfloat16" if stored in ("bfloat16", "float16") else "float32", "thinking": None}


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: str | Path) -> None:
    """Write model and tokenizer as one folder that ``transformers`` and vLLM load; whole or absent.

    ``path`` must not exist yet (or be an empty folder).
    """
    _quiet()
    with atomic_path(path) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _source(path: str | Path) -> str:
    folder = Path(path)
    if folder.is_dir():
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{path} is no model folder: it has no {' and no '.join(missing)}")
        return str(folder)
    if folder.exists() or not _HUB_ID.fullmatch(str(path)):
        raise ModelError(f"{path} is no model folder; give a folder with config.json or an id such as Qwen/Qwen3-1.7B")
    return str(path)


def _quiet() -> None:
    """Neither progress bars nor advice from the libraries: every message to the user is ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"
