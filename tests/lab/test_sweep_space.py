"""What a sweep tries, expanded by hand."""

import math

import pytest

from tunix_lab.errors import UserError
from tunix_lab.lab.sweeps.space import Choices, Range, Space, Trial, split, trials_of


def test_a_grid_is_every_combination_in_the_order_given():
    space = Space("grid", ("algorithm.beta=0.1, 0.3", "optimizer.learning_rate=1e-4,1e-5"), seeds=2, first_seed=7)
    settings = space.drawn()
    assert settings == [
        {"algorithm.beta": "0.1", "optimizer.learning_rate": "1e-4"},
        {"algorithm.beta": "0.1", "optimizer.learning_rate": "1e-5"},
        {"algorithm.beta": "0.3", "optimizer.learning_rate": "1e-4"},
        {"algorithm.beta": "0.3", "optimizer.learning_rate": "1e-5"},
    ]
    trials = trials_of(space, settings)
    assert [(trial.number, trial.setting, trial.seed) for trial in trials[:3]] == [(0, 0, 7), (1, 0, 8), (2, 1, 7)]
    assert len(trials) == 8
    assert trials[3].overrides() == ["algorithm.beta=0.1", "optimizer.learning_rate=1e-5", "seed=8"]


def test_seeds_alone_are_a_sweep():
    space = Space("grid", (), seeds=3)
    assert trials_of(space, space.drawn()) == [Trial(0, 0, {}, 0), Trial(1, 0, {}, 1), Trial(2, 0, {}, 2)]


def test_a_swept_seed_is_not_set_twice():
    space = Space("grid", ("seed=3,4",))
    assert [trial.overrides() for trial in trials_of(space, space.drawn())] == [["seed=3"], ["seed=4"]]


def test_values_may_hold_commas_in_brackets_and_quotes():
    assert split('{kind: dpo, beta: 1}, [1, 2],"a,b",x') == ["{kind: dpo, beta: 1}", "[1, 2]", '"a,b"', "x"]
    (axis,) = Space("grid", ("optimizer.schedule={kind: constant},{kind: cosine, warmup_steps: 2}",)).parsed()
    assert axis == Choices("optimizer.schedule", ("{kind: constant}", "{kind: cosine, warmup_steps: 2}"))


def test_ranges():
    space = Space("random", ("a.rate=1e-5..1e-3:log", "a.rank=4..16", "a.beta=0..1.0", "a.kind=x,y"), settings=200)
    rate, rank, beta, kind = space.parsed()
    assert rate == Range("a.rate", 1e-5, 1e-3, is_log=True, is_integer=False)
    assert rank == Range("a.rank", 4, 16, is_log=False, is_integer=True)
    assert beta == Range("a.beta", 0, 1, is_log=False, is_integer=False)
    assert kind == Choices("a.kind", ("x", "y"))
    drawn = space.drawn()
    rates = [float(setting["a.rate"]) for setting in drawn]
    assert all(1e-5 <= value <= 1e-3 for value in rates)
    # evenly over powers of ten: half of them below the geometric middle, where an even spread would have a twelfth
    assert 80 <= sum(value < 1e-4 for value in rates) <= 120
    assert {setting["a.rank"] for setting in drawn} == {str(value) for value in range(4, 17)}
    assert {setting["a.kind"] for setting in drawn} == {"x", "y"}
    assert math.isclose(sum(float(setting["a.beta"]) for setting in drawn) / 200, 0.5, abs_tol=0.1)


def test_more_random_trials_begin_with_the_same_ones():
    few, many = (Space("random", ("a.b=0.1..2",), settings=n, first_seed=5).drawn() for n in (3, 6))
    assert many[:3] == few and len({setting["a.b"] for setting in many}) == 6
    assert Space("random", ("a.b=0.1..2",), settings=3, first_seed=6).drawn() != few


def test_a_drawn_number_stays_inside_when_it_is_rounded():
    axis = Range("a", 1 / 3, 2 / 3, is_log=False, is_integer=False)
    assert axis.text(1 / 3) == repr(1 / 3) and axis.text(2 / 3) == repr(2 / 3) and axis.text(0.5) == "0.5"
    assert Range("a", 1, 8, is_log=True, is_integer=True).text(7.6) == "8"


def test_corners_show_each_value_once():
    space = Space("tpe", ("a.rate=1..10", "b=x,y"), settings=4)
    assert space.corners() == [
        {"a.rate": "1", "b": "x"},
        {"a.rate": "10", "b": "x"},
        {"a.rate": "1", "b": "x"},
        {"a.rate": "1", "b": "y"},
    ]
    assert space.drawn() == []


def test_a_grid_over_powers_of_ten_is_drawn_on_a_log_axis():
    assert Choices("a", ("1e-5", "1e-3")).is_log
    assert not Choices("a", ("0.05", "0.1", "0.3")).is_log and not Choices("a", ("x", "1")).is_log
    assert not Choices("a", ("0", "100")).is_log


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space("grid", ("algorithm.beta",)), "--grid: must look like section.field=a,b, got 'algorithm.beta'"),
        (Space("grid", ("a..b=1",)), "--grid: must look like"),
        (Space("grid", ("a.b=1,,2",)), "--grid a.b: an empty value in '1,,2'"),
        (Space("grid", ("a.b=",)), "--grid a.b: an empty value"),
        (Space("grid", ("a.b=1,2,1",)), "--grid a.b: 1 twice"),
        (Space("grid", ("a.b=1", "a.b=2")), "--grid a.b: given twice"),
        (Space("grid", ("a.b=1..2",)), "a grid takes values (a,b,c), not the range 1..2"),
        (Space("grid", ("name=a,b",)), "--grid name: trials are compared by it"),
        (Space("grid", ("tracking.primary_metric=a,b",)), "trials are compared by it"),
        (Space("grid", ("seed=1,2",), seeds=2), "--seeds 2 varies it already"),
        (Space("grid", ("a.b=1,2",), settings=4), "--trials: a grid tries every combination"),
        (Space("grid", ()), "nothing to sweep"),
        (Space("random", ("a.b=1..2",)), "--random needs --trials N"),
        (Space("random", ("a.b=2..1",), settings=2), "the range 2..1 is empty"),
        (Space("random", ("a.b=x..1",), settings=2), "a range is low..high of two numbers, got 'x..1'"),
        (Space("random", ("a.b=0..1:log",), settings=2), "must begin above 0, got 0"),
        (Space("tpe", ("a.b=1..2:ln",), settings=2), "a range may end in :log, got ':ln'"),
    ],
)
def test_mistakes(space, message):
    with pytest.raises(UserError) as caught:
        space.parsed()
    assert message in str(caught.value) and caught.value.exit_code == 2


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        Space("random", ("a", "b=2..1"), seeds=1).parsed()
    assert len(str(caught.value).splitlines()) == 3
