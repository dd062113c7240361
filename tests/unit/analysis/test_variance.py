import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restool import files
from restool.analysis import gradients, variance
from restool.core import weights
from restool.data import rows
from restool.models import loading, tiny
from restool.settings import RunSettings, VarianceSettings

TOOLS = "You call tools.\n1. Name: book_hotel\n2. Name: book_table"


@pytest.fixture(scope="module")
def run_settings(_made_up) -> RunSettings:
    """Settings of an RL run, on a model so small that gradients take milliseconds."""
    plan = files.read_json(_made_up / "plan.json")
    config = next(run["config"] for run in plan["runs"] if run["kind"] == "rl")
    config["model"]["tiny"] |= {"hidden_size": 16, "layers": 1, "head_dim": 8, "feed_forward": 24, "vocabulary": 300}
    config["training"]["rl"] |= {"max_new_tokens": 80}
    return RunSettings.model_validate(config)


@pytest.fixture(scope="module")
def prepared(run_settings: RunSettings, tmp_path_factory: pytest.TempPathFactory):
    """A model that half knows one answer, and prompts that ask for it."""
    folder = tmp_path_factory.mktemp("prepared")
    label = rows.tool_label([("book_hotel", {"city": "Rome"})], think="Book it.")
    tokenizer = tiny.train_tokenizer([TOOLS, label] * 3, 300)
    model = tiny.build_tiny(run_settings.model.tiny, tokenizer)
    users = [f"<user> Book a hotel in Rome for {n} </user>" for n in range(8)]
    _imitate(model, tokenizer, users, label)
    loading.save(model, tokenizer, folder / "model")
    made = [rows.Row(f"train/{n}", "train", TOOLS, user, label, "one_call") for n, user in enumerate(users)]
    rows.write_rows(folder / "train.parquet", made)
    return folder


def _imitate(model, tokenizer, users: list[str], label: str) -> None:
    from restool.models import chat

    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    answer = [*tokenizer.encode(label, add_special_tokens=False), chat.stop_ids(tokenizer)[0]]
    for step in range(90):
        prompt = chat.prompt_ids(tokenizer, TOOLS, users[step % len(users)])
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).backward()
        optimiser.step()


@pytest.fixture(scope="module")
def measured(prepared, run_settings):
    model, sampled = gradients.sample(prepared / "model", rows.read_rows(prepared, "train"), 4, run_settings)
    return model, sampled


def test_classes_add_up_to_the_gradient_of_the_weighted_loss(measured, run_settings, monkeypatch) -> None:
    class Exact:
        def __init__(self, parameters, dimension, seed):
            pass

        def __call__(self, gradient):
            return torch.cat([g.reshape(-1) for g in gradient])

    monkeypatch.setattr(gradients, "Projection", Exact)
    model, sampled = measured
    assert (sampled.advantage_B != 0).any()
    schemes = {"uniform": weights.uniform, "fixed": weights.fixed_batch}
    classes, _ = gradients.measure(model, sampled, schemes, run_settings, 0)
    weight_BT = weights.fixed_batch(sampled.batch)
    for row in classes.answer_C.unique().tolist()[:3]:
        mine = classes.answer_C == row
        total = (classes.weight_CS[mine, 1:2] * classes.gradient_CM[mine]).sum(0)
        ids = sampled.answers[row]
        logits = model(torch.tensor([sampled.prompts[row] + ids])).logits[0, len(sampled.prompts[row]) - 1 : -1]
        logprob_T = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        objective = sampled.advantage_B[row] * (weight_BT[row, : len(ids)] * logprob_T).sum()
        expected = Exact(None, 0, 0)(torch.autograd.grad(objective, list(model.parameters())))
        torch.testing.assert_close(total.float(), expected, rtol=1e-3, atol=1e-4)
        assert int(classes.count_C[mine].sum()) == len(ids)


