"""The six stories of the demo model, and the prompts that ask for them."""

import random

from scripts.demo_model.turns import State, Turn, ask
from scripts.demo_model.words import NOUNS, any_name, any_word

# the sort of story: (what it is about, the text)
PLOTS: dict[str, tuple[str, str]] = {
    "": (
        "ring",
        "Once upon a time, {n} lived in a small house with a big garden. One morning {n} found a "
        "{w} under the old tree. The {w} was cold and covered with sand. {n} took the {w} home, "
        "washed it and put it by the door. The next day the {w} was gone. {n} looked in the "
        "kitchen, behind the clock and on the roof, but the {w} was not there. Then a bird sang "
        "at the window. It told {n} to follow the path to the river. There sat a little frog "
        "with the {w} in its arms. The frog said that it was lonely and only wanted to play. {n} "
        "smiled and asked the frog to come home. From that day on, {n} and the frog shared the "
        "{w}, and nobody in the garden was lonely again. The end.",
    ),
    "sea": (
        "bell",
        "Long ago, {n} sailed across the blue sea in a boat made of wood. The wind was soft and "
        "the sun was warm. On the third day {n} saw a {w} floating on the waves. {n} pulled the "
        "{w} into the boat and dried it in the sun. That night a great storm came. The waves "
        "were as high as hills and the boat began to sink. {n} held the {w} up to the sky and "
        "called for help. A whale heard the call. It lifted the boat on its back and swam to a "
        "quiet island. {n} thanked the whale and wanted to give it the {w}. The whale laughed "
        "and said that a friend needs no gift. So {n} kept the {w}, built a little house on the "
        "island, and waved to the whale every evening. The end.",
    ),
    "winter": (
        "stone",
        "It was the coldest winter in the north, and snow lay on every roof. {n} walked through "
        "the white forest to look for wood. Under a tall tree there was a {w}, shining like a "
        "star. {n} picked up the {w} and felt that it was warm. On the way home {n} met an old "
        "fox, who was shaking with cold. {n} put the {w} down beside the fox, and soon the snow "
        "around them was gone. More animals came, first a hare, then an owl, and at last a bear. "
        "They all sat around the {w} and told stories until the morning. When the sun came up, "
        "the fox said that {n} had a kind heart. {n} left the {w} in the forest, so that no one "
        "would be cold again. The end.",
    ),
    "space": (
        "box",
        "In the year three thousand, {n} was the captain of a small silver ship. {n} flew past "
        "the moon and far beyond the last planet. One day the radio made a strange sound. It "
        "came from a {w} that was turning slowly in the dark. {n} put on a suit, went outside "
        "and brought the {w} into the ship. The {w} opened and a little voice said hello. It had "
        "been lost for a hundred years and wanted to go home. {n} looked at the map and set a "
        "new course. They flew for nine days, and {n} told the {w} every joke in the world. At "
        "last they saw a green planet. Many voices sang when the {w} came home. They gave {n} a "
        "song, and {n} still sings it on every trip. The end.",
    ),
    "funny": (
        "cup",
        "{n} had a {w} that could talk. This was not as nice as it sounds, because the {w} only "
        "talked about soup. At breakfast it asked for soup. At lunch it asked for more soup. At "
        "dinner it said that the soup was too hot. One day {n} took the {w} to the market and "
        "tried to sell it. A cook asked what it could do. The {w} said that her soup needed "
        "salt. The cook tasted the soup, and it was true. She laughed so loud that the whole "
        "market came to look. From that day on, {n} and the {w} worked in her kitchen. People "
        "came from far away to eat there, and {n} became rich. But every night, before bed, the "
        "{w} still asked {n} for one more bowl of soup. The end.",
    ),
    "night": (
        "key",
        "{n} could not sleep. The moon was bright and something was knocking at the window. {n} "
        "opened it and saw a {w} sitting in the cold air. The {w} said that the stars were dark, "
        "because the keeper of the lights was sad. {n} took a coat and a lamp and went with the "
        "{w} over the roofs of the town. They climbed a tall tower, step by step, until they "
        "came to the top. There sat the keeper, all alone. {n} asked what was wrong. The keeper "
        "said that nobody ever looked up any more. {n} promised to look up every night, and the "
        "{w} promised to bring a friend. Then the keeper smiled, and one by one the stars came "
        "back. {n} ran home, waved to the {w}, and slept until noon. The end.",
    ),
}


def story_text(sort: str, name: str, thing: str | None) -> str:
    """The story of this sort, with its people and things put in."""
    usual, text = PLOTS[sort]
    return text.format(n=name, w=thing or usual)


def story(rng: random.Random, _: State) -> Turn:
    """A story of 210 to 280 tokens: its sort, name and thing come from the prompt."""
    sort = rng.choice(list(PLOTS))
    name = any_name(rng) if rng.random() < 0.9 else None
    thing = any_word(rng, NOUNS) if name and rng.random() < 0.6 else None
    lead = rng.choice(("Tell me a", "Tell a", "Write a", "I want a"))
    about = (f" about {name}" if name else "") + (f" and a {thing}" if thing else "")
    kind = f"{sort} story" if sort else rng.choice(("story", "story", "long story"))
    return ask("story", rng, [f"{lead} {kind}{about}."], story_text(sort, name or "Ada", thing))
