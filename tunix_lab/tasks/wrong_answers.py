"""Plausible wrong answers to word problems: what the rejected side of a preference looks like."""

import itertools
import random

from tunix_lab.tasks.word_problems import COMPUTE, LARGEST, Problem, worked_answer


def _wrong_operation(p: Problem, rng: random.Random) -> str:
    """One of the two steps uses another operator; the rest follows from it correctly."""
    a, b, c = p.operands
    choices = []
    for first, second in itertools.product("+-*", repeat=2):
        middle = COMPUTE[first](a, b)
        last = COMPUTE[second](middle, c)
        changed = (first != p.kind.operators[0]) + (second != p.kind.operators[1])
        plausible = 0 <= middle <= LARGEST and 0 <= last <= LARGEST
        if changed == 1 and plausible and last != p.values[1]:
            choices.append(worked_answer((f"{a}{first}{b}={middle}", f"{middle}{second}{c}={last}"), str(last)))
    return rng.choice(choices)


def _miscalculated(p: Problem, rng: random.Random) -> str:
    """One of the two steps is off by one, two or ten; the rest follows from it correctly."""
    a, b, c = p.operands
    first, second = p.kind.operators
    middle, last = p.values
    if rng.random() < 0.5:
        wrong = _near(middle, rng, at_least=c if second == "-" else 0)
        result = COMPUTE[second](wrong, c)
        return worked_answer((f"{a}{first}{b}={wrong}", f"{wrong}{second}{c}={result}"), str(result))
    wrong = _near(last, rng)
    return worked_answer((p.facts[0], f"{middle}{second}{c}={wrong}"), str(wrong))


def _dropped_step(p: Problem, rng: random.Random) -> str:
    """The second step is missing and the intermediate value is given as the answer."""
    return worked_answer(p.facts[:1], str(p.values[0]))


def _wrong_conclusion(p: Problem, rng: random.Random) -> str:
    """The reasoning is right and the final answer does not follow from it."""
    wrong = p.values[0] if rng.random() < 0.5 else _near(p.values[1], rng)
    return worked_answer(p.facts, str(wrong))


def _broken_format(p: Problem, rng: random.Random) -> str:
    """The right value in a form from which no answer can be read."""
    facts = " ".join(p.facts)
    return rng.choice(
        (
            f"{facts} {p.answer}",
            f"<reasoning>{facts}</reasoning>{p.answer}",
            f"<reasoning>{facts}<answer>{p.answer}",
            f"<answer>{facts}</answer>{p.answer}",
        )
    )


def _near(value: int, rng: random.Random, at_least: int = 0) -> int:
    """A value that is close to, but not, `value`."""
    return rng.choice([v for v in (value - 10, value - 2, value - 1, value + 1, value + 2, value + 10) if v >= at_least])


MISTAKES = {
    "wrong_operation": (_wrong_operation, 2),
    "miscalculated": (_miscalculated, 3),
    "dropped_step": (_dropped_step, 5),
    "wrong_conclusion": (_wrong_conclusion, 5),
    "broken_format": (_broken_format, 5),
}
"""How a rejected answer goes wrong, each with its weight in the mixture."""
