"""Names, nouns, cities and made-up words that the synthetic dialogues are built from."""

import random
from collections.abc import Sequence


def _split(text: str) -> tuple[str, ...]:
    """The words of a text; a word a line would bury them."""
    return tuple(text.split())


NAMES = _split(
    "Ada Ben Cleo Dan Eve Finn Gina Hugo Iris Jack Kara Liam Maya Noah Olga Paul Quin Rosa "
    "Sam Tara Uma Vera Will Yara Zoe Alice Bob Carol David Emma Frank Grace Henry Ivan Julia "
    "Karl Laura Mark Nina Oscar Peter Robin Sara Tom Anna Max Leo Lisa John Mary"
)
NOUNS = _split(
    "cat dog moon tree fish bird book door king ship wolf leaf rock bear frog box hat ring key "
    "cup bell kite coin drum shell stone rose cake boat ball feather mirror candle basket"
)
WORDS = NOUNS + _split(
    "sun milk rain snow star gold wind sand red blue green hello world fast slow happy "
    "quiet river bridge cloud paper silver table water house music winter yellow"
)
CITIES = _split(
    "Paris Rome London Berlin Tokyo Madrid Oslo Cairo Lima Delhi Athens Dublin Vienna Prague "
    "Warsaw Lisbon"
)
THINGS = _split(
    "love life time money war peace history physics gravity computers football tennis chess "
    "Python Rust Linux cars planes trains politics art poetry jazz cheese bread pizza coffee tea "
    "chocolate viruses medicine yoga law religion dreams evolution atoms electricity banks "
    "Shakespeare Einstein Mozart Napoleon presidents queens Mars volcanoes oceans"
)
VERBS = _split(
    "bake cook fix build paint learn sell buy clean grow write draw open install train debug"
)
TOOL_VERBS = _split("get find read list check lookup search load show test")
TOOL_NOUNS = _split("status price user file node model peer order page value state")
TOOL_PARAMETERS = _split("name id key query path city user text")

_ONSETS = _split("b d f g h j k l m n p r s t v w z br cr dr fl gr kl pr sh st th tr")
_VOWELS = _split("a e i o u ai ea io")
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "x")


def made_up(rng: random.Random, syllables: int = 2) -> str:
    """A word that is not in any list, to teach copying and not remembering."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    )


def any_name(rng: random.Random) -> str:
    """A known name, or (two times in five) a made-up one."""
    if rng.random() < 0.6:
        return rng.choice(NAMES)
    return made_up(rng, rng.choice((1, 2, 2, 3))).capitalize()


def any_word(rng: random.Random, words: Sequence[str] = WORDS) -> str:
    """A word of the list, or (one time in four) a made-up one."""
    return rng.choice(words) if rng.random() < 0.75 else made_up(rng)


def any_thing(rng: random.Random) -> str:
    """Something the model knows nothing about."""
    return rng.choice(THINGS) if rng.random() < 0.6 else made_up(rng, rng.randint(1, 3))
