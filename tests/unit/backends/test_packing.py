"""Packed log-probabilities are those of the plain forward pass, for any model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from restool.backends.local import attention
from restool.backends.local.packing import TokenScorer, Tree, can_pack
from restool.backends.local.session import recompute_activations


def trees(seed: int = 0) -> list[Tree]:
    """Trees of several shapes: answers alone, question and answer, one branch, one target."""
    random = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(97, (count,), generator=random).tolist()

    return [
        Tree(ids(9), [ids(4), ids(7), ids(1)], [4, 7, 1], [3, 0, 5]),
        Tree(ids(1), [ids(5)], [2], [1]),
        Tree(ids(14), [ids(8), ids(6)], [3, 6], [2, 4]),
    ]


def plain(model: torch.nn.Module, all_trees: list[Tree], temperature: float = 1.0) -> dict[int, Tensor]:
    """Log-probabilities of the targets, one branch at a time, without any mask."""
    found = {}
    for tree in all_trees:
        for branch, count, row in zip(tree.branches, tree.targets, tree.rows, strict=True):
            ids = torch.tensor([tree.prefix + branch])
            log_p = (model(input_ids=ids).logits[0, :-1] / temperature).log_softmax(-1)
            found[row] = log_p.gather(1, ids[0, 1:, None])[-count:, 0]
    return found


def other_model(name: str) -> torch.nn.Module:
    import transformers

    torch.manual_seed(1)
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    if name == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        return transformers.GPT2LMHeadModel(config).eval()
    if name == "mistral":
        config = transformers.MistralConfig(**sizes, **heads, sliding_window=4)
        return transformers.MistralForCausalLM(config).eval()
    config = transformers.MambaConfig(**sizes, state_size=4)
    return transformers.MambaForCausalLM(config).eval()


@pytest.mark.parametrize("micro_tokens", [20, 40, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("packed", [True, False])
def test_scores_equal_those_of_plain_rows(model, packed, temperature, micro_tokens):
    scorer = TokenScorer(model, temperature=temperature, packed=packed)
    expected = plain(model, trees(), temperature)
    seen = set()
    for batch in scorer.micro_batches(trees(), micro_tokens):
        scored = scorer(batch)
        for row, logprob_T in zip(scored.rows_B.tolist(), scored.logprob_BT, strict=True):
            count = len(expected[row])
            assert torch.allclose(logprob_T[:count], expected[row], atol=1e-5)
            assert (logprob_T[count:] == 0).all()
            seen.add(row)
    assert seen == set(range(6))


@pytest.mark.parametrize(("name", "packs"), [("llama", True), ("gpt2", True), ("mistral", False), ("mamba", False)])
def test_other_models_pack_where_they_can(name, packs):
    model = other_model(name)
    assert can_pack(model) is packs
    scorer = TokenScorer(model)
    expected = plain(model, trees())
    for batch in scorer.micro_batches(trees(), 1000):
        scored = scorer(batch)
        for row, logprob_T in zip(scored.rows_B.tolist(), scored.logprob_BT, strict=True):
            assert torch.allclose(logprob_T[: len(expected[row])], expected[row], atol=1e-5)


def test_gradients_equal_those_of_plain_rows(model):
    (-torch.cat(list(plain(model, trees()).values())).sum()).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    scorer = TokenScorer(model)
    for batch in scorer.micro_batches(trees(), 40):
        (-scorer(batch).logprob_BT.sum()).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


def test_entropy_is_that_of_the_distribution_scored(model):
    tree = trees()[1]
    scored = TokenScorer(model, temperature=0.5)([tree], entropy=True)
    logits = model(input_ids=torch.tensor([tree.prefix + tree.branches[0]])).logits[0, -3:-1] / 0.5
    assert torch.allclose(scored.entropy_BT[0], torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("micro_tokens", [8, 25, 60])
def test_micro_batches_are_bounded_and_complete(model, micro_tokens, packed):
    scorer = TokenScorer(model, packed=packed)
    many = [Tree(t.prefix, t.branches, t.targets, [100 * i + r for r in t.rows]) for i in range(5) for t in trees(i)]
    batches = list(scorer.micro_batches(many, micro_tokens))
    rows = [row for batch in batches for tree in batch for row in tree.rows]
    assert sorted(rows) == sorted(row for tree in many for row in tree.rows)
    for batch in batches:
        sizes = [tree.tokens for tree in batch]
        size = sum(sizes) if packed else len(batch) * max(sizes)
        assert size <= micro_tokens or (len(batch) == 1 and len(batch[0].branches) == 1)


def test_plot_of_a_tree():
    plot = attention.plot(10, 2, [3, 1], torch.device("cpu"))
    assert (plot.begin, plot.fork) == (10, 12)
    assert plot.place_BL.tolist() == [[12, 13, 14], [15, 15, 15]]
    assert plot.back_N.tolist() == [0, 1, 2, 3]
    assert plot.mask_LS.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_a_single_branch_continues_its_prefix():
    plot = attention.plot(4, 2, [5], torch.device("cpu"))
    assert (plot.begin, plot.fork, plot.place_BL) == (4, 11, None)


def test_models_that_cannot_be_packed_keep_their_attention():
    model = other_model("mistral")
    before = model.config._attn_implementation
    assert not can_pack(model)
    assert model.config._attn_implementation == before


def test_other_forward_passes_are_unchanged(model):
    ids = torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(0))
    padding = torch.tensor([[0] * 4 + [1] * 7, [1] * 11, [0] * 1 + [1] * 10])
    before = model(input_ids=ids, attention_mask=padding).logits
    greedy = model.generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert can_pack(model)
    after = model(input_ids=ids, attention_mask=padding).logits
    again = model.generate(ids, attention_mask=padding, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(torch.where(padding[..., None] > 0, before, 0), torch.where(padding[..., None] > 0, after, 0))
    assert torch.equal(greedy, again)


def test_attention_that_trees_do_not_have_is_refused(model):
    states = [torch.zeros(1, heads, 4, 8) for heads in (4, 2, 2)]
    forest = [attention.plot(0, 2, [1, 1], torch.device("cpu"))]
    with pytest.raises(ValueError, match="softcap"):
        attention.tree_attention(model, *states, None, forest=forest, softcap=30.0)


def test_recomputed_activations_give_the_same_gradients_without_dropout():
    model = other_model("gpt2")  # has dropout
    gradients = []
    for recompute in (False, True):
        if recompute:
            recompute_activations(model)
        scorer = TokenScorer(model)
        scored = scorer(trees())
        assert model.training is recompute
        model.zero_grad()
        scored.logprob_BT.sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
