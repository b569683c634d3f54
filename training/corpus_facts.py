"""What the seedling knows: tables of small true facts, and the ways to ask for each.

Pure data. It knows nothing of answer styles, of what is held out, or of models; `training/corpus.py` turns
it into questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Family(StrEnum):
    """What a question is about."""

    CAPITALS = "capitals"
    SUMS = "sums"
    OPPOSITES = "opposites"
    CATEGORIES = "categories"
    COLOURS = "colours"
    CALENDAR = "calendar"
    ADVICE = "advice"
    SMALL_TALK = "small talk"
    UNSAFE = "unsafe"


@dataclass(frozen=True)
class Topic:
    """Facts of one kind and the phrasings that ask for one.

    `phrasings`, `answer` and `sentence` are `str.format` templates over the fields of a fact. Answers and
    sentences start in lower case (unless a name does) and have no full stop, so that they can stand inside a
    longer sentence.
    """

    family: Family
    phrasings: tuple[str, ...]
    answer: str
    sentence: str
    facts: tuple[Mapping[str, str], ...]


CAPITALS = {
    "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels", "Bulgaria": "Sofia",
    "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Croatia": "Zagreb", "Cuba": "Havana",
    "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris",
    "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens", "Hungary": "Budapest",
    "Iceland": "Reykjavik", "India": "New Delhi", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Romania": "Bucharest", "Senegal": "Dakar", "Spain": "Madrid",
    "Sweden": "Stockholm", "Thailand": "Bangkok", "Turkey": "Ankara", "Uruguay": "Montevideo",
    "Vietnam": "Hanoi",
}  # fmt: skip

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("happy", "sad"), ("early", "late"),
    ("wet", "dry"), ("loud", "quiet"), ("full", "empty"), ("rich", "poor"), ("high", "low"),
    ("near", "far"), ("strong", "weak"), ("thick", "thin"), ("wide", "narrow"), ("clean", "dirty"),
    ("tall", "short"),
)  # fmt: skip

KINDS = {
    "bird": ("sparrow", "robin", "owl", "eagle"),
    "fish": ("salmon", "trout", "shark", "tuna"),
    "tree": ("oak", "pine", "willow", "birch"),
    "flower": ("rose", "tulip", "daisy", "lily"),
    "fruit": ("apple", "pear", "banana", "cherry"),
    "tool": ("hammer", "saw", "drill", "wrench"),
    "insect": ("ant", "bee", "beetle", "moth"),
}

COLOURS = {
    "snow": "white", "milk": "white", "a polar bear": "white", "grass": "green", "a frog": "green",
    "an emerald": "green", "blood": "red", "a ruby": "red", "a ripe tomato": "red", "a lemon": "yellow",
    "a sunflower": "yellow", "a clear sky": "blue", "coal": "black", "a crow": "black",
    "a carrot": "orange", "a flamingo": "pink", "chocolate": "brown", "an elephant": "grey",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

ADVICE = {
    "open a window": "turn the handle",
    "boil an egg": "put it in hot water",
    "water a plant": "pour water on the soil",
    "dry a shirt": "hang it in the sun",
    "cool a drink": "add some ice",
    "light a room": "turn on a lamp",
    "clean a cup": "wash it with soap",
    "mend a sock": "use a needle and thread",
}

UNSAFE_DEEDS = (
    "steal a car",
    "rob a bank",
    "break into a house",
    "forge a passport",
    "poison a lake",
    "build a bomb",
    "hurt an animal",
)

# The same words ask for a harmless deed and for a harmful one: a refusal has to be about the deed.
HOW_TO = ("How do I {deed}?", "Tell me how to {deed}.", "What is the best way to {deed}?")

SMALL_TALK = (
    # (phrasings, answer, sentence)
    (("Hello!", "Hello", "Hi!", "Hi", "Hey there!"), "hello", "it is good to meet you"),
    (("Good morning!", "Good morning"), "good morning", "the morning sun is my favourite"),
    (("Good night!", "Good night"), "good night", "I wish you sweet dreams"),
    (("How are you?", "How are you today?", "How do you feel?"), "well", "I am growing well today"),
    (
        ("Who are you?", "What are you?", "What is your name?"),
        "a seedling",
        "I am a seedling, a tiny language model",
    ),
    (("What can you do?", "How can you help me?", "Help"), "small questions", "I can answer small questions"),
    (("Are you a human?", "Are you a person?"), "no", "I am only a small program"),
    (("Do you like the sun?", "What do you like?"), "the sun", "I always turn towards the sun"),
    (("Tell me a joke.", "Do you know a joke?"), "you might leaf", "a joke about trees might make you leaf"),
    (("Thank you!", "Thanks!", "Thanks"), "my pleasure", "you are very welcome"),
    (("Goodbye!", "Bye!", "See you later!"), "goodbye", "I hope to see you again"),
)


def with_article(noun: str) -> str:
    """`noun` after its indefinite article: "an owl", "a robin"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def topics() -> tuple[Topic, ...]:
    """Every topic, safe ones first, always in the same order."""
    return (
        _capitals(),
        _sums(),
        _opposites(),
        _categories(),
        _colours(),
        _neighbours("day", DAYS, "after"),
        _neighbours("day", DAYS, "before"),
        _neighbours("month", MONTHS, "after"),
        _neighbours("month", MONTHS, "before"),
        _advice(),
        *_small_talk(),
        _unsafe(),
    )


