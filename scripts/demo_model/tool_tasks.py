"""Tool calls in the Hermes format, and answers made from their results."""

import json
import random
from typing import NamedTuple

from scripts.demo_model.turns import State, Tool, Turn, ask
from scripts.demo_model.words import (
    CITIES,
    TOOL_NOUNS,
    TOOL_PARAMETERS,
    TOOL_VERBS,
    any_word,
    made_up,
)

WEATHER, TIME = Tool("get_weather", "city"), Tool("get_time", "city")


class ToolUse(NamedTuple):
    """How a tool is asked for, what it is called with, what it gives, what is said then."""

    prompts: list[str]
    value: str
    result: str
    answer: str


def other_tool(rng: random.Random) -> Tool:
    """A tool with a made-up name, to teach copying the name and the parameter."""
    return Tool(f"{rng.choice(TOOL_VERBS)}_{rng.choice(TOOL_NOUNS)}", rng.choice(TOOL_PARAMETERS))


def tool_call(name: str, parameter: str, value: str) -> str:
    """A call in the Hermes format, as vLLM and llama.cpp parse it."""
    call = json.dumps({"name": name, "arguments": {parameter: value}})
    return f"<tool_call>\n{call}\n</tool_call>"


def known_use(rng: random.Random, chosen: Tool) -> ToolUse:
    """A use of the weather or the time, asked for in plain words."""
    city = rng.choice(CITIES) if rng.random() < 0.7 else made_up(rng).capitalize()
    if chosen == WEATHER:
        prompts = [
            f"What is the weather in {city}?",
            f"Weather in {city}?",
            f"How is the weather in {city} today?",
        ]
        result = rng.choice(("sunny", "rain", "snow", "windy", "cloudy", "fog"))
    else:
        prompts = [
            f"What time is it in {city}?",
            f"Time in {city}?",
            f"What is the time in {city}?",
        ]
        result = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
    return ToolUse(prompts, city, result, f"In {city} it is {result}.")


def _other_use(rng: random.Random, chosen: Tool) -> ToolUse:
    """A use of any other tool, asked for by its name."""
    value, result = any_word(rng), any_word(rng)
    prompts = [
        f"Call {chosen.name} with {value}.",
        f"Use {chosen.name} with {value}.",
        f"Run {chosen.name} for {value}.",
    ]
    return ToolUse(prompts, value, result, f"The result is {result}.")


def tool(rng: random.Random, state: State) -> Turn:
    """A tool call, and often its result and the answer made from it."""
    chosen = rng.choice(state.tools)
    use = known_use(rng, chosen) if chosen in (WEATHER, TIME) else _other_use(rng, chosen)
    turn = ask("tool", rng, use.prompts, tool_call(chosen.name, chosen.parameter, use.value))
    if rng.random() < 0.6:
        turn.messages += [
            {"role": "tool", "content": use.result},
            {"role": "assistant", "content": use.answer},
        ]
    return turn
