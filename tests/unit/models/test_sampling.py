from __future__ import annotations

import copy

import pytest
import torch

from restool.core.errors import ModelError
from restool.models.sampling import drawing, make_sampler
from restool.models.sampling.generic import GenericDecoder
from restool.models.sampling.qwen3 import Qwen3Decoder
from restool.models.sampling.sampler import Sampler

LENGTHS = (5, 23, 1, 17, 23, 40)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=["qwen3", "generic", "llama"])
def case(request, model, llama, tokenizer):
    """A model and a sampler without stop tokens: the decoder of our own, the generic one, another family."""
    chosen = llama if request.param == "llama" else model
    decoder = Qwen3Decoder(chosen) if request.param == "qwen3" else GenericDecoder(chosen, tokenizer.pad_token_id)
    return chosen, lambda stop: Sampler(decoder, stop, chosen.config.vocab_size, chosen.device)


def _full(model, prompt, answer, temperature=1.0):
    """Log-probabilities and entropies of an answer by one forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprob = (logits / temperature).log_softmax(-1)
    return logprob.gather(-1, torch.tensor(answer)[:, None])[:, 0], -(logprob.exp() * logprob).sum(-1)


def _close_to_full(model, answers, temperature=1.0):
    for row, ids in enumerate(answers.ids):
        logprob, entropy = _full(model, answers.prompts[row // answers.samples], ids, temperature)
        assert (answers.logprob_BT[row, : len(ids)] - logprob).abs().max() <= 1e-5
        assert (answers.entropy_BT[row, : len(ids)] - entropy).abs().max() <= 1e-4


def test_each_architecture_gets_its_decoder(model, llama, tokenizer):
    assert isinstance(make_sampler(model, tokenizer, [2])._decoder, Qwen3Decoder)
    assert isinstance(make_sampler(llama, tokenizer, [2])._decoder, GenericDecoder)


def test_greedy_equals_generate(case, prompts):
    model, sampler = case
    answers = sampler([]).generate(prompts, temperature=0.0, max_new_tokens=12, seed=0)
    for prompt, ids in zip(prompts, answers.ids, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": -1}
        output = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **settings)
        assert output[0, len(prompt) :].tolist() == ids
    _close_to_full(model, answers)


def test_logprobs_and_entropies_equal_a_full_forward(case, prompts):
    model, sampler = case
    for temperature in (1.0, 0.7):
        answers = sampler(range(0, 300, 9)).generate(
            prompts, samples=4, temperature=temperature, max_new_tokens=15, seed=1
        )
        assert len({len(ids) for ids in answers.ids}) > 3  # rows end at different times
        _close_to_full(model, answers, temperature)


def test_rows_end_at_their_stop_token_or_at_the_limit(case, prompts):
    _, sampler = case
    stop = set(range(0, 300, 9))
    answers = sampler(stop).generate(prompts, samples=4, max_new_tokens=15, seed=1)
    for row, (ids, finished) in enumerate(zip(answers.ids, answers.finished, strict=True)):
        assert not stop & set(ids[:-1])
        assert finished == (ids[-1] in stop)
        assert finished or len(ids) == 15
        assert answers.mask_BT[row].tolist() == [t < len(ids) for t in range(answers.mask_BT.shape[1])]
    assert any(answers.finished)
    assert not all(answers.finished)
    assert answers.mask_BT.shape[1] == max(map(len, answers.ids))
    assert not answers.logprob_BT[~answers.mask_BT].any()
    assert not answers.entropy_BT[~answers.mask_BT].any()


def test_answers_do_not_depend_on_batching_or_on_other_rows_ending(case, prompts):
    _, sampler = case
    together = sampler(range(0, 300, 9)).generate(prompts, samples=4, max_new_tokens=15, seed=1)
    apart = sampler(range(0, 300, 9)).generate(prompts, samples=4, max_new_tokens=15, seed=1, batch_tokens=150)
    assert apart.ids == together.ids
    assert (apart.logprob_BT - together.logprob_BT).abs().max() <= 1e-5
    unending = sampler([]).generate(prompts, samples=4, max_new_tokens=15, seed=1)
    assert [ids[: len(cut)] for ids, cut in zip(unending.ids, together.ids, strict=True)] == together.ids


def test_same_seed_same_bits_another_seed_other_answers(case, prompts):
    _, sampler = case
    first, again, other = (sampler([2]).generate(prompts, samples=2, max_new_tokens=8, seed=seed) for seed in (1, 1, 2))
    assert first.ids == again.ids
    assert torch.equal(first.logprob_BT, again.logprob_BT)
    assert first.ids != other.ids


def test_a_shorter_limit_cuts_the_same_answers(case, prompts):
    _, sampler = case
    long = sampler([2]).generate(prompts, samples=2, max_new_tokens=9, seed=1)
    short = sampler([2]).generate(prompts, samples=2, max_new_tokens=4, seed=1)
    assert short.ids == [ids[:4] for ids in long.ids]


def test_common_random_numbers(model, llama, tokenizer, prompts):
    """Two models whose distributions agree sample the same tokens, whatever decodes them."""
    nudged = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in nudged.parameters():
            parameter.mul_(1 + 1e-6)
    ours = make_sampler(model, tokenizer, [2]).generate(prompts, samples=4, max_new_tokens=10, seed=3)
    theirs = make_sampler(nudged, tokenizer, [2]).generate(prompts, samples=4, max_new_tokens=10, seed=3)
    generic = Sampler(GenericDecoder(model, 0), [2], model.config.vocab_size, model.device)
    assert theirs.ids == ours.ids
    assert generic.generate(prompts, samples=4, max_new_tokens=10, seed=3).ids == ours.ids


def test_sampled_frequencies_follow_the_distribution(case, prompts):
    model, sampler = case
    answers = sampler([]).generate(prompts[:1], samples=20_000, temperature=1.3, max_new_tokens=1, seed=0)
    with torch.no_grad():
        expected = (model(torch.tensor(prompts[:1])).logits[0, -1] / 1.3).softmax(-1)
    found = torch.bincount(torch.tensor(answers.ids)[:, 0], minlength=len(expected)) / 20_000
    spread = (expected * (1 - expected) / 20_000).sqrt()
    assert ((found - expected).abs() <= 5 * spread + 1e-4).all()


def test_a_changed_weight_changes_the_answers(model, tokenizer, prompts):
    changed = copy.deepcopy(model)
    sampler = make_sampler(changed, tokenizer, [])
    sampler.generate(prompts, max_new_tokens=3, seed=0)
    with torch.no_grad():
        changed.model.layers[0].input_layernorm.weight.mul_(2)
        changed.model.layers[1].mlp.up_proj.weight.mul_(-1)
        changed.model.layers[1].self_attn.q_norm.weight.mul_(1.5)
    _close_to_full(changed, sampler.generate(prompts, max_new_tokens=6, seed=0))


def test_results_can_be_trained_with(case, prompts):
    model, sampler = case
    answers = sampler([]).generate(prompts[:1], max_new_tokens=3, seed=0)
    logits = model(torch.tensor([prompts[0] + answers.ids[0]])).logits[0, len(prompts[0]) - 1 : -1]
    logprob = logits.log_softmax(-1).gather(-1, torch.tensor(answers.ids[0])[:, None])[:, 0]
    ratio = (logprob - answers.logprob_BT[0]).exp()
    (ratio * answers.entropy_BT[0]).sum().backward()
    assert model.model.norm.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_the_plain_form_of_large_models_gives_the_same(model, tokenizer, prompts, monkeypatch):
    fused = make_sampler(model, tokenizer, [2]).generate(prompts, samples=3, max_new_tokens=10, seed=1)
    monkeypatch.setattr("restool.models.sampling.weights._COPIED", 0)
    plain = make_sampler(model, tokenizer, [2]).generate(prompts, samples=3, max_new_tokens=10, seed=1)
    assert plain.ids == fused.ids
    assert (plain.logprob_BT - fused.logprob_BT).abs().max() <= 1e-5


def test_bfloat16_stays_near_the_full_forward(model, tokenizer, prompts):
    half = copy.deepcopy(model).to(torch.bfloat16)
    answers = make_sampler(half, tokenizer, [2]).generate(prompts, samples=2, max_new_tokens=8, seed=1)
    assert answers.logprob_BT.dtype == torch.float32
    gaps = []
    for row, ids in enumerate(answers.ids):
        logprob, _ = _full(half, prompts[row // 2], ids)
        gaps.append((answers.logprob_BT[row, : len(ids)] - logprob).abs())
    assert torch.cat(gaps).mean() < 0.1


def test_a_scaled_rotary_embedding(model, tokenizer, prompts):
    from transformers.models.qwen3 import Qwen3ForCausalLM

    config = copy.deepcopy(model.config)
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    stretched = Qwen3ForCausalLM(config).eval()
    stretched.load_state_dict(model.state_dict())
    sampler = make_sampler(stretched, tokenizer, [])
    assert isinstance(sampler._decoder, Qwen3Decoder)
    _close_to_full(stretched, sampler.generate(prompts, max_new_tokens=6, seed=0))


def test_no_prompts_and_empty_prompts(case):
    _, sampler = case
    nothing = sampler([2]).generate([], max_new_tokens=4, seed=0)
    assert nothing.ids == []
    assert nothing.mask_BT.shape == (0, 0)
    with pytest.raises(ModelError, match="no tokens"):
        sampler([2]).generate([[5], []], max_new_tokens=4, seed=0)


def test_diverged_weights_are_an_error(model, tokenizer, prompts):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="diverged"):
            make_sampler(broken, tokenizer, [2]).generate(prompts, temperature=temperature, max_new_tokens=4, seed=0)


def test_draw_never_takes_an_impossible_token():
    logits_BV = torch.tensor([[-1e9, 0.0, -1e9, 0.0, -1e9]]).repeat(4, 1)
    uniform_B = torch.tensor([1e-9, 0.5, 0.5000001, 1.0])
    ids, logprob, entropy = drawing.draw(logits_BV, uniform_B, 1.0)
    assert ids.tolist() == [1, 1, 3, 3]
    assert torch.allclose(logprob, torch.tensor(0.5).log())
    assert torch.allclose(entropy, torch.tensor(2.0).log())


def test_uniforms_lie_above_zero_and_a_longer_limit_only_adds_numbers():
    numbers = drawing.uniforms(50, 40, seed=9)
    assert numbers.min() > 0
    assert numbers.max() <= 1
    assert torch.equal(drawing.uniforms(50, 7, seed=9), numbers[:7])
