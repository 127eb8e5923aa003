"""The choice of the next setting by Optuna; skipped where that is not installed."""

import math
import subprocess
import sys

import pytest

from tunix_lab.lab.sweeps.space import Space
from tunix_lab.lab.sweeps.tpe import Tried, suggest

optuna = pytest.importorskip("optuna", reason="pip install 'tunix_lab[sweep]'")

SPACE = Space("tpe", ("a.x=-5..5.0", "a.rate=1e-5..1e-1:log", "a.kind=good,bad"), settings=40, first_seed=3)


def loss(values):
    distance = (float(values["a.x"]) - 2) ** 2 + (math.log10(float(values["a.rate"])) + 3) ** 2
    return distance + (10 if values["a.kind"] == "bad" else 0)


def search(space, score, *, higher_is_better=False):
    tried = []
    for _ in range(space.settings):
        values = suggest(space, tried, higher_is_better=higher_is_better)
        tried.append(Tried(values, score(values), is_open=False))
    return tried


def test_it_finds_the_bottom_of_a_bowl_and_beats_random_draws_on_average():
    tried = search(SPACE, loss)
    drawn = [loss(values) for values in Space("random", SPACE.axes, settings=40, first_seed=3).drawn()]
    scores = [setting.score for setting in tried]
    assert min(scores) < 0.5 and sum(scores[20:]) / 20 < 0.5 * sum(drawn[20:]) / 20
    assert sum(setting.values["a.kind"] == "good" for setting in tried[20:]) >= 15


def test_higher_is_better():
    tried = search(SPACE, lambda values: -loss(values), higher_is_better=True)
    assert max(setting.score for setting in tried) > -0.5


def test_the_same_history_gives_the_same_setting_and_the_seed_another():
    tried = search(Space("tpe", SPACE.axes, settings=12, first_seed=3), loss)
    assert suggest(SPACE, tried, higher_is_better=False) == suggest(SPACE, tried, higher_is_better=False)
    other = Space("tpe", SPACE.axes, settings=40, first_seed=4)
    assert suggest(SPACE, tried, higher_is_better=False) != suggest(other, tried, higher_is_better=False)


def test_failed_and_open_settings_are_part_of_the_history():
    tried = [
        Tried({"a.x": "1.0", "a.rate": "0.001", "a.kind": "good"}, 2.0, is_open=False),
        Tried({"a.x": "1.5", "a.rate": "0.001", "a.kind": "bad"}, None, is_open=False),
        Tried({"a.x": "2.0", "a.rate": "0.001", "a.kind": "good"}, None, is_open=True),
    ]
    values = suggest(SPACE, tried, higher_is_better=False)
    assert -5 <= float(values["a.x"]) <= 5 and 1e-5 <= float(values["a.rate"]) <= 1e-1 and values["a.kind"] in ("good", "bad")


def test_whole_numbers_stay_whole():
    space = Space("tpe", ("a.rank=1..64:log",), settings=8)
    tried = search(space, lambda values: abs(int(values["a.rank"]) - 8))
    assert all(1 <= int(setting.values["a.rank"]) <= 64 for setting in tried)


def test_importing_it_loads_no_optuna():
    program = "import sys, tunix_lab.lab.sweeps.tpe; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
