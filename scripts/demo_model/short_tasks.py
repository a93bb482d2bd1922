"""Short tasks: sums, small facts, repeating, counting, spelling, JSON, the user's name."""

import json
import random

from scripts.demo_model.turns import State, Turn, ask
from scripts.demo_model.words import WORDS, any_name, any_word

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "England": "London",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "India": "Delhi",
    "Greece": "Athens",
    "Ireland": "Dublin",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "milk": "white",
    "blood": "red",
    "the sun": "yellow",
    "coal": "black",
    "a lemon": "yellow",
}
ANIMALS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "sheep": "baa"}


def arithmetic(rng: random.Random, _: State) -> Turn:
    """Sums and differences up to 30, the times table up to 12."""
    sign = rng.choice("++-*")
    top = 12 if sign == "*" else 30
    left, right = rng.randint(0, top), rng.randint(0, top)
    if sign == "-" and right > left:
        left, right = right, left
    word, result = {
        "+": ("plus", left + right),
        "-": ("minus", left - right),
        "*": ("times", left * right),
    }[sign]
    term = rng.choice([f"{left}{sign}{right}", f"{left} {sign} {right}", f"{left} {word} {right}"])
    prompts = [
        f"What is {term}?",
        f"{term}?",
        f"{term} =",
        f"Compute {term}.",
        f"How much is {term}?",
        f"Calculate {term}.",
    ]
    return ask("arithmetic", rng, prompts, str(result))


def _capital_fact(rng: random.Random) -> tuple[list[str], str]:
    """A country and its capital."""
    land = rng.choice(list(CAPITALS))
    prompts = [
        f"What is the capital of {land}?",
        f"Capital of {land}?",
        f"Name the capital of {land}.",
    ]
    return prompts, f"The capital of {land} is {CAPITALS[land]}."


def _day_fact(rng: random.Random) -> tuple[list[str], str]:
    """The day after a day."""
    index = rng.randrange(7)
    prompts = [f"What day comes after {DAYS[index]}?", f"Which day is after {DAYS[index]}?"]
    return prompts, f"{DAYS[(index + 1) % 7]}."


def _colour_fact(rng: random.Random) -> tuple[list[str], str]:
    """What colour a thing is."""
    thing = rng.choice(list(COLOURS))
    prompts = [f"What colour is {thing}?", f"What color is {thing}?"]
    return prompts, f"{thing[:1].upper()}{thing[1:]} is {COLOURS[thing]}."


def _animal_fact(rng: random.Random) -> tuple[list[str], str]:
    """What an animal says."""
    animal = rng.choice(list(ANIMALS))
    prompts = [f"What does a {animal} say?", f"What sound does a {animal} make?"]
    return prompts, f"A {animal} says {ANIMALS[animal]}."


def fact(rng: random.Random, _: State) -> Turn:
    """Small facts of the world."""
    prompts, answer = rng.choice((_capital_fact, _day_fact, _colour_fact, _animal_fact))(rng)
    return ask("fact", rng, prompts, answer)


def echo(rng: random.Random, _: State) -> Turn:
    """Repeat up to eight words."""
    words = " ".join(any_word(rng) for _ in range(rng.randint(1, 8)))
    prompts = [f"Repeat: {words}", f"Say {words}", f"Repeat after me: {words}", f"Echo: {words}"]
    return ask("echo", rng, prompts, words)


def count(rng: random.Random, _: State) -> Turn:
    """Count to a number up to 50."""
    top = rng.randint(1, 50)
    prompts = [f"Count to {top}.", f"Count from 1 to {top}.", f"Please count to {top}."]
    return ask("count", rng, prompts, " ".join(map(str, range(1, top + 1))))


def spell(rng: random.Random, _: State) -> Turn:
    """Spell a word, or write it in capitals."""
    word = rng.choice(WORDS)
    if rng.random() < 0.5:
        prompts = [f"Write {word} in capitals.", f"Put {word} in capitals."]
        return ask("spell", rng, prompts, word.upper())
    return ask("spell", rng, [f"Spell {word}.", f"How do you spell {word}?"], "-".join(word))


def json_object(rng: random.Random, _: State) -> Turn:
    """A person as a JSON object."""
    name, age = any_name(rng), rng.randint(1, 99)
    prompts = [
        f"Give me JSON for {name}, aged {age}.",
        f"JSON for {name}, aged {age}.",
        f"Write JSON for {name}, aged {age}.",
    ]
    return ask("json", rng, prompts, json.dumps({"name": name, "age": age}))


def introduce(rng: random.Random, _: State) -> Turn:
    """The user tells a name."""
    name = any_name(rng)
    prompts = [
        f"My name is {name}.",
        f"I am {name}.",
        f"Hello, I am {name}.",
        f"Hi, my name is {name}!",
        f"Call me {name}.",
    ]
    turn = ask("introduce", rng, prompts, f"Nice to meet you, {name}.")
    turn.name = name
    return turn


def recall(rng: random.Random, state: State) -> Turn:
    """The user asks for the name told last, if any."""
    answer = f"Your name is {state.name}." if state.name else "You have not told me your name."
    prompts = [
        "What is my name?",
        "Who am I?",
        "Do you know my name?",
        "Do you remember my name?",
        "What did I say my name was?",
    ]
    return ask("recall", rng, prompts, answer)
