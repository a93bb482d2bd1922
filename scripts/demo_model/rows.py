"""Training rows: one dialogue that fills a row, its token ids and their weights in the loss."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache

from scripts.demo_model.chat_template import render_head
from scripts.demo_model.dialogue import Dialogue
from scripts.demo_model.turns import Message

END = "<|im_end|>"
PROMPT_WEIGHT = 0.05  # weight of the loss on tokens that the model will not have to write
FULL_LENGTH, LEAST_WEIGHT, FIRST_TOKENS = 8, 0.4, 4  # see answer_weights()
CUT_SHARE = 0.5  # answers that are tokenised in two parts, to teach resuming anywhere
MISSES_MAX = 4  # tries to find a turn that still fits into a row
ENCODINGS_KEPT = 50_000  # most texts come again and again; this many fit into little memory

Encode = Callable[[str], list[int]]
Row = tuple[list[int], list[float]]
"""Token ids and loss weights."""


def answer_weights(length: int) -> list[float]:
    """Weights of the `length` tokens of an answer.

    A sum must not drown in the stories, so longer answers weigh less per token; but the
    first tokens, which choose what to say, weigh in full.
    """
    rest = max(LEAST_WEIGHT, min(1.0, (FULL_LENGTH / max(length, 1)) ** 0.5))
    return [1.0] * min(FIRST_TOKENS, length) + [rest] * (length - FIRST_TOKENS)


class Rows:
    """Makes training rows out of fresh dialogues.

    Args:
        encode: the tokenizer.
        pad: id of the token that fills up a row.
        seed: equal seeds give equal rows.
    """

    def __init__(self, encode: Encode, pad: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._pad = pad
        self._encode: Encode = lru_cache(ENCODINGS_KEPT)(encode)

    def _parts(self, message: Message) -> Iterator[tuple[str, bool]]:
        """The pieces of a message that are tokenised alone, and if the model writes them."""
        body, ours = message["content"], message["role"] == "assistant"
        yield f"<|im_start|>{message['role']}\n", False
        if ours and self._rng.random() < CUT_SHARE:
            start = 0
            for cut in self._cuts(len(body)):
                word = max(body.rfind(" ", start, cut), start)
                yield body[start:word], True
                yield body[word:cut], False  # the model should not learn to stop in a word
                start = cut
            body = body[start:]
        yield body + END, ours
        yield "\n", False

    def _cuts(self, length: int) -> list[int]:
        """Where to cut an answer: once, and once more for each hundred characters."""
        return sorted(self._rng.randrange(length + 1) for _ in range(1 + length // 100))

    def _tokens(self, messages: list[Message]) -> Row:
        """Ids and weights of some messages."""
        ids: list[int] = []
        weights: list[float] = []
        for message in messages:
            for text, ours in self._parts(message):
                part = self._encode(text)
                ids += part
                weights += answer_weights(len(part)) if ours else [PROMPT_WEIGHT] * len(part)
        return ids, weights

    def row(self, length: int) -> Row:
        """One dialogue of `length` tokens, with as little padding as a few tries allow."""
        dialogue = Dialogue(self._rng)
        ids = list(self._encode(render_head(dialogue.state.tools)))
        weights = [PROMPT_WEIGHT] * len(ids)
        head_ids, head_weights = self._tokens(dialogue.head())
        ids, weights, misses = ids + head_ids, weights + head_weights, 0
        while misses < MISSES_MAX:
            turn = dialogue.turn()
            more, more_weights = self._tokens(turn.messages)
            if len(ids) + len(more) > length:
                misses += 1
                continue
            dialogue.accept(turn)
            ids, weights = ids + more, weights + more_weights
        rest = length - len(ids)
        return ids + [self._pad] * rest, weights + [0.0] * rest

    def batch(self, size: int, length: int) -> tuple[list[list[int]], list[list[float]]]:
        """Ids and weights of `size` rows that train `length` tokens each."""
        rows = [self.row(length + 1) for _ in range(size)]
        return [ids for ids, _ in rows], [weights for _, weights in rows]
