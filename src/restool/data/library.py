"""The closed library of the synthetic tasks: sixteen tools in eight sibling pairs.

Siblings take the same parameters and differ in their name alone; half of the pairs share the verb, so that the
deciding part of the name comes last (`book_hotel`, `book_table`), half do not (`book_flight`, `find_train`).
Value pools are small because rare number tokens, not tool use, would otherwise be what a tiny model cannot learn.
"""

from __future__ import annotations

from dataclasses import dataclass

POOLS: dict[str, tuple[str | int, ...]] = {
    "city": ("Paris", "London", "Rome", "Berlin", "Madrid", "Tokyo", "Oslo", "Cairo"),
    "person": ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry"),
    "count": (2, 3, 4, 5, 6, 8, 10, 12),
    "date": ("Jan 6", "Feb 14", "Mar 3", "Apr 9", "Jul 4", "Sep 20", "Oct 31", "Dec 25"),
    "time": ("00:00", "06:00", "09:30", "12:00", "14:15", "16:45", "18:00", "20:30"),
    "occasion": ("birthday", "wedding", "thanks", "welcome", "farewell", "apology"),
    "sound": ("bell", "chime", "drum", "piano", "ocean", "birds"),
    "size": ("tiny", "small", "medium", "large", "huge", "double"),
}

ALIASES: dict[str, dict[str, str | int]] = {
    "count": {"two": 2, "five": 5, "eight": 8, "dozen": 12},
    "date": {"epiphany": "Jan 6", "valentines": "Feb 14", "halloween": "Oct 31", "christmas": "Dec 25"},
    "time": {"midnight": "00:00", "dawn": "06:00", "noon": "12:00", "dusk": "18:00"},
}
"""Other words for some values of a pool; a call must hold the value itself."""

CHAT: tuple[tuple[str, str], ...] = (
    ("hello there", "Hello, how can I help?"),
    ("thank you", "You are welcome."),
    ("who are you", "I am an assistant."),
    ("good morning", "Good morning, how can I help?"),
    ("how are you", "I am fine, thank you."),
    ("tell me a joke", "I know no jokes."),
)
"""Requests that need no tool, each with a fitting response."""

NO_FITTING_TOOL = "I have no tool for this."


@dataclass(frozen=True)
class Parameter:
    name: str
    pool: str
    phrase: str
    """How a request mentions the value; `{}` stands for it."""

    @property
    def is_number(self) -> bool:
        return self.pool == "count"


@dataclass(frozen=True)
class Tool:
    name: str
    request: str
    parameters: tuple[Parameter, ...]
    sibling: str
    reserved: bool
    """Shown in demonstrations and in the `transfer` split, never in RL."""


def _parameters(*rows: tuple[str, str, str]) -> tuple[Parameter, ...]:
    return tuple(Parameter(*row) for row in rows)


_STAY = _parameters(("city", "city", "in {}"), ("date", "date", "on {}"), ("guests", "count", "for {} guests"))
_RENT = _parameters(("city", "city", "in {}"), ("days", "count", "for {} days"))
_SEND = _parameters(("person", "person", "to {}"), ("occasion", "occasion", "for the {}"))
_TRIP = _parameters(("origin", "city", "from {}"), ("destination", "city", "to {}"), ("date", "date", "on {}"))
_MEET = _parameters(("person", "person", "with {}"), ("date", "date", "on {}"), ("time", "time", "at {}"))
_LOOK = _parameters(("city", "city", "in {}"), ("date", "date", "on {}"))
_RING = _parameters(("time", "time", "at {}"), ("sound", "sound", "with {} sound"))
_BUY = _parameters(("quantity", "count", "times {}"), ("size", "size", "in {} size"), ("city", "city", "to {}"))

_PAIRS = (
    ("book_hotel", "book a hotel", "book_table", "book a table", _STAY, False),
    ("rent_car", "rent a car", "rent_bike", "rent a bike", _RENT, False),
    ("send_email", "send an email", "send_gift", "send a gift", _SEND, False),
    ("book_flight", "book a flight", "find_train", "find a train", _TRIP, False),
    ("schedule_meeting", "schedule a meeting", "plan_call", "plan a call", _MEET, False),
    ("get_weather", "get the weather", "check_traffic", "check the traffic", _LOOK, False),
    ("set_alarm", "set an alarm", "start_timer", "start a timer", _RING, True),
    ("order_food", "order food", "order_shirt", "order a shirt", _BUY, True),
)

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for first, say_first, second, say_second, parameters, reserved in _PAIRS
    for tool in (
        Tool(first, say_first, parameters, second, reserved),
        Tool(second, say_second, parameters, first, reserved),
    )
}
