"""The ranking of a sweep, its files and its plot; numbers by hand."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from tunix_lab.lab.sweeps.queue import Entry, Outcome
from tunix_lab.lab.sweeps.results import Ranking, draw, ranked, setting_results, table, write_results
from tunix_lab.lab.sweeps.space import Choices, Range, Trial

LOSS, ACCURACY = Ranking("eval/loss", False), Ranking("eval/accuracy", True)


def entry(number, setting, values, seed, loss=None, *, failed=False):
    trial = Trial(number, setting, values, seed)
    if failed:
        return Entry(trial, "failed", Outcome("failed", 4, "exit code 4: loss is nan"))
    if loss is None:
        return Entry(trial, "waiting", None)
    metrics = {"eval/loss": loss, "eval/accuracy": 1 - loss}
    return Entry(trial, "finished", Outcome("finished", 0, None, f"run-{number}", metrics))


@pytest.fixture
def entries():
    """Setting 0: 0.5 and 0.3, mean 0.4; setting 1: one of two failed; setting 2: both failed; setting 3: 0.2 and nan."""
    return [
        entry(0, 0, {"a.b": "0.1"}, 0, 0.5),
        entry(1, 0, {"a.b": "0.1"}, 1, 0.3),
        entry(2, 1, {"a.b": "0.3"}, 0, 0.6),
        entry(3, 1, {"a.b": "0.3"}, 1, failed=True),
        entry(4, 2, {"a.b": "1"}, 0, failed=True),
        entry(5, 2, {"a.b": "1"}, 1, failed=True),
        entry(6, 3, {"a.b": "3"}, 0, 0.2),
        entry(7, 3, {"a.b": "3"}, 1, math.nan),
    ]


def test_mean_and_std_over_seeds_and_the_best_first(entries):
    results = setting_results(entries, "eval/loss")
    assert [result.mean for result in results] == [pytest.approx(0.4), 0.6, None, 0.2]
    # two scores d apart have the sample standard deviation d / sqrt(2)
    assert [result.std for result in results] == [pytest.approx(0.2 / 2**0.5), None, None, None]
    assert [result.setting for result in ranked(results, LOSS)] == [3, 0, 1, 2]
    assert [result.setting for result in ranked(setting_results(entries, "eval/accuracy"), ACCURACY)] == [3, 0, 1, 2]
    assert [result.setting for result in ranked(results, Ranking("eval/loss", True))] == [1, 0, 3, 2]


def test_the_table(entries):
    file = io.StringIO()
    Console(file=file, width=100).print(table(setting_results(entries, "eval/loss"), ["a.b"], LOSS))
    header, *lines = (line.split() for line in file.getvalue().splitlines())
    assert header == "a.b eval/loss (lower is better) seeds trials".split()
    assert lines == [
        ["3", "0.2", "1/2", "6,7"],
        ["0.1", "0.4", "±", "0.14", "2/2", "0,1"],
        ["0.3", "0.6", "1/2", "2,3"],
        ["1", "failed", "0/2", "4,5"],
    ]


def test_the_files(entries, tmp_path):
    axes = [Choices("a.b", ("0.1", "0.3", "1", "3"))]
    results = write_results(tmp_path, entries, axes, LOSS, "small")
    assert [result.setting for result in results] == [3, 0, 1, 2]
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert (rows[1]["a.b"], rows[1]["seed"], rows[1]["eval/loss"], rows[1]["run_id"]) == ("0.1", "1", "0.3", "run-1")
    assert (rows[3]["status"], rows[3]["eval/loss"], rows[3]["message"]) == ("failed", "", "exit code 4: loss is nan")
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert (found["metric"], found["settings"][0]["mean"], found["settings"][1]["n"]) == ("eval/loss", 0.2, 2)
    assert found["settings"][0]["trials"][1]["metrics"]["eval/loss"] is None  # strict JSON has no NaN
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
    write_results(tmp_path, [entry(0, 0, {}, 0, failed=True)], [], LOSS, "small")
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.csv", "sweep.json"}


def test_a_field_that_was_log_has_a_log_axis():
    entries = [entry(i, i, {"a.rate": rate, "a.rank": str(i)}, 0, 0.1 * i) for i, rate in enumerate(("1e-5", "3e-4", "1e-3"))]
    axes = [Range("a.rate", 1e-5, 1e-3, is_log=True, is_integer=False), Range("a.rank", 0, 2, is_log=False, is_integer=True)]
    rate, rank, scatter, _ = draw(setting_results(entries, "eval/loss"), axes, LOSS, "small").axes
    assert (rate.get_xscale(), rank.get_xscale()) == ("log", "linear")
    assert (scatter.get_xscale(), scatter.get_yscale(), scatter.get_ylabel()) == ("log", "linear", "a.rank")


def test_two_fields_of_a_grid_are_a_map():
    axes = [Choices("a.kind", ("x", "y")), Choices("a.rate", ("1e-5", "1e-3"))]
    losses = {("x", "1e-5"): 1.0, ("x", "1e-3"): 2.0, ("y", "1e-5"): 3.0, ("y", "1e-3"): 4.0}
    entries = [entry(i, i, {"a.kind": k, "a.rate": r}, 0, loss) for i, ((k, r), loss) in enumerate(losses.items())]
    *_, place, colours = draw(setting_results(entries, "eval/loss"), axes, LOSS, "small").axes
    (image,) = place.images
    assert image.get_array().tolist() == [[1.0, 3.0], [2.0, 4.0]]  # rows are the second field
    assert [tick.get_text() for tick in place.get_xticklabels()] == ["x", "y"]
    assert [tick.get_text() for tick in place.get_yticklabels()] == ["1e-5", "1e-3"]
    assert colours.get_ylabel() == "eval/loss"


def test_seeds_alone_are_drawn_too():
    entries = [entry(i, 0, {}, i, 0.1 * i) for i in range(3)]
    (place,) = draw(setting_results(entries, "eval/loss"), [], LOSS, "small").axes
    assert place.get_xlabel() == "seed" and place.lines[0].get_ydata().tolist() == pytest.approx([0, 0.1, 0.2])
