"""Content of the demo data set, before images are drawn: its clubs and their mentions.

Sports clubs share the names of their towns. Each name has four clubs, two sports times two badges:

===========  ==================  ==================
Aldmoor      badge 3             badge 17
===========  ==================  ==================
tennis       club D12            club D203
chess        club D77            club D140
===========  ==================  ==================

A sentence implies the sport (by a word such as *volley*), an image shows the badge. The text leaves two clubs, and the
image leaves all clubs with this badge, of many towns; both together leave one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal, TypeVar

Split = Literal["train", "dev", "test"]
Health = Literal["fine", "absent", "unreadable"]
T = TypeVar("T")

BADGES = 24
"""Number of different badges, at most 36; each belongs to clubs of several towns."""
MENTIONS_PER_CLUB: dict[Split, int] = {"train": 10, "dev": 1, "test": 2}
"""The same for every club of a split, so that no club is a better guess a priori."""
UNSEEN_CLUBS = 24
"""Clubs that are mentioned in dev and test only, at most one per name."""
CLUBS_WITHOUT_IMAGE = 6
CLUBS_WITH_UNREADABLE_IMAGE = 4
MENTIONS_WITHOUT_IMAGE: dict[Split, int] = {"train": 20, "dev": 2, "test": 4}
MENTIONS_WITH_UNREADABLE_IMAGE: dict[Split, int] = {"train": 10, "dev": 2, "test": 4}

NAMES = [
    beginning + end
    for beginning in ("Ald", "Birch", "Clay", "Dun", "Elm", "Fair", "Glen", "Hart", "Iron", "Kings", "Lind", "Marsh")
    for end in ("bury", "ford", "ham", "moor", "wick")
]

CLUES = {
    "archery": ("arrows", "quiver", "bow", "bullseye", "longbow", "fletching"),
    "boxing": ("gloves", "knockout", "jab", "uppercut", "ring", "rounds"),
    "chess": ("bishop", "checkmate", "gambit", "pawn", "endgame", "castling"),
    "climbing": ("ropes", "belay", "holds", "bouldering", "summit", "overhang"),
    "cycling": ("peloton", "pedals", "saddle", "gears", "velodrome", "breakaway"),
    "fencing": ("foil", "sabre", "epee", "parry", "lunge", "riposte"),
    "football": ("goalkeeper", "penalty", "corner", "header", "striker", "offside"),
    "rowing": ("oars", "coxswain", "sculls", "regatta", "boathouse", "headrace"),
    "sailing": ("spinnaker", "mast", "jib", "rudder", "tack", "yacht"),
    "skiing": ("slalom", "poles", "downhill", "piste", "gates", "moguls"),
    "swimming": ("butterfly", "lanes", "freestyle", "goggles", "dive", "medley"),
    "tennis": ("racket", "aces", "volley", "deuce", "baseline", "backhand"),
}
"""Words that imply a sport; each implies exactly one. The first two are in the knowledge base."""

_ATTRIBUTES = "Sport: {sport}. Terms: {first}, {second}."

_SENTENCES = (
    "{name} won on {day}, and the {place} talked of the {clue}.",
    "On {day} the {clue} decided everything for {name}.",
    "A {mood} evening at the {place}: {name} and the {clue}.",
    "The {place} was {mood} when {name} came back with the {clue}.",
    "Nobody expected the {clue} from {name} that {day}.",
    "Since {day} {name} has trained nothing but the {clue}.",
    "After the {clue}, a {mood} crowd at the {place} sang for {name}.",
    "{name} lost the {clue} and went home on {day}.",
    "Our reporter met {name} near the {place} to speak about the {clue}.",
    "With the {clue} in mind, {name} had a {mood} {day}.",
    "It was the {clue} that made {name} known beyond the {place}.",
    "Young members of {name} try the {clue} every {day}.",
    "The {mood} winter kept {name} away from the {clue}.",
    "Children at the {place} ask {name} about the {clue}.",
    "Last {day} a {mood} rain stopped {name} during the {clue}.",
    "{name} will show the {clue} at the {place} next {day}.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PLACES = ("harbour", "market", "station", "library", "bridge", "school", "museum", "garden")
_MOODS = ("quiet", "cold", "bright", "windy", "long", "merry", "grey", "strange")

COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "drop")
MARKINGS = ("plain", "dot", "bar", "pair")


@dataclass(frozen=True, slots=True)
class Badge:
    """The badge that an image shows, independent of style."""

    colour: str
    shape: str
    marking: str

    def differences(self, other: Badge) -> int:
        """The number of attributes (colour, shape, marking) in which two badges differ."""
        return (self.colour != other.colour) + (self.shape != other.shape) + (self.marking != other.marking)


@dataclass(frozen=True, slots=True)
class Club:
    """A future entity: ``health`` is that of its image."""

    qid: str
    name: str
    sport: str
    badge: Badge
    health: Health
    unseen: bool

    @property
    def attributes(self) -> str:
        """Its text in the knowledge base."""
        first, second, *_ = CLUES[self.sport]
        return _ATTRIBUTES.format(sport=self.sport, first=first, second=second)


@dataclass(frozen=True, slots=True)
class ClubMention:
    """A future mention: ``health`` is that of its image."""

    id: str
    club: Club
    sentence: str
    health: Health


@dataclass(frozen=True, slots=True)
class DemoDesign:
    """All clubs in the order of the knowledge base, and the mentions of each split."""

    clubs: list[Club]
    mentions: dict[Split, list[ClubMention]]


def design_demo(seed: int) -> DemoDesign:
    """Design the demo, without its images; the same seed gives the same design."""
    rng = Random(f"demo design {seed}")
    clubs = _create_clubs(rng)
    used: set[str] = set()
    mentions: dict[Split, list[ClubMention]] = {}
    for split, repeats in MENTIONS_PER_CLUB.items():
        golds = [club for club in clubs for _ in range(repeats) if not (club.unseen and split == "train")]
        rng.shuffle(golds)
        health = _image_health(len(golds), MENTIONS_WITHOUT_IMAGE[split], MENTIONS_WITH_UNREADABLE_IMAGE[split], rng)
        mentions[split] = [
            ClubMention(f"{split}-{number}", club, _new_sentence(club, used, rng), health[number])
            for number, club in enumerate(golds)
        ]
    return DemoDesign(clubs, mentions)


def demo_words() -> list[str]:
    """Every word of the demo's texts in lower case, sorted: the vocabulary of a tokenizer built for it.

    It includes ``sep``, which the text templates insert after a name.
    """
    texts = [*NAMES, *CLUES, *(clue for clues in CLUES.values() for clue in clues), *_DAYS, *_PLACES, *_MOODS]
    templates = [re.sub(r"\{\w+\}", " ", template) for template in (*_SENTENCES, _ATTRIBUTES)]
    return sorted(set(re.findall(r"[a-z]+", " ".join([*texts, *templates, "sep"]).lower())))


def _create_clubs(rng: Random) -> list[Club]:
    """Four clubs per name, shuffled, so that neither name nor badge reveals the position in the knowledge base."""
    badge_pairs = _pairs(_badges(), len(NAMES), lambda a, b: a.differences(b) >= 2, rng)
    sport_pairs = _pairs(list(CLUES), len(NAMES), lambda a, b: a != b, rng)
    places = list(zip(NAMES, sport_pairs, badge_pairs, strict=True))
    rng.shuffle(places)

    drafts = []
    for number, (name, sports, badge_pair) in enumerate(places):
        special = rng.randrange(4)
        for which, (sport, badge) in enumerate(product(sports, badge_pair)):
            # Names in order: those with an unseen club, then those with a bad image; never two of one name.
            unseen = which == special and number < UNSEEN_CLUBS
            health: Health = "fine"
            if which == special and not unseen:
                absent = UNSEEN_CLUBS + CLUBS_WITHOUT_IMAGE
                if number < absent:
                    health = "absent"
                elif number < absent + CLUBS_WITH_UNREADABLE_IMAGE:
                    health = "unreadable"
            drafts.append((name, sport, badge, health, unseen))
    rng.shuffle(drafts)
    return [Club(f"D{number}", *draft) for number, draft in enumerate(drafts, start=1)]


def _badges() -> list[Badge]:
    """Badges that use every colour, shape and marking about equally often, with unique pairs of colour and shape."""
    badges = []
    for number in range(BADGES):
        row, column = divmod(number, len(COLOURS))
        shape = SHAPES[(column + row) % len(SHAPES)]
        badges.append(Badge(COLOURS[column], shape, MARKINGS[(column // 2 + row) % len(MARKINGS)]))
    return badges


def _pairs(items: Sequence[T], count: int, fits: Callable[[T, T], bool], rng: Random) -> list[tuple[T, T]]:
    """Draw compatible pairs, using all items about equally often."""
    used: Counter[int] = Counter()
    pairs = []
    for _ in range(count):
        order = sorted(range(len(items)), key=lambda i: (used[i], rng.random()))
        first = order[0]
        second = next(i for i in order[1:] if fits(items[first], items[i]))
        used.update((first, second))
        pairs.append((items[first], items[second]))
    return pairs


def _image_health(count: int, absent: int, unreadable: int, rng: Random) -> list[Health]:
    """Health of ``count`` images, with the bad ones at random positions."""
    health: list[Health] = ["fine"] * count
    bad = rng.sample(range(count), absent + unreadable)
    for number, position in enumerate(bad):
        health[position] = "absent" if number < absent else "unreadable"
    return health


def _new_sentence(club: Club, used: set[str], rng: Random) -> str:
    """A sentence about a club that was not used before; it implies the sport and nothing else that matters."""
    while True:
        sentence = rng.choice(_SENTENCES).format(
            name=club.name,
            clue=rng.choice(CLUES[club.sport]),
            day=rng.choice(_DAYS),
            place=rng.choice(_PLACES),
            mood=rng.choice(_MOODS),
        )
        if sentence not in used:
            used.add(sentence)
            return sentence
