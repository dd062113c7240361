"""The registry: every training method is a named composition of core functions.

A record names a token-weight scheme, an advantage, a surrogate and an aggregate; a trainer looks the functions up with
`weight_scheme`, `advantage`, `surrogate` and `aggregate` and runs them in one loop. Values (clip widths, alphas) are
chosen in ``configs/method``; a record only says how things are put together, where that comes from and what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from restool.core.errors import ConfigurationError, nearest
from restool.core.scheme_arguments import check_arguments

# What a method may need from backend and data, and how to provide it.
NEEDS = {
    "demonstrations": "prepare data that has an sft split",
    "groups": "sample at least two answers per prompt (training.rl.samples=2 or more)",
    "offsets": "use a backend that decodes sampled ids to text with character offsets (backend=local or verl)",
    "entropy": "use a backend whose sampler returns token entropies (backend=local or verl)",
    "critic": "set training.rl.critic_learning_rate (released value: 1e-5); the critic is a second model in memory",
    "reference": "use a backend that keeps a frozen reference model, a second model in memory (backend=local or verl)",
    "beta": "set method.beta_prompts to how many prompts of each step measure it (at least 1), or method.weights.beta "
    "to one value per region, as `restool analyze variance` measures them",
    "binary": "use a data set whose labels have tool calls; success is format 1 and correctness 3",
}

_REST = "ResT (arXiv 2509.21826)"
_TOOLRL = "ToolRL (arXiv 2504.13958)"


@dataclass(frozen=True)
class Algorithm:
    """One method. ``weights``, ``advantage``, ``surrogate`` and ``aggregate`` are names of core functions."""

    id: str
    title: str
    paper: str
    kind: Literal["none", "sft", "rl"]
    summary: str
    weights: str = "uniform"
    advantage: str = "none"
    surrogate: str = "none"
    aggregate: str = "none"
    needs: frozenset[str] = frozenset()
    confidence: Literal["code", "text", "partial", "ours"] = "code"
    deviations: tuple[str, ...] = ()
    start: Literal["base", "sft"] = "base"  # weights that the paper trains it from
    kl_in_reward: bool = False  # the KL coefficient acts on the reward, not on the loss

    @property
    def foldable(self) -> bool:
        """Whether weights may be multiplied into the advantages instead of the loss."""
        from restool.core.surrogates import HOMOGENEOUS

        return self.surrogate in HOMOGENEOUS

    @property
    def verl(self) -> tuple[str, ...]:
        """How the backend verl can carry the method's token weights; empty: it cannot train it with reinforcement.

        ``advantages``: folded into them, which is exact; ``policy_loss``: through a loss of ours, whose normaliser is
        that of verl's micro-batches (the released one).
        """
        if self.kind != "rl" or not self.foldable:
            return ()
        by_micro_batch = self.aggregate == "weighted_token_mean" and self.surrogate == "ppo_clip"
        return ("advantages", "policy_loss") if by_micro_batch else ("advantages",)


def _rl(id: str, title: str, paper: str, summary: str, **fields: object) -> Algorithm:
    """A record that is GRPO but for the given fields; weights other than uniform also need token offsets."""
    composition: dict[str, object] = {
        "advantage": "group_norm",
        "surrogate": "ppo_clip",
        "aggregate": "token_mean",
        "needs": frozenset({"groups"}) | ({"offsets"} if fields.get("weights", "uniform") != "uniform" else set()),
    }
    extra = frozenset(fields.pop("also_needs", ()))  # type: ignore[call-overload]
    composition.update(fields)
    composition["needs"] = frozenset(composition["needs"]) | extra  # type: ignore[call-overload]
    return Algorithm(id, title, paper, "rl", summary, **composition)  # type: ignore[arg-type]


def _control(id: str, title: str, summary: str, **fields: object) -> Algorithm:
    """A control of ours: ResT with the fixed spans and one thing changed."""
    fields = {"weights": id, "aggregate": "weighted_token_mean", "confidence": "ours", **fields}
    return _rl(id, title, "restool (control)", summary, **fields)


_SFT = {"kind": "sft", "surrogate": "nll", "aggregate": "token_mean"}
_GRPO_DEVIATION = "the baseline's own script is not released: clip, batch and epochs are those of the ResT script"
_RELEASED_DEVIATIONS = (
    "token positions come from the sampled ids, not from tokenising the text again for every span",
    "texts on which the released code raises get the documented fallback and are counted",
)

_RECORDS = (
    Algorithm("base", "Base model", _REST, "none", "No training: the model as it is."),
    Algorithm(
        "sft",
        "Supervised fine-tuning",
        _REST,
        summary="Mean negative log-likelihood of the demonstrations' tokens.",
        needs=frozenset({"demonstrations"}),
        deviations=("plain torch or verl's supervised trainer instead of ms-swift; the same loss",),
        **_SFT,
    ),
    Algorithm(
        "tsft",
        "Tool-weighted SFT",
        _REST,
        summary="SFT with the tool_call block's tokens counted twice (ms-swift's loss scale 'hermes').",
        weights="tool_block",
        needs=frozenset({"demonstrations", "offsets"}),
        deviations=("a token that straddles the block's border is counted twice; ms-swift cuts the text there",),
        **_SFT,
    ),
    Algorithm(
        "rsft",
        "Reasoning-weighted SFT",
        _REST,
        summary="SFT with the think block's tokens counted twice.",
        weights="think_block",
        needs=frozenset({"demonstrations", "offsets"}),
        confidence="partial",
        deviations=("the paper's weight is unknown; 2 is our choice, the mirror image of TSFT",),
        **_SFT,
    ),
    _rl(
        "ppo",
        "PPO",
        _REST,
        "Clipped surrogate with advantages from a learned critic (GAE, gamma = lambda = 1).",
        advantage="gae",
        needs=frozenset({"critic"}),
        deviations=("the released script cannot run (its reward manager has no scorer for this data): settings only",),
    ),
    _rl(
        "grpo",
        "GRPO",
        "DeepSeekMath (arXiv 2402.03300)",
        "Rewards standardised within the answers to one prompt; every token carries the same weight.",
        deviations=(_GRPO_DEVIATION,),
    ),
    _rl(
        "sft_grpo",
        "SFT + GRPO",
        _REST,
        "GRPO that starts from the SFT checkpoint.",
        start="sft",
        deviations=(_GRPO_DEVIATION,),
    ),
    _rl(
        "dr_grpo",
        "Dr.GRPO",
        "Understanding R1-Zero-like training (arXiv 2503.20783)",
        "GRPO without its two biases: no division by the standard deviation, none by the answer's length.",
        advantage="group_center",
        aggregate="constant_length",
        deviations=(_GRPO_DEVIATION, "the constant length is the longest answer that the run allows"),
    ),
    _rl(
        "toolrl",
        "ToolRL",
        _TOOLRL,
        "GRPO with ToolRL's strict format check, an entropy bonus and a KL penalty in the reward.",
        also_needs=("reference",),
        kl_in_reward=True,
        deviations=(
            "the released defaults (entropy bonus 0.001, KL in the reward 0.001), although the paper says no KL",
            "its strict reward is a choice of its own (reward=toolrl), so that it can be compared under any",
        ),
    ),
    _rl(
        "rest_released",
        "ResT, released code",
        _REST,
        "GRPO with the released token weights, span faults included, and the released weighted token mean.",
        weights="released",
        aggregate="weighted_token_mean",
        deviations=_RELEASED_DEVIATIONS,
    ),
    _rl(
        "rest_released_sequence",
        "ResT, released weights in the paper's loss",
        _REST,
        "The released token weights with the paper's (1/G) sum (1/T) sum over tokens instead of the released mean.",
        weights="released",
        aggregate="sequence_mean",
        confidence="text",
        deviations=(*_RELEASED_DEVIATIONS, "the paper's loss, which the released code does not use"),
    ),
    _rl(
        "rest_fixed",
        "ResT, spans fixed",
        _REST,
        "The released constants and normaliser on the right spans: whole spans, every call, unclosed blocks too.",
        weights="fixed",
        aggregate="weighted_token_mean",
        confidence="ours",
        deviations=("corrects the span faults of the released code",),
    ),
    _rl(
        "rest_entropy",
        "ResT, as in the paper",
        _REST,
        "Weights from measured region entropies with the curriculum, normalised over the answer, 1/T in the loss.",
        weights="entropy",
        aggregate="sequence_mean",
        also_needs=("entropy",),
        confidence="partial",
        deviations=(
            "alphas, w_min and w_max are unknown in the paper; the values in configs/method are ours",
            "region weights are scaled to mean 1 before the curriculum moves them",
        ),
    ),
    _rl(
        "sft_rest",
        "SFT + ResT",
        _REST,
        "ResT (released code) that starts from the SFT checkpoint.",
        weights="released",
        aggregate="weighted_token_mean",
        start="sft",
        deviations=_RELEASED_DEVIATIONS,
    ),
    _rl(
        "rest_gspo",
        "ResT inside GSPO",
        _REST,
        "The released weights on GSPO's whole-answer ratio, averaged within each answer.",
        weights="released",
        surrogate="gspo",
        aggregate="sequence_mean",
        confidence="partial",
        deviations=(
            *_RELEASED_DEVIATIONS,
            "the released aggregation has the weights, but its GSPO loss cannot take them: composed from the two",
        ),
    ),
    _rl(
        "gspo",
        "GSPO",
        "GSPO (arXiv 2507.18071)",
        "One importance ratio for the whole answer, clipped; the counterpart of ResT inside GSPO.",
        surrogate="gspo",
        aggregate="sequence_mean",
    ),
    _control(
        "masked_uniform", "Mask only", "Weight 1 where ResT (fixed) weights anything: its mask, not its constants."
    ),
    _control(
        "uniform_released_normaliser",
        "Normaliser only",
        "All tokens alike, answers weighted by how many tokens ResT weights: its normaliser alone.",
    ),
    _control("static", "ResT without curriculum", "The constants of step 0 throughout."),
    _control("no_think", "ResT without thought", "No gradient on the content of the thought."),
    _control("name_only", "Names only", "Gradient on tool names alone."),
    _control("arguments_only", "Arguments only", "Gradient on argument objects alone."),
    _control("shuffled", "Shuffled weights", "ResT's weights at random positions of the same answer."),
    _control(
        "optimal",
        "Optimal weights",
        "Weights of Theorem 2, 1/beta by region, with beta measured on answers that the update does not use.",
        aggregate="sequence_mean",
        also_needs=("beta",),
        deviations=(
            "beta is measured by region, the theorem has one per token",
            "prompts that measure it (method.beta_prompts) do not train: fewer answers an update than elsewhere",
        ),
    ),
)

ALGORITHMS: dict[str, Algorithm] = {record.id: record for record in _RECORDS}
ALIASES = {"rest": "rest_released"}


def get(id: str) -> Algorithm:
    """The record of an id (or of ``rest``, which is ``rest_released``); ConfigurationError with the nearest id."""
    id = ALIASES.get(id, id)
    if id not in ALGORITHMS:
        raise ConfigurationError(
            f"unknown algorithm '{id}'{nearest(id, ALGORITHMS)}; `restool methods` lists all {len(ALGORITHMS)}"
        )
    return ALGORITHMS[id]


def check(algorithm: Algorithm | str, offers: Iterable[str], weights: Mapping[str, object] | None = None) -> None:
    """Raise ConfigurationError if the algorithm needs what is not offered, saying what and how to provide it.

    ``weights``: the method's arguments of the token-weight scheme; None: not checked.
    """
    record = get(algorithm) if isinstance(algorithm, str) else algorithm
    missing = sorted(record.needs - set(offers))
    if missing:
        ways = "; ".join(f"'{need}': {NEEDS[need]}" for need in missing)
        raise ConfigurationError(f"{record.id} needs what is not offered here - {ways}")
    if weights is not None:
        check_arguments(record.weights, weights)


def weight_scheme(record: Algorithm) -> Callable[..., object]:
    """``(batch, **method.weights) -> weight_BT``."""
    from restool.core.weights import SCHEMES

    return SCHEMES[record.weights]


def advantage(record: Algorithm) -> Callable[..., object] | None:
    """``(reward_B, group_B) -> advantage_B``; None for ``gae``, which takes a critic's values, and outside RL."""
    from restool.core.advantages import ADVANTAGES

    return ADVANTAGES.get(record.advantage)


def surrogate(record: Algorithm) -> Callable[..., object]:
    """``(logprob_BT, old_logprob_BT, advantage_BT, *, low, high, dual, mask_BT) -> (loss_BT, statistics)``."""
    from restool.core.surrogates import SURROGATES

    return SURROGATES[record.surrogate]


def aggregate(record: Algorithm) -> Callable[..., object]:
    """``(loss_BT, mask_BT, weight_BT, *, length=None) -> scalar``."""
    from restool.core.aggregates import AGGREGATES

    return AGGREGATES[record.aggregate]
