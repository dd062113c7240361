from __future__ import annotations

import pytest
import torch

from restool.models import tiny
from restool.settings import TinyArchitecture

TEXTS = [
    "<think> I should call book_table and find_train for Anna in Lisbon at 18:30. </think>\n"
    '<tool_call>\n{"name": "book_table", "parameters": {"city": "Lisbon", "guests": 4}}\n</tool_call>',
    "<user> Please book a table in Lisbon for 4 people, naïve café 東京 </user>",
] * 5


def _architecture(**changes) -> TinyArchitecture:
    values = {
        "hidden_size": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "feed_forward": 48,
        "vocabulary": 400,
        "max_positions": 512,
        "rope_theta": 10000.0,
        "init_std": 0.02,
        "init_seed": 3,
    }
    return TinyArchitecture(**(values | changes))


def _sharpened(model):
    """An untrained model has norm weights of one and hardly any preferences: give it both."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            else:
                parameter.mul_(6)
    return model.eval()


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def architecture():
    """A function that makes the smallest architecture that has everything, with changes."""
    return _architecture


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def model(tokenizer):
    return _sharpened(tiny.build_tiny(_architecture(), tokenizer))


@pytest.fixture(scope="session")
def llama(tokenizer):
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _sharpened(LlamaForCausalLM(config))
