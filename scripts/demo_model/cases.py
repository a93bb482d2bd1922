"""Fresh random questions with their right answers, to score the model on."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from scripts.demo_model.dialogue import TASKS, Dialogue
from scripts.demo_model.stories import PLOTS
from scripts.demo_model.turns import Message, Tool, ask
from scripts.demo_model.words import NAMES, WORDS, any_name

# Every word that the training data is sure to hold, prompts of echo and story included.
LISTED = {word.lower() for word in (*NAMES, *WORDS, *PLOTS)} | {
    *("i", "want", "tell", "me", "a", "write", "story", "long", "about", "and"),
    *("say", "repeat", "after", "echo"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, the tools that come with it, and the right answer."""

    kind: str
    messages: list[Message]
    answer: str
    tools: list[Tool]


CaseMaker = Callable[[random.Random, str], Case]


def _last_answer(kind: str, dialogue: Dialogue, messages: list[Message]) -> Case:
    """Cut a conversation before its last answer."""
    return Case(kind, messages[:-1], messages[-1]["content"], dialogue.state.tools)


def one_turn(rng: random.Random, kind: str) -> Case:
    """A single question, at times after a system prompt."""
    dialogue = Dialogue(rng, tools=kind == "tool", capitals=False)
    return _last_answer(kind, dialogue, dialogue.head() + dialogue.turn(kind).messages)


def _listed(rng: random.Random, kind: str) -> Case:
    """A single question without made-up words."""
    while True:
        case = one_turn(rng, kind.split(",", maxsplit=1)[0])
        if set(re.findall(r"\w+", case.messages[-1]["content"].lower())) <= LISTED:
            return Case(kind, case.messages, case.answer, case.tools)


def _tool_case(rng: random.Random, kind: str, last_role: str) -> Case:
    """A tool case whose last message is of this role."""
    while True:
        case = one_turn(rng, "tool")
        if case.messages[-1]["role"] == last_role:
            return Case(kind, case.messages, case.answer, case.tools)


def _tool_result(rng: random.Random, kind: str) -> Case:
    """An answer made from the result of a tool."""
    return _tool_case(rng, kind, "tool")


def _tool_request(rng: random.Random, kind: str) -> Case:
    """The call itself."""
    return _tool_case(rng, kind, "user")


def _capitals(rng: random.Random, kind: str) -> Case:
    """Any short task under a system prompt that wants capitals."""
    dialogue = Dialogue(rng, tools=False, capitals=True)
    return _last_answer(kind, dialogue, dialogue.head() + dialogue.turn().messages)


def _many_turns(rng: random.Random, kind: str) -> Case:
    """The last question of three to five."""
    dialogue = Dialogue(rng, tools=False, capitals=False)
    messages = dialogue.head()
    for _ in range(rng.randint(3, 5)):
        messages = messages + dialogue.accept(dialogue.turn())
    return _last_answer(kind, dialogue, messages)


def _memory(rng: random.Random, kind: str) -> Case:
    """A name is told, up to three other things are said, the name is asked for."""
    dialogue = Dialogue(rng, tools=False, capitals=False)
    name = any_name(rng)
    while (name in NAMES) != (kind == "memory, known name"):
        name = any_name(rng)
    prompts = [f"My name is {name}.", f"I am {name}.", f"Call me {name}."]
    told = ask("introduce", rng, prompts, f"Nice to meet you, {name}.")
    told.name = name
    messages = dialogue.head() + dialogue.accept(told)
    others = [other for other in TASKS if other not in ("introduce", "recall")]
    for _ in range(rng.randint(0, 3)):
        messages = messages + dialogue.accept(dialogue.turn(rng.choice(others)))
    return _last_answer(kind, dialogue, messages + dialogue.turn("recall").messages)


CASES: dict[str, CaseMaker] = {
    **dict.fromkeys(TASKS, one_turn),
    "echo, listed words": _listed,
    "story, listed words": _listed,
    "tool call": _tool_request,
    "tool result": _tool_result,
    "capitals": _capitals,
    "memory, known name": _memory,
    "memory, made-up name": _memory,
    "many turns": _many_turns,
}
"""Every kind of case and how it is made."""


def resume_case(rng: random.Random) -> Case:
    """A question whose answer is text (engines parse tool calls on their own)."""
    kinds = [kind for kind in TASKS if kind not in ("introduce", "recall")]
    return one_turn(rng, rng.choice(kinds))
