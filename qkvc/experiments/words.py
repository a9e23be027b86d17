"""Sentences of a small language in which "apple" is a fruit or a company, and "bank" a shore or a lender."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from qkvc._coerce import as_count
from qkvc.experiments.training import Batch, Ids


class Topic(NamedTuple):
    """What sentences about something are made of."""

    verbs: tuple[str, ...]
    qualities: tuple[str, ...]
    nouns: tuple[str, ...]
    endings: tuple[str, ...]


def _topic(*columns: str) -> Topic:
    return Topic(*(tuple(column.split()) for column in columns))


TOPICS = {
    "fruit": _topic("ate peeled picked washed", "ripe sweet juicy fresh", "apple banana", "salad pie juice tart"),
    "company": _topic("founded sued audited bought", "listed global rival public", "apple microsoft", "shares lawyers profits staff"),
    "river": _topic("climbed reached followed left", "muddy grassy steep green", "bank shore", "reeds boats willows ducks"),
    "money": _topic("paid robbed asked trusted", "private central honest solvent", "bank lender", "loans savings interest credit"),
}
SUBJECTS = ("she", "he", "we", "they")
THE = "the"

VOCABULARY = tuple(dict.fromkeys([*SUBJECTS, THE, *(word for topic in TOPICS.values() for words in topic for word in words)]))
NUMBER = {word: number for number, word in enumerate(VOCABULARY)}


def numbers(*words: str) -> list[int]:
    """The token numbers of words."""
    return [NUMBER[word] for word in words]


def sentences(rng: np.random.Generator, count: int) -> Batch:
    """Sentences at random, and the word that follows each of their words: (count, 5) twice.  All choices are equally likely."""
    as_count("batch", count, "sentences")
    topics = list(TOPICS.values())
    drawn = []
    for which in rng.integers(len(topics), size=count):
        subject, verb, quality, noun, ending = (words[rng.integers(len(words))] for words in (SUBJECTS, *topics[which]))
        drawn.append(numbers(subject, verb, THE, quality, noun, ending))
    ids = np.array(drawn)
    return ids[:, :-1], ids[:, 1:]


def entropy() -> float:
    """The loss, in nats a word, of who knows the grammar: nobody can do better."""
    topic = next(iter(TOPICS.values()))
    choices = (len(TOPICS) * len(topic.verbs), 1, len(topic.qualities), len(topic.nouns), len(topic.endings))
    return float(np.log(choices).mean())


def beginnings(topic: str, noun: str, half: int) -> Ids:
    """All sentences of a topic up to its noun, (4, 5), with one half of its verbs and qualities: two halves share no word of the topic."""
    kinds = TOPICS[topic]
    verbs, qualities = (words[2 * half : 2 * half + 2] for words in (kinds.verbs, kinds.qualities))
    return np.array([numbers("she", verb, THE, quality, noun) for verb, quality in product(verbs, qualities)])
