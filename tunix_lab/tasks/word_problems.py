"""Word problems of two steps with small numbers: what there are, how they are told, and which of them are held out.

A *problem* is its kind and its operands, whatever names and objects dress it. Train, validation and test never share a
problem, while every single step of a held-out problem (a *fact*, such as `7+5=12`) also occurs in a training problem: what is
held out is the composition, not the tables of addition.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Sequence

SPLITS = ("train", "validation", "test")
LARGEST = 40
"""No operand, intermediate value or answer exceeds this."""

HELD_OUT = 0.12
"""Fraction of the problems that each of validation and test takes."""

NAMES = ("Ana", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
OBJECTS = ("books", "cards", "coins", "cups", "eggs", "nuts", "pens", "toys")
QUESTION = "How many {o} are there now?"

COMPUTE: dict[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of problems `(a op1 b) op2 c`: the two operators, the range of each operand, and the stories that tell it."""

    name: str
    operators: tuple[str, str]
    ranges: tuple[range, range, range]
    stories: tuple[str, ...]


_SMALL = range(2, 10)
KINDS = (
    Kind(
        "gain_loss",
        ("+", "-"),
        (range(2, 13), _SMALL, _SMALL),
        (
            "{n} has {a} {o}. {n} finds {b} more and loses {c}.",
            "There are {a} {o} in a box. {n} adds {b} and takes {c}.",
        ),
    ),
    Kind(
        "loss_gain",
        ("-", "+"),
        (range(6, 21), _SMALL, _SMALL),
        (
            "{n} has {a} {o}. {n} loses {b} and finds {c} more.",
            "There are {a} {o} in a box. {n} takes {b} and adds {c}.",
        ),
    ),
    Kind(
        "gain_gain",
        ("+", "+"),
        (range(2, 13), _SMALL, _SMALL),
        (
            "{n} has {a} {o}. {n} finds {b} more and gets {c} more.",
            "There are {a} {o} in a box. {n} adds {b} and then adds {c}.",
        ),
    ),
    Kind(
        "loss_loss",
        ("-", "-"),
        (range(6, 21), _SMALL, _SMALL),
        (
            "{n} has {a} {o}. {n} loses {b} and gives away {c}.",
            "There are {a} {o} in a box. {n} takes {b} and then takes {c}.",
        ),
    ),
    Kind(
        "groups_gain",
        ("*", "+"),
        (range(2, 6), range(2, 8), _SMALL),
        (
            "{n} has {a} bags of {b} {o}. {n} finds {c} more.",
            "There are {a} boxes with {b} {o} each. {n} adds {c}.",
        ),
    ),
    Kind(
        "groups_loss",
        ("*", "-"),
        (range(2, 6), range(2, 8), _SMALL),
        (
            "{n} has {a} bags of {b} {o}. {n} loses {c}.",
            "There are {a} boxes with {b} {o} each. {n} takes {c}.",
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: the same for every name, object and story."""

    kind: Kind
    operands: tuple[int, int, int]

    @property
    def key(self) -> str:
        """What makes it this problem, such as `gain_loss 7 5 4`."""
        return " ".join([self.kind.name, *map(str, self.operands)])

    @property
    def values(self) -> tuple[int, int]:
        """The intermediate value and the answer."""
        a, b, c = self.operands
        first, second = self.kind.operators
        middle = COMPUTE[first](a, b)
        return middle, COMPUTE[second](middle, c)

    @property
    def answer(self) -> str:
        """The final value in digits."""
        return str(self.values[1])

    @property
    def facts(self) -> tuple[str, str]:
        """The two steps as equations."""
        (a, b, c), (middle, last), (first, second) = self.operands, self.values, self.kind.operators
        return f"{a}{first}{b}={middle}", f"{middle}{second}{c}={last}"

    def tell(self, rng: random.Random) -> str:
        """The problem as text, with a story, a name and an object drawn from `rng`."""
        a, b, c = self.operands
        story = f"{rng.choice(self.kind.stories)} {QUESTION}"
        return story.format(n=rng.choice(NAMES), o=rng.choice(OBJECTS), a=a, b=b, c=c)


def all_problems() -> list[Problem]:
    """Every problem whose values lie in 0..LARGEST, in a fixed order."""
    problems = (Problem(kind, operands) for kind in KINDS for operands in itertools.product(*kind.ranges))
    return [p for p in problems if all(0 <= value <= LARGEST for value in p.values)]


def split_problems(seed: int) -> dict[str, list[Problem]]:
    """The problems of each split: by a hash of seed and problem, with every fact of a held-out problem present in train."""
    ranked = sorted((_fraction(f"{seed} {p.key}"), p.key, p) for p in all_problems())
    splits: dict[str, list[Problem]] = {name: [] for name in SPLITS}
    for fraction, _, problem in ranked:
        name = "test" if fraction < HELD_OUT else "validation" if fraction < 2 * HELD_OUT else "train"
        splits[name].append(problem)
    known = {fact for p in splits["train"] for fact in p.facts}
    for name in ("validation", "test"):
        for problem in [p for p in splits[name] if not known.issuperset(p.facts)]:
            splits[name].remove(problem)
            splits["train"].append(problem)
    return splits


def _fraction(text: str) -> float:
    """A hash of `text` in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def worked_answer(facts: Sequence[str], answer: str) -> str:
    """The completion that shows `facts` as reasoning and then `answer`."""
    return f"<reasoning>{' '.join(facts)}</reasoning><answer>{answer}</answer>"