def test_the_projection_keeps_inner_products() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 50), (300,)]
    a, b = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    b = [x + 0.5 * y for x, y in zip(b, a, strict=True)]
    products = [
        float(gradients.Projection(a, 512, seed)(a) @ gradients.Projection(a, 512, seed)(b)) for seed in range(200)
    ]
    exact = float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))
    error = np.std(products, ddof=1) / np.sqrt(len(products))
    assert abs(np.mean(products) - exact) < 4 * error


def test_the_record_is_whole_and_lemma_2_holds(prepared, run_settings, tmp_path) -> None:
    asked = VarianceSettings(prompts=8, samples=4, projection=256)
    record = variance.measure(prepared / "model", prepared, run_settings, asked, tmp_path / "variance.json")
    assert files.read_json(tmp_path / "variance.json") == record
    assert record["prompts_with_signal"] >= 4
    by_name = {entry["name"]: entry for entry in record["weightings"]}
    assert set(by_name) == set(variance.TITLES)
    uniform = by_name["uniform"]
    assert uniform["variance_ratio"] == uniform["variance_low"] == uniform["variance_high"] == 1
    assert uniform["cosine"] == pytest.approx(1)
    for entry in record["weightings"]:
        assert entry["variance_low"] <= entry["variance_high"]
        assert -1.001 <= entry["cosine"] <= 1.001
    whole = record["lemma2"]["all"]
    assert whole["violations"] == 0
    assert whole["expected"] <= whole["bound"]
    assert abs(whole["sampled"] - whole["expected"]) < 5 * whole["standard_error"]
    assert sum(record["tokens"].values()) == whole["tokens"]


def test_measuring_twice_gives_the_same(prepared, run_settings, tmp_path) -> None:
    asked = VarianceSettings(prompts=6, samples=4, projection=64)
    first, second = (
        variance.measure(prepared / "model", prepared, run_settings, asked, tmp_path / name) for name in ("a", "b")
    )
    assert first["weightings"] == second["weightings"]


def _gradients(signal: float, seed: int = 0, prompts: int = 30, answers: int = 6) -> variance._Moments:
    random = np.random.default_rng(seed)
    mean = np.zeros(40)
    mean[0] = signal
    groups = random.normal(size=(prompts, answers, 40)) + mean
    return variance._Moments(groups.var(axis=1, ddof=1).sum(axis=1), groups.mean(axis=1))


def test_signal_to_noise_is_unbiased() -> None:
    count = np.ones((1, 30))
    for signal in (0.0, 1.0):
        found = [
            variance._statistics(m, m, count.repeat(2, 0), 64)["snr"]
            for m in (_gradients(signal, s) for s in range(300))
        ]
        error = np.std(found, ddof=1) / np.sqrt(len(found))
        assert abs(np.mean(found) - signal**2 / (40 / 64)) < 4 * error + 0.02


def test_scaling_all_gradients_changes_the_variance_ratio_alone() -> None:
    plain = _gradients(1.0)
    doubled = variance._Moments(4 * plain.variance_P, 2 * plain.mean_PM)
    count = np.ones((3, 30))
    one, two = (variance._statistics(own, plain, count, 64) for own in (plain, doubled))
    assert two["variance_ratio"] == pytest.approx(4)
    assert two["snr"] == pytest.approx(one["snr"])
    assert two["cosine"] == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12))
def test_lemma_2_holds_for_any_distribution(logits: list[float]) -> None:
    norms = gradients._score_norms(torch.tensor([logits]).log_softmax(-1), torch.tensor([0]), torch.tensor([0]))
    p = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    expected = sum(p[a] * ((torch.eye(len(p))[a] - p) ** 2).sum() for a in range(len(p)))
    assert float(norms.expected_N) == pytest.approx(float(expected), abs=1e-5)
    assert float(norms.expected_N) <= 1 - np.exp(-float(norms.entropy_N)) + 1e-6
