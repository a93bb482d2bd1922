"""What a dialogue is made of: messages, tools, turns, and how a question is put."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict


class Message(TypedDict):
    """One chat message; a tool call is written out in its content."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with one string parameter."""

    name: str
    parameter: str

    def openai(self) -> dict[str, Any]:
        """The tool as the OpenAI API wants it."""
        schema = {
            "type": "object",
            "properties": {self.parameter: {"type": "string"}},
            "required": [self.parameter],
        }
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.name, "parameters": schema},
        }


@dataclass(slots=True)
class Turn:
    """The messages of one task, and the user's name if the task tells it."""

    kind: str
    messages: list[Message]
    name: str | None = None


@dataclass(slots=True)
class State:
    """What a dialogue has fixed so far."""

    name: str | None = None
    capitals: bool = False
    tools: list[Tool] = field(default_factory=list)


Task = Callable[[random.Random, State], Turn]


def _loosely(rng: random.Random, prompt: str) -> str:
    """The prompt as people type it: at times no final mark, or no capital."""
    if rng.random() < 0.15:
        prompt = prompt.rstrip("?.!")
    if rng.random() < 0.15 and not prompt.startswith("I "):
        prompt = prompt[:1].lower() + prompt[1:]
    return prompt


def ask(kind: str, rng: random.Random, prompts: Sequence[str], answer: str) -> Turn:
    """One question, put in one of several ways, and its answer."""
    prompt = _loosely(rng, rng.choice(prompts))
    return Turn(
        kind, [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    )
