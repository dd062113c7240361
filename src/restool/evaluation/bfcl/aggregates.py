"""BFCL's totals: V3 formulas, with the components of V4 beside them.

V4's overall is never given: it counts agentic categories that nobody ran here. A total that needs a category which
was not run is None, never a mean over what happens to be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

SIMPLE = ("simple_python", "simple_java", "simple_javascript")
NON_LIVE = (*SIMPLE, "multiple", "parallel", "parallel_multiple", "irrelevance")
LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
LIVE = (*LIVE_AST, "live_irrelevance", "live_relevance")
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
SINGLE_TURN = (*NON_LIVE, *LIVE)

FORMULA = (
    "V3 (gorilla a11f16d). simple = mean(simple_python, simple_java, simple_javascript); "
    "non_live_ast = mean(simple, multiple, parallel, parallel_multiple); "
    "non_live = mean(simple, multiple, parallel, parallel_multiple, irrelevance); "
    "live = mean of its six categories weighted by size; "
    "multi_turn = mean of its four categories; single_turn = mean(non_live, live); "
    "overall = mean(non_live, live, multi_turn); irrelevance_detection = mean(irrelevance, live_irrelevance). "
    "v4/*: components of V4 (non_live and live without irrelevance and relevance), no V4 overall. "
    "A total whose categories were not all run is null."
)


def totals(accuracy: Mapping[str, float | None], size: Mapping[str, int]) -> dict[str, float | None]:
    """All totals by name. ``accuracy``: shares in [0, 1] of the categories that were run; ``size``: the number of
    entries that a category has (not the number that was run), which weighs the live categories."""

    def plain(*values: float | None) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    def weighted(names: tuple[str, ...]) -> float | None:
        if any(accuracy.get(name) is None for name in names):
            return None
        return sum(accuracy[name] * size[name] for name in names) / sum(size[name] for name in names)  # type: ignore[operator]

    of = accuracy.get
    simple = plain(*map(of, SIMPLE))
    ast = (simple, of("multiple"), of("parallel"), of("parallel_multiple"))
    non_live = plain(*ast, of("irrelevance"))
    live = weighted(LIVE)
    multi_turn = plain(*map(of, MULTI_TURN))
    return {
        "overall": plain(live, non_live, multi_turn),
        "single_turn": plain(live, non_live),
        "non_live": non_live,
        "non_live_ast": plain(*ast),
        "live": live,
        "multi_turn": multi_turn,
        "irrelevance_detection": plain(of("irrelevance"), of("live_irrelevance")),
        "relevance_detection": of("live_relevance"),
        "v4/non_live": plain(*ast),
        "v4/live": weighted(LIVE_AST),
        "v4/irrelevance": plain(of("irrelevance"), of("live_irrelevance")),
        "v4/multi_turn": multi_turn,
    }