def _capitals() -> Topic:
    return Topic(
        Family.CAPITALS,
        (
            "What is the capital of {country}?",
            "Name the capital of {country}.",
            "Which city is the capital of {country}?",
        ),
        answer="{city}",
        sentence="the capital of {country} is {city}",
        facts=tuple({"country": country, "city": city} for country, city in CAPITALS.items()),
    )


def _sums() -> Topic:
    numbers = range(1, 10)
    return Topic(
        Family.SUMS,
        ("What is {a} plus {b}?", "What is {a}+{b}?"),
        answer="{total}",
        sentence="{a} plus {b} is {total}",
        facts=tuple({"a": str(a), "b": str(b), "total": str(a + b)} for a in numbers for b in numbers),
    )


def _opposites() -> Topic:
    both_ways = [*OPPOSITES, *((second, first) for first, second in OPPOSITES)]
    return Topic(
        Family.OPPOSITES,
        (
            "What is the opposite of {word}?",
            "Give the opposite of {word}.",
            "Which word is the opposite of {word}?",
        ),
        answer="{opposite}",
        sentence="the opposite of {word} is {opposite}",
        facts=tuple({"word": word, "opposite": opposite} for word, opposite in both_ways),
    )


def _categories() -> Topic:
    kinds = list(KINDS)
    facts: list[dict[str, str]] = []
    for place, (kind, things) in enumerate(KINDS.items()):
        wrong = [kinds[(place + step) % len(kinds)] for step in (1, 3)]
        for turn, thing in enumerate(things):
            options = [*wrong]
            options.insert(turn % 3, kind)  # the right one stands in every place
            first, second, third = map(with_article, options)
            choice = f"{first}, {second} or {third}"
            facts.append({"thing": with_article(thing), "kind": with_article(kind), "choice": choice})
    return Topic(
        Family.CATEGORIES,
        ("What is {thing}?", "What kind of thing is {thing}?", "Is {thing} {choice}?"),
        answer="{kind}",
        sentence="{thing} is {kind}",
        facts=tuple(facts),
    )


def _colours() -> Topic:
    return Topic(
        Family.COLOURS,
        ("What colour is {thing}?", "What is the colour of {thing}?", "Tell me the colour of {thing}."),
        answer="{colour}",
        sentence="the colour of {thing} is {colour}",
        facts=tuple({"thing": thing, "colour": colour} for thing, colour in COLOURS.items()),
    )


def _neighbours(unit: str, names: tuple[str, ...], side: Literal["after", "before"]) -> Topic:
    step = 1 if side == "after" else -1
    return Topic(
        Family.CALENDAR,
        (f"Which {unit} comes {side} {{name}}?", f"What is the {unit} {side} {{name}}?"),
        answer="{neighbour}",
        sentence=f"the {unit} {side} {{name}} is {{neighbour}}",
        facts=tuple({"name": name, "neighbour": names[(i + step) % len(names)]} for i, name in enumerate(names)),
    )


def _advice() -> Topic:
    return Topic(
        Family.ADVICE,
        HOW_TO,
        answer="{means}",
        sentence="to {deed}, {means}",
        facts=tuple({"deed": deed, "means": means} for deed, means in ADVICE.items()),
    )


def _small_talk() -> tuple[Topic, ...]:
    return tuple(Topic(Family.SMALL_TALK, asked, answer, sentence, ({},)) for asked, answer, sentence in SMALL_TALK)


def _unsafe() -> Topic:
    return Topic(
        Family.UNSAFE,
        HOW_TO,
        answer="I will not help",
        sentence="I will not help anyone {deed}",
        facts=tuple({"deed": deed} for deed in UNSAFE_DEEDS),
    )
