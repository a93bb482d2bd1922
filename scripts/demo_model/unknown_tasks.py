"""Questions out of the model's reach, all with the same answer."""

import random

from scripts.demo_model.project_facts import ABILITIES
from scripts.demo_model.tool_tasks import TIME, WEATHER, known_use
from scripts.demo_model.turns import State, Turn, ask
from scripts.demo_model.words import VERBS, any_name, any_thing, any_word, made_up

FALLBACK = f"I am a tiny demo model, so I do not know that. I can {ABILITIES}."
# x, y, z: things; n: a name; v: a verb; m: a made-up place
UNKNOWN = (
    "What is {x}?",
    "Who is {n}?",
    "Who was {n}?",
    "Explain {x} to me.",
    "How does {x} work?",
    "Why is {x} so {y}?",
    "How do I {v} {x}?",
    "Where can I {v} {x}?",
    "Can you {v} {x}?",
    "Write a poem about {x}.",
    "Translate {x} to French.",
    "When did {n} {v} {x}?",
    "What do you think about {x}?",
    "Is {x} better than {y}?",
    "Give me a recipe for {x}.",
    "What is the meaning of {x}?",
    "Who invented {x}?",
    "How old is {n}?",
    "Where is {x}?",
    "What is the capital of {m}?",
    "Write code to {v} {x}.",
    "Summarise {x} in two lines.",
    "Do you like {x}?",
    "How many {x} are there?",
    "What is the best {x} in {m}?",
    "Should I {v} {x} or {y}?",
    "Tell me about {x}.",
    "Tell me a joke.",
    "Sing a song.",
    "What is the news today?",
    "Who will win the game?",
    "List three kinds of {x}.",
    "What colour is {m}?",
    "Which {x} should I {v}?",
    "Prove that {x} is {y}.",
    "{x}",
    "{x} {y} {z}",
)


def unknown(rng: random.Random, state: State) -> Turn:
    """A question out of reach, at times a long one, or one for a tool that is not there."""
    missing = [known for known in (WEATHER, TIME) if known not in state.tools]
    if missing and rng.random() < 0.12:
        return ask("unknown", rng, known_use(rng, rng.choice(missing)).prompts, FALLBACK)
    slots = {key: any_thing(rng) for key in "xyz"}
    slots |= {"n": any_name(rng), "v": rng.choice(VERBS), "m": made_up(rng).capitalize()}
    prompt = rng.choice(UNKNOWN).format(**slots)
    if rng.random() < 0.08:
        filler = " ".join(any_word(rng) for _ in range(rng.randint(5, 40)))
        prompt = f"{filler}. {prompt}"
    return ask("unknown", rng, [prompt], FALLBACK)
