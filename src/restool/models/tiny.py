"""The built-in model: a from-scratch Qwen3 of about a million parameters, and its tokenizer.

It exists so that the whole path runs on a CPU in minutes. What it learns is a test of the machinery, never
evidence for or against the paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from restool.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen3 import Qwen3ForCausalLM

    from restool.settings import TinyArchitecture

# Ordinary added tokens, not special ones: a decoder that skips special tokens must keep them, because the
# reward reads them.
TAGS = tuple(f"<{slash}{name}>" for name in ("think", "tool_call", "response", "obs", "user") for slash in ("", "/"))
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# A run of letters, of digits, or of anything else: a word is the same token in a sentence and in JSON, and
# punctuation such as '": "' merges into one token.
_PIECES = "[A-Za-z]+|[0-9]+|[^A-Za-z0-9]+"

_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most ``vocabulary`` entries, tags and special tokens included.

    Every byte has an entry, so any text can be encoded. The same texts give the same tokenizer.
    Raises :class:`ModelError` if ``vocabulary`` cannot hold the bytes and the added tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary < len(alphabet) + len(TAGS) + len(SPECIAL):
        raise ModelError(
            f"a vocabulary of {vocabulary} cannot hold {len(alphabet)} bytes and "
            f"{len(TAGS) + len(SPECIAL)} added tokens; raise model.tiny.vocabulary"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    added = re.compile("|".join(map(re.escape, (*TAGS, *SPECIAL))))
    # Added tokens are cut out of the training text: they never reach the merges when text is encoded.
    tokenizer.train_from_iterator((piece for text in texts for piece in added.split(text)), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_tiny(arch: TinyArchitecture, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A randomly initialised float32 model; the same ``arch.init_seed`` gives the same bits.

    The global random state is left as it was.
    """
    import torch
    from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=arch.hidden_size,
        intermediate_size=arch.feed_forward,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        max_position_embeddings=arch.max_positions,
        initializer_range=arch.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta},
        tie_word_embeddings=True,
        use_cache=True,  # False would be saved, and transformers would recompute the prefix at every token
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arch.init_seed)
        model = Qwen3ForCausalLM(config)
    return model.float().eval()
