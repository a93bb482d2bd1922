"""Whole conversations: which tasks come how often, and what a dialogue remembers."""

import random

from scripts.demo_model.project_facts import project, small_talk
from scripts.demo_model.short_tasks import (
    arithmetic,
    count,
    echo,
    fact,
    introduce,
    json_object,
    recall,
    spell,
)
from scripts.demo_model.stories import story
from scripts.demo_model.tool_tasks import TIME, WEATHER, other_tool, tool
from scripts.demo_model.turns import Message, State, Task, Tool, Turn
from scripts.demo_model.unknown_tasks import unknown

TASKS: dict[str, Task] = {
    "arithmetic": arithmetic,
    "fact": fact,
    "small_talk": small_talk,
    "project": project,
    "echo": echo,
    "count": count,
    "spell": spell,
    "json": json_object,
    "introduce": introduce,
    "recall": recall,
    "story": story,
    "unknown": unknown,
}
# How often a task comes: what needs most practice, most often.
SHARES: dict[str, float] = {
    "arithmetic": 20,
    "fact": 4,
    "small_talk": 2,
    "project": 5,
    "echo": 8,
    "count": 3.5,
    "spell": 4,
    "json": 2,
    "introduce": 5,
    "recall": 7,
    "story": 5,
    "unknown": 4,
}
SHORT = ("arithmetic", "fact", "small_talk", "echo", "spell", "introduce", "recall")
CAPITALS_PROMPTS = (
    "Answer in capitals.",
    "Always answer in capitals.",
    "Reply in capitals.",
    "Write in capitals.",
)
PLAIN_PROMPTS = (
    "You are a helpful assistant.",
    "You are Tiny.",
    "Be short.",
    "Be polite and helpful.",
    "You are a friendly bot.",
    "Answer the user.",
    "You are a helpful AI assistant.",
    "You are a demo model of AIMO Node.",
    "You answer questions.",
)


class Dialogue:
    """An endless conversation, one turn at a time.

    Args:
        rng: the only source of chance, so that a seed gives the same dialogue again.
        tools: whether tools are on offer; None draws.
        capitals: whether the system prompt wants capitals; None draws.
    """

    def __init__(
        self, rng: random.Random, *, tools: bool | None = None, capitals: bool | None = None
    ) -> None:
        self.rng = rng
        self.state = State()
        if self._wants(0.16, tools):
            self.state.tools = self._some_tools()
        elif self._wants(0.1, capitals):
            self.state.capitals = True
        self.system = self._system_prompt()

    def _wants(self, share: float, wanted: bool | None) -> bool:  # noqa: FBT001 - three-valued
        """What is wanted, or a draw if that is left open."""
        return self.rng.random() < share if wanted is None else wanted

    def _some_tools(self) -> list[Tool]:
        """One to three tools in any order."""
        offer = [WEATHER, TIME, other_tool(self.rng), other_tool(self.rng)]
        by_name = {offered.name: offered for offered in offer}
        return self.rng.sample(list(by_name.values()), min(len(by_name), self.rng.randint(1, 3)))

    def _system_prompt(self) -> str | None:
        """A system prompt that counts, one that does not, or none."""
        if self.state.capitals:
            return self.rng.choice(CAPITALS_PROMPTS)
        return self.rng.choice(PLAIN_PROMPTS) if self.rng.random() < 0.25 else None

    def head(self) -> list[Message]:
        """The messages before the first turn."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def turn(self, kind: str | None = None) -> Turn:
        """A next turn; it counts only once it is given to accept()."""
        made = self._task(kind)(self.rng, self.state)
        if self.state.capitals:
            for message in made.messages:
                if message["role"] == "assistant":
                    message["content"] = message["content"].upper()
        return made

    def _task(self, kind: str | None) -> Task:
        """The task of this kind, or one drawn by share."""
        if kind is None:
            kind = self._draw()
        return tool if kind == "tool" else TASKS[kind]

    def _draw(self) -> str:
        """A kind that fits the state of the dialogue."""
        if self.state.tools and self.rng.random() < 0.7:
            return "tool"
        names = SHORT if self.state.capitals else tuple(TASKS)
        kind = self.rng.choices(names, [SHARES[name] for name in names])[0]
        if kind == "recall" and not self.state.name and self.rng.random() < 0.7:
            return "introduce"  # mostly ask for a name that was told
        return kind

    def accept(self, turn: Turn) -> list[Message]:
        """Take the turn into the dialogue and return its messages."""
        self.state.name = turn.name or self.state.name
        return turn.messages
