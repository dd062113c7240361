"""vLLM's life and death with a stand-in that has its command line; and (slow) the real one on a CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from restool import files
from restool.core.errors import ModelError, ToolEnvironmentError
from restool.evaluation import answering, api_bank, bfcl
from restool.evaluation.answering import GeneratedAnswer, LocalModel, Prompt, answer, vllm, vllm_log
from restool.experiments import compose_run
from restool.settings import DecodingSettings, TinyArchitecture

ROOT = Path(__file__).parents[3]
ON_A_CPU = compose_run(["backend.device=cpu"])
DECODING = DecodingSettings(max_new_tokens=6, temperature=0.0, max_model_tokens=80, batch_tokens=120)
STAND_IN = """
import argparse, json, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
for name in ("model", "served-model-name", "host", "dtype", "max-model-len", "max-num-seqs", "generation-config"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--port", type=int, required=True)
for name in ("disable-uvicorn-access-log", "enforce-eager"):
    parser.add_argument(f"--{name}", action="store_true", required=True)
options = parser.parse_args()
if options.dtype == "bfloat16":
    print("ValueError: this stand-in knows no bfloat16")
    sys.exit(1)
if options.dtype == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.dtype in ("deaf", "waiting"):
    print("(EngineCore pid=1) ERROR 11-25 09:03:27 [core.py:1346] EngineCore failed to start.")
    print("(Worker pid=2) ERROR 11-25 09:03:27 [executor.py:1047] some.where.ValueError: too little memory", flush=True)
    time.sleep(600)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send({"data": [{"id": options.served_model_name}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps([sum(body["prompt"]), body["max_tokens"], body["skip_special_tokens"]])
        choice = {"text": text, "finish_reason": "length"}
        self.send({"choices": [choice], "usage": {"completion_tokens": body["max_tokens"]}})

    def send(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
"""


def _save_tiny(path: Path, layers: int, vocabulary: int, texts: list[str]) -> Path:
    from restool.models import loading, tiny

    values = yaml.safe_load((ROOT / "configs/model/tiny.yaml").read_text())["tiny"]
    arch = TinyArchitecture(**(values | {"layers": layers, "vocabulary": vocabulary}))
    tokenizer = tiny.train_tokenizer(texts, arch.vocabulary)
    loading.save(tiny.build_tiny(arch, tokenizer), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return _save_tiny(tmp_path_factory.mktemp("models") / "tiny", 1, 400, ["You are a tool. please help"])


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> vllm.Installation:
    module = tmp_path / "site" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(STAND_IN)
    variables = vllm._variables
    monkeypatch.setattr(vllm, "_variables", lambda *given: variables(*given) | {"PYTHONPATH": str(tmp_path / "site")})
    return vllm.Installation(Path(sys.executable), "0", "cpu")


def _model(folder: Path, found: vllm.Installation, log: Path, dtype: str = "float32") -> vllm.VllmModel:
    return vllm.VllmModel(str(folder), found, dtype, None, log, lambda line: None)


def _group(head: int) -> list[int]:
    """The living processes of a group."""
    found = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in found if _is_there(pid) and os.getpgid(pid) == head]


def _is_there(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_prompts_are_our_samplers_and_the_server_ends_with_the_evaluation(folder, stand_in, tmp_path):
    from restool.models import chat, loading

    prompts = [Prompt.of("You are a tool.", "please " * n) for n in (1, 5, 60, 200)]
    model = _model(folder, stand_in, tmp_path / "vllm.log")
    found = answer(model, prompts, DECODING, 0)
    process = model._server._process.pid
    assert found == answer(model, prompts, DECODING, 0)
    assert model._server._process.pid == process  # one start for everything
    tokenizer = loading.load_tokenizer(folder)
    lengths = []
    for ids, got in zip(chat.dialogue_ids(tokenizer, [(p.messages, ()) for p in prompts]), found, strict=True):
        room = min(6, 80 - len(ids))
        lengths.append(room)
        text = json.dumps([sum(ids), room, False])
        assert got == (GeneratedAnswer(text, room, False) if room > 0 else GeneratedAnswer("", 0, False, True))
    assert lengths[0] == 6
    assert lengths[-1] < 0
    assert _is_there(process)
    model.close()
    assert not _is_there(process)


def test_a_server_that_does_not_start_says_why(folder, stand_in, tmp_path):
    model = _model(folder, stand_in, tmp_path / "vllm.log", dtype="bfloat16")
    with pytest.raises(ModelError, match=r"this stand-in knows no bfloat16.*sound, --engine transformers"):
        answer(model, [Prompt.of("", "please")], DECODING, 0)


def test_a_server_that_waits_for_an_engine_that_has_given_up_is_ended(folder, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "_LAST_SECONDS", 0.2)
    model = _model(folder, stand_in, tmp_path / "vllm.log", dtype="waiting")
    with pytest.raises(ModelError, match=r"does not start: ValueError: too little memory \(log"):
        answer(model, [Prompt.of("", "please")], DECODING, 0)


WRAPPER = (
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): "
)


@pytest.mark.parametrize(
    ("log", "status", "told"),
    [
        (
            # Three processes of vLLM 0.28: the worker, who cannot read the weights, and two that waited for it.
            "(Worker pid=3) ERROR 11-25 09:02:12 [multiproc_executor.py:941] Traceback (most recent call last):\n"
            "(Worker pid=3) ERROR 11-25 09:02:12 [multiproc_executor.py:941] a._rust.SafetensorError: cut off\n"
            "(EngineCore pid=2) Exception: WorkerProc initialization failed due to an exception in a background "
            f"process. See stack trace for root cause.\n{WRAPPER} {{}}\nsome.py:254: UserWarning: 2 leaked objects\n",
            1,
            "SafetensorError: cut off",
        ),
        (
            "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "(APIServer pid=1)   Value error, no such architecture [type=value_error, input_value=ArgsKwargs()]\n"
            "(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2.14/v/value_error\n",
            1,
            "no such architecture",
        ),
        (f"{WRAPPER} {{'EngineCore': -9}}\n", 1, "it was killed, as happens where memory does not suffice"),
        ("INFO loading\n", -9, "it was killed, as happens where memory does not suffice"),
        (
            "(APIServer pid=1) WARNING 11-25 09:42:52 [core_client.py:728] MPClient: engine core exited unexpectedly\n"
            "(APIServer pid=1) ERROR 11-25 09:42:52 [async_llm.py:744] EngineDeadError: see the root cause above.\n",
            0,
            "its engine is gone without a word, as happens where memory does not suffice",
        ),
        ("INFO loading\n", -11, "it was killed by signal 11 without a word on why"),
        ("", 3, "it ended with status 3 without a word on why"),
    ],
)
def test_the_cause_is_the_exception_that_the_others_point_at(log, status, told):
    assert vllm_log.cause(log, status) == told


def test_a_server_that_dies_is_named_and_another_run_starts_anew(folder, stand_in, tmp_path):
    prompts = [Prompt.of("", "please")]
    model = _model(folder, stand_in, tmp_path / "vllm.log")
    found = answer(model, prompts, DECODING, 0)
    model._server._process.kill()
    model._server._process.wait()
    with pytest.raises(ModelError, match="vLLM has ended"):
        answer(model, prompts, DECODING, 0)
    model.close()
    assert answer(model, prompts, DECODING, 0) == found
    model.close()


@pytest.mark.parametrize("dtype", ["float32", pytest.param("deaf", marks=pytest.mark.slow)])
def test_the_server_dies_with_a_killed_evaluation(folder, stand_in, tmp_path, dtype):
    """Also one that does not listen to SIGTERM."""
    program = f"""
import sys, time
from pathlib import Path
from restool.evaluation.answering import vllm
variables = vllm._variables
vllm._variables = lambda *given: variables(*given) | {{"PYTHONPATH": {str(tmp_path / "site")!r}}}
server = vllm.Server(vllm.Installation(Path(sys.executable), "0", "cpu"), "m", {dtype!r}, 80, Path("log"))
print(server._process.pid, flush=True)
server.wait(lambda line: print("healthy", flush=True) if "after" in line else None)
time.sleep(60)
"""
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    server = int(killed.stdout.readline())
    if dtype == "deaf":
        _wait(lambda: "too little memory" in (tmp_path / "log").read_text())
    else:
        assert killed.stdout.readline() == "healthy\n"
    assert len(_group(server)) == 2
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _wait(lambda: not _group(server))


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_vllm_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("RESTOOL_ENVS", str(tmp_path))
    with pytest.raises(ToolEnvironmentError, match="restool env build verl-cpu, or --engine transformers"):
        vllm.required("cpu")
    source = answering.Source(checkpoint="somewhere/model", engine="auto")
    assert isinstance(source.open(ON_A_CPU, tmp_path / "log", print), LocalModel)
    assert not any(name == "vllm" or name.startswith("vllm.") for name in sys.modules)


def test_auto_takes_vllm_where_it_is_there_but_on_a_cpu_never_for_the_workflow(folder, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "find", lambda device: stand_in)
    kinds = {
        (engine, planned): type(source.open(ON_A_CPU, tmp_path / "log", print))
        for engine in ("auto", "transformers", "vllm")
        for planned in (False, True)
        for source in [answering.Source(checkpoint=str(folder), engine=engine, planned=planned)]
    }
    assert [pair for pair, kind in kinds.items() if kind is vllm.VllmModel] == [
        ("auto", False),
        ("vllm", False),
        ("vllm", True),
    ]
    assert not (tmp_path / "log").exists()  # nothing was started


def test_the_cpu_gets_room_for_one_context_and_more(folder, tmp_path):
    assert vllm._cache_gib(str(folder), "float32", 8192) == 3
    shape = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    files.write_json(tmp_path / "config.json", shape | {"hidden_size": 2048})
    assert vllm._cache_gib(str(tmp_path), "float32", 32768) == 2 + 7  # 28 layers x 2 x 8 x 128 x 4 bytes a token


# --- the real one ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> vllm.Installation:
    found = vllm.find("cpu")
    if found is None:
        pytest.skip("the environment verl-cpu is not built")
    return found


@pytest.mark.slow
def test_vllm_on_a_cpu_answers_as_our_sampler_does(real, tmp_path, bfcl_data):
    """API-Bank and BFCL over HTTP, greedily. Most answers must be equal to the last character: rounding may part the
    two where two tokens are all but equally likely, and vLLM leaves out bytes at the end of an answer that make no
    whole character, where our decoder writes U+FFFD."""
    settings = compose_run(["eval.api_bank.max_new_tokens=32", "eval.bfcl.max_new_tokens=32", "eval.bfcl_limit=4"])
    settings = settings.model_copy(
        update={"eval": settings.eval.model_copy(update={"bfcl_categories": ["simple_python", "live_relevance"]})}
    )
    samples = _samples()[::75]
    skeleton = "Tools:\n{{TOOLS}}\n"
    files.write_json(tmp_path / "prepared" / "manifest.json", {"skeleton": skeleton})
    folder = _save_tiny(tmp_path / "model", 2, 700, [s.system + s.user for s in samples])
    questions = [answering.Question.of(s.id, s.system, s.user) for s in samples]

    def evaluated(model: answering.Answerer, out: Path) -> dict[str, str]:
        report = print
        found = answering.collect(model, questions, settings.eval.api_bank, 0, out / "api.jsonl", report=report)
        assert len([api_bank.item(s, found[s.id]) for s in samples]) == len(samples) == 8
        summary = bfcl.evaluate(model, tmp_path / "prepared", out, settings, report=report)
        assert summary["categories"]["simple_python"]["n"] == 4
        rows = files.read_json_lines(out / "answers.jsonl")
        return {row["id"]: row["text"] for row in rows} | {name: a.text for name, a in found.items()}

    model = _model(folder, real, tmp_path / "vllm.log")
    try:
        served = evaluated(model, tmp_path / "vllm")
        process = model._server._process.pid
    finally:
        model.close()
    assert not _is_there(process)
    own = evaluated(LocalModel(folder, "cpu", "float32"), tmp_path / "own")
    equal = [name for name in own if own[name] == served[name]]
    print(f"{len(equal)} of {len(own)} greedy answers are identical")
    assert own.keys() == served.keys()
    assert len(own) == 16
    assert len(equal) >= 12


def _samples() -> list[api_bank.Sample]:
    from restool.data import api_bank as data

    root = Path(os.environ.get("RESTOOL_MIRROR") or ROOT.parent / "shared" / "data")
    if not (root / "api_bank").is_dir():
        pytest.skip("API-Bank is not here (RESTOOL_MIRROR)")
    rows = data.load_samples(root / "api_bank")
    return [api_bank.Sample(r["id"], r["id"].rpartition("/")[0], r["system"], r["user"], r["gold"]) for r in rows]


@pytest.fixture
def command(real, mirror, tmp_path, monkeypatch) -> Callable[..., tuple[int, list[str]]]:
    """`restool evaluate api-bank` with vLLM: exit status and what it says, line by line."""
    monkeypatch.setenv("RESTOOL_MIRROR", str(mirror))

    def run(checkpoint: Path) -> tuple[int, list[str]]:
        program = [Path(sys.executable).with_name("restool"), "evaluate", "api-bank", "--checkpoint", checkpoint]
        places = ["--engine", "vllm", "--out", tmp_path / "out", "--results", tmp_path / "results"]
        done = subprocess.run([*program, *places, "eval.api_bank_limit=2"], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr.strip().splitlines()

    return run


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _rename(folder: Path) -> None:
    config = folder / "config.json"
    new = {"architectures": ["NobodysForCausalLM"], "model_type": "nobodys"}
    files.write_json(config, files.read_json(config) | new)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "cache", "told"),
    [
        (_cut, "1", r"SafetensorError: Error while deserializing header: incomplete metadata"),
        (_rename, "1", r"The checkpoint you are trying to load has model type `nobodys` but Transformers does not"),
        (
            lambda folder: None,
            "100000",
            r"ValueError: Available memory on node .* is less than requested memory for kv",
        ),
    ],
    ids=["cut", "unknown", "memory"],
)
def test_what_the_real_one_cannot_load_is_one_line_and_a_status(
    folder, command, tmp_path, monkeypatch, damage, cache, told
):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", cache)
    shutil.copytree(folder, tmp_path / "model")
    damage(tmp_path / "model")
    status, lines = command(tmp_path / "model")
    assert status == 2
    assert all("vLLM" in line for line in lines)  # that it starts, perhaps that it is still starting, why it does not
    assert re.match(rf"restool: error: vLLM does not start: {told}", lines[-1])
    assert str(tmp_path / "out" / "vllm.log") in lines[-1]


@pytest.mark.slow
def test_an_engine_that_is_killed_is_named_and_nothing_is_left(folder, real, tmp_path):
    model = _model(folder, real, tmp_path / "vllm.log")
    try:
        answer(model, [Prompt.of("", "please")], DECODING, 0)
        group = model._server._process.pid
        engine = next(pid for pid in _group(group) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"vLLM has ended: its engine is gone without a word"):
            answer(model, [Prompt.of("", "please")], DECODING, 0)
    finally:
        model.close()
    assert not _group(group)
