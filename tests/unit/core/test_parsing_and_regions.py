from __future__ import annotations

import pytest
import torch

from restool.core.errors import DataError
from restool.core.parsing import parse
from restool.core.regions import Region, region_ids, region_ids_batch

LETTER = {Region.OTHER: ".", Region.FORMAT: "F", Region.NAME: "N", Region.ARGUMENTS: "A", Region.THINK: "T"}
LETTER[Region.RESPONSE] = "R"


def painted(text: str) -> str:
    """The region of every character."""
    return "".join(LETTER[region] for region in region_ids(text, [(i, i + 1) for i in range(len(text))]))


def test_every_part_of_a_whole_answer() -> None:
    text = (
        '<think>ab</think>\n<tool_call>\n{"name": "go", "parameters": {"x": 1}}\n</tool_call>\n<response>hi</response>'
        "<|im_end|>"
    )
    assert painted(text) == (
        "FFFFFFFTTFFFFFFFF.FFFFFFFFFFF." + ".........." + "NN" + "." * 17 + "AAAAAAAA" + "..FFFFFFFFFFFF."
        "FFFFFFFFFFRRFFFFFFFFFFF" + "." * 10
    )


@pytest.mark.parametrize(
    ("content", "names", "arguments"),
    [
        ('{"name": "a", "parameters": {}}\n{"name": "b", "arguments": {"c": {"name": "z"}}}', ["a", "b"], 2),
        ('{"parameters": {"name": "inner"}, "name": "outer"}', ["outer"], 1),
        ('{\n  "name": "a",\n  "parameters": {\n    "x": [1, {"y": 2}]\n  }\n}', ["a"], 1),
        ('[{"name": "a", "parameters": {"q": "}"}}, {"name": "b", "parameters": {}}]', ["a", "b"], 2),
        ('{"name": "a", "parameters": {"x": 1\n{"name": "b", "parameters": {}}', ["a", "b"], 2),
        ('{"name": "a"}', ["a"], 0),
        ('{"name": "a', ["a"], 0),
        ('{"name": "a", "parameters": {"x": ', ["a"], 1),
        ('{"name": "q\\"uote", "parameters": {}}', ['q\\"uote'], 1),
        ('{"name": 3, "parameters": 4}', [], 0),
        ("", [], 0),
    ],
)
def test_calls_of_a_block(content: str, names: list[str], arguments: int) -> None:
    for text in (f"<tool_call>\n{content}\n</tool_call>", f"<tool_call>\n{content}"):
        answer = parse(text)
        assert [answer.part(call.name) for call in answer.calls if call.name] == names
        assert sum(call.arguments is not None for call in answer.calls) == arguments


def test_unclosed_arguments_end_at_the_last_visible_character() -> None:
    answer = parse('<tool_call>{"name": "a", "parameters": {"x": 1 \n</tool_call>')
    assert answer.part(answer.calls[0].arguments) == '{"x": 1'


def test_a_tag_mentioned_in_thought_is_thought() -> None:
    answer = parse("<think> I use <tool_call> now </think>\n<tool_call>\n{}\n</tool_call>")
    assert answer.part(answer.think) == " I use <tool_call> now "
    assert [block.kind for block in answer.blocks] == ["think", "tool_call"]


def test_unclosed_blocks_end_at_the_next_opening_tag_stop_token_or_end() -> None:
    assert parse("<think> a <tool_call>x</tool_call>").think == (7, 10)
    assert parse("<think> ab<|im_end|><|endoftext|>").think == (7, 10)
    assert parse("<response> ab").response == (10, 13)


def test_thought_that_the_prompt_opened() -> None:
    answer = parse("so </think>\n<response>x</response>")
    assert answer.part(answer.think) == "so "
    assert parse("<response>x</response></think>").stray_tags == ((22, 30),)


def test_straddling_token_belongs_to_the_most_specific_region() -> None:
    text = '<tool_call>{"name": "get_it", "parameters": {"a": 1}}</tool_call>'
    start = text.index('"get')
    offsets = [(0, start), (start, start + 4), (start + 4, start + 10), (start + 10, text.index("{", 12) + 1)]
    offsets += [(offsets[-1][1], text.index("}") + 1), (text.index("}") + 1, len(text))]
    assert region_ids(text, offsets) == [
        Region.FORMAT,
        Region.NAME,
        Region.NAME,
        Region.ARGUMENTS,
        Region.ARGUMENTS,
        Region.FORMAT,
    ]


def test_bytes_of_one_character_share_its_region() -> None:
    text = '<tool_call>{"name": "é", "parameters": {}}</tool_call>'
    at = text.index("é")
    offsets = [(0, at), (at, at + 1), (at + 1, at + 1), (at + 1, len(text))]
    assert region_ids(text, offsets)[1:3] == [Region.NAME, Region.NAME]


def test_batch_equals_single_with_padding_and_cut() -> None:
    texts = ["<think>a</think>", "", "<response>bc</response> é"]
    offsets = [torch.tensor([(i, i + 1) for i in range(len(t))]).reshape(-1, 2) for t in texts]
    region_BT = region_ids_batch(texts, offsets, 20)
    for row, text in enumerate(texts):
        single = region_ids(text, offsets[row])[:20]
        assert region_BT[row].tolist() == [int(r) for r in single] + [0] * (20 - len(single))


@pytest.mark.parametrize(
    "offsets",
    [[(0, 2), (2, 99)], [(0, 2), (1, 1), (0, 4)], [(0, 2)], [(-1, 4)], [(0, 4), (4, 3)], []],
)
def test_offsets_of_another_text_are_refused(offsets: list[tuple[int, int]]) -> None:
    with pytest.raises(DataError, match=r"answer 1: .*pass the offsets of this very text"):
        region_ids_batch(["ok", "text"], [torch.tensor([(0, 2)]), torch.tensor(offsets).reshape(-1, 2)], 4)
    with pytest.raises(DataError, match="one offset tensor per text"):
        region_ids_batch(["ok", "text"], [torch.tensor([(0, 2)])], 4)
