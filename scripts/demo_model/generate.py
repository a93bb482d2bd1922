"""Synthetic chat data for the tiny demo model.

Everything is written by this folder: no outside text is used. Each task makes prompts whose
answer is a function of the conversation, so that a well trained model has one right answer,
also when it samples or resumes.
"""

import argparse
import json
import random
from collections.abc import Iterator

from scripts.demo_model.chat_template import render_head
from scripts.demo_model.dialogue import TASKS, Dialogue
from scripts.demo_model.turns import Message


def texts(rng: random.Random, count: int) -> Iterator[str]:
    """The plain message texts of `count` dialogues of one turn, for the tokenizer."""
    for _ in range(count):
        dialogue = Dialogue(rng)
        messages = dialogue.head() + dialogue.accept(dialogue.turn())
        lines = [message["content"] for message in messages]
        yield "\n".join([*lines, render_head(dialogue.state.tools).replace("<|im_", " ")])


def dialogues(
    rng: random.Random, count: int, turns: int, kind: str | None = None
) -> Iterator[tuple[Dialogue, list[Message]]]:
    """`count` dialogues with all messages of `turns` turns, of one kind if that is given."""
    for _ in range(count):
        dialogue = Dialogue(rng, tools=True if kind == "tool" else None)
        messages = dialogue.head()
        for _ in range(turns):
            messages += dialogue.accept(dialogue.turn(kind))
        yield dialogue, messages


def as_json(dialogue: Dialogue, messages: list[Message]) -> str:
    """A dialogue as one line of JSON, its tools as the OpenAI API wants them."""
    tools = [tool.openai() for tool in dialogue.state.tools]
    return json.dumps({"tools": tools, "messages": messages})


def as_text(messages: list[Message]) -> str:
    """A dialogue to be read by people."""
    lines = [f"{message['role']:>9}: {message['content']}" for message in messages]
    return "\n".join([*lines, "-" * 40])


def main() -> None:
    """Print some dialogues."""
    parser = argparse.ArgumentParser(description="Print synthetic chat data of the demo model.")
    parser.add_argument("--count", type=int, default=1, help="number of dialogues")
    parser.add_argument("--turns", type=int, default=4, help="turns in each dialogue")
    parser.add_argument("--kind", choices=[*TASKS, "tool"], help="only turns of this kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jsonl", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    made = dialogues(random.Random(args.seed), args.count, args.turns, args.kind)
    for dialogue, messages in made:
        print(as_json(dialogue, messages) if args.jsonl else as_text(messages))


if __name__ == "__main__":
    main()
