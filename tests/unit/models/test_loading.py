from __future__ import annotations

import copy
import json

import pytest
import torch

from restool.core.errors import ModelError, RestoolError
from restool.models import chat, loading
from restool.models.sampling import make_sampler


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    path = tmp_path / "model"
    loading.save(model, tokenizer, path)
    return path


def test_a_saved_model_is_loaded_by_transformers_and_answers_identically(folder, model, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stock_model, stock_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = chat.prompt_ids(tokenizer, "You can call book_table.", "café in Lisbon, 18:30 <obs> [] </obs>")
    assert (
        chat.prompt_ids(stock_tokenizer, "You can call book_table.", "café in Lisbon, 18:30 <obs> [] </obs>") == prompt
    )
    assert stock_model.config.use_cache is True
    answer = stock_model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)
    ours_model, ours_tokenizer = loading.load(folder)
    sampler = make_sampler(ours_model, ours_tokenizer, chat.stop_ids(ours_tokenizer))
    ours = sampler.generate([prompt], temperature=0.0, max_new_tokens=20, seed=0)
    assert answer[0, len(prompt) :].tolist() == ours.ids[0]
    state = ours_model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_dtype(folder):
    loaded, _ = loading.load(folder, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16


def _fails(path) -> str:
    with pytest.raises(ModelError) as caught:
        loading.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    assert "no config.json" in _fails(tmp_path)
    assert "no model folder" in _fails(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert "no model folder" in _fails(tmp_path / "file")


def test_damaged_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert str(folder) in _fails(folder)
    weights.write_bytes(b"\x00" * 50)
    assert str(folder) in _fails(folder)
    weights.unlink()
    assert str(folder) in _fails(folder)


def test_missing_weights_inside_the_file_are_refused(folder, model):
    from safetensors.torch import save_file

    state = {name: value.clone() for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "layers.1.mlp" in _fails(folder)


def test_a_damaged_configuration_is_refused(folder):
    (folder / "config.json").write_text("{")
    _fails(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert "no-such-model" in _fails(folder)


def test_a_missing_chat_template_names_the_fix(model, tokenizer, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    loading.save(model, bare, tmp_path / "bare")
    assert "chat_template.jinja" in _fails(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        chat.prompt_ids(bare, "a", "b")


def test_saving_leaves_no_half_folder(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(RestoolError, match="disk full"):
        loading.save(model, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_devices():
    assert loading.resolve_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert loading.resolve_device("auto") == torch.device("cuda")
    else:
        assert loading.resolve_device("auto") == torch.device("cpu")
        with pytest.raises(ModelError, match="no CUDA device"):
            loading.resolve_device("cuda")
