"""The ready rewards: GSM8K's numbers read strictly and leniently, tags as in the knowledge base's example, brevity."""

import random
import re
import time

import pytest

from tunix_lab.tasks.rewards import (
    gsm8k_lenient,
    gsm8k_strict,
    has_answer_line,
    reasoning_answer,
    reasoning_format,
    short_answer,
)


def of_one(reward, completion, **columns):
    (value,) = reward(["p"], [completion], **{name: [value] for name, value in columns.items()})
    assert type(value) is float
    return value


# Rows of the published training set, written by hand: worked answers, and what to make of them.
PUBLISHED = [
    (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
        "72",
    ),
    (
        "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
        "10",
    ),
    ("In the beginning he had 1,080 pages.\nThat makes <<540*2=1080>>1,080 pages.\n#### 1,080", "1080"),
    ("The profit is 200 - 250 = -50.\n#### -50", "-50"),
]


@pytest.mark.parametrize(("worked", "number"), PUBLISHED)
@pytest.mark.parametrize("answer", ["number", "worked"])
def test_published_answers_are_right(worked, number, answer):
    """A published solution scores 1 against its own number, whether the column holds the number or the solution."""
    column = number if answer == "number" else worked
    assert of_one(gsm8k_strict, worked, answer=column) == of_one(gsm8k_lenient, worked, answer=column) == 1.0
    assert of_one(has_answer_line, worked) == 1.0
    assert of_one(gsm8k_strict, worked, answer="73") == of_one(gsm8k_lenient, worked, answer="73") == 0.0


@pytest.mark.parametrize(
    ("text", "strict", "lenient", "line"),
    [
        ("#### 72", 1, 1, 1),
        ("####72", 1, 1, 1),
        ("so 72\n#### 72.0 ", 1, 1, 1),
        ("#### $72.00", 1, 1, 1),
        ("The answer is 72.", 0, 1, 0),
        ("The answer is 72 clips, of 48 and 24.", 0, 0, 0),
        ("A: 72", 0, 1, 0),
        ("48 + 24 = 72", 0, 1, 0),
        ("100-72", 0, 1, 0),
        ("(100)-72", 0, 1, 0),
        ("it is -72", 0, 0, 0),
        ("#### 24\n#### 72", 1, 1, 1),
        ("#### 72\n#### 24", 0, 0, 1),
        ("#### 72\nand 24 of these in May", 1, 0, 1),
        ("a line with #### 72", 0, 1, 0),
        ("#### seventy-two", 0, 0, 0),
        ("#### 7 2 or so", 0, 0, 0),
        ("1,072", 0, 0, 0),
        ("72%", 0, 1, 0),
        ("", 0, 0, 0),
        ("####", 0, 0, 0),
        ("72" * 200, 0, 0, 0),
    ],
)
def test_strict_and_lenient(text, strict, lenient, line):
    got = [of_one(gsm8k_strict, text, answer="72"), of_one(gsm8k_lenient, text, answer="72"), of_one(has_answer_line, text)]
    assert got == [strict, lenient, line]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("$1,200.50", "1200.5"),
        ("-3", "-3"),
        ("12,34", "34"),
        (".5", "0.5"),
        ("-.5 left", "-0.5"),
        ("1,234,567 in all", "1234567"),
    ],
)
def test_the_last_number(text, answer):
    assert of_one(gsm8k_lenient, f"so {text}", answer=answer) == 1.0


def test_a_row_whose_answer_is_no_number():
    for reward in (gsm8k_strict, gsm8k_lenient):
        with pytest.raises(ValueError, match="the row's answer 'many' is no number"):
            of_one(reward, "#### 72", answer="many")
        with pytest.raises(ValueError, match="shorter|longer"):
            reward(["p"] * 2, ["#### 1"] * 2, answer=["1"])


# ---- tags ------------------------------------------------------------------------------------------------------------------

# As the knowledge base's example has it.
EXAMPLE = re.compile(
    r"^[\s]{0,}<reasoning>.+?</reasoning>.*?<answer>(.+?)</answer>[\s]{0,}$",
    flags=re.MULTILINE | re.DOTALL,
)


@pytest.mark.parametrize(
    ("text", "format_reward", "answer_reward"),
    [
        ("<reasoning>2+2=4</reasoning><answer>4</answer>", 3.0, 3.0),
        ("  <reasoning>a\nb</reasoning>\n\n<answer> 4 </answer>\n", 3.0, 3.0),
        ("<reasoning>2+2=5</reasoning><answer>5</answer>", 3.0, 0.0),
        ("<reasoning>2+2=4</reasoning><answer>4.0</answer>", 3.0, 0.0),
        ("well, <reasoning>2+2=4</reasoning><answer>4</answer>", 0.0, 0.0),
        ("<reasoning></reasoning><answer>4</answer>", 0.0, 0.0),
        ("<reasoning>2+2=4</reasoning><answer>4</answer> it is", 0.0, 0.0),
        ("<answer>4</answer>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_reasoning_by_hand(text, format_reward, answer_reward):
    assert of_one(reasoning_format, text) == format_reward
    assert of_one(reasoning_answer, text, answer=" 4") == of_one(reasoning_answer, text, answer=4) == answer_reward


def test_reasoning_as_in_the_example():
    """The same verdict and the same answer as the example's pattern, on thousands of scrambled texts."""
    rng = random.Random(0)
    pieces = ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "4", " ", "\n", "x"]
    likely = ["<reasoning>", "4", "</reasoning>", "<answer>", "4", "</answer>"]
    n_found = 0
    for _ in range(4000):
        parts = rng.choices(pieces, k=rng.randrange(6)) + likely + rng.choices(pieces, k=rng.randrange(6))
        for _ in range(rng.randrange(4)):
            parts.insert(rng.randrange(len(parts)), rng.choice(pieces))
        text = "".join(parts)
        found = EXAMPLE.search(text)
        n_found += found is not None
        assert of_one(reasoning_format, text) == (3.0 if found else 0.0), text
        answer = found[1] if found else "4"
        assert of_one(reasoning_answer, text, answer=answer) == (3.0 if found else 0.0), text
    assert 500 < n_found < 3500


def test_no_text_takes_long():
    """Tags over and over, never closed as they should be; the time of the example's pattern grows with the cube."""
    started = time.monotonic()
    assert of_one(reasoning_format, "<reasoning>x</reasoning><answer>y</answer>" * 1500 + "!") == 0.0
    assert of_one(gsm8k_lenient, "1," * 20000, answer="1") == 1.0
    assert time.monotonic() - started < 5.0


def test_short_answer_by_hand():
    # 0.1 · (1 − 0/1000), 0.1 · (1 − 250/1000), 0.1 · (1 − 1000/1000), never less than 0
    values = short_answer(["p"] * 4, ["", "x" * 250, "x" * 1000, "x" * 5000])
    assert values == pytest.approx([0.1, 0.075, 0.0, 0.0])


def test_rewards_need_no_jax():
    import subprocess
    import sys

    code = "import sys, tunix_lab.tasks.rewards, tunix_lab.rl.rewards, tunix_lab.rl.reward_pool; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
