"""`tunix-lab compare`: numbers by hand, what differs, repetitions, answers side by side, and the page."""

import json
import math
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from tunix_lab.cli.compare import compare as command
from tunix_lab.errors import UserError
from tunix_lab.lab.pages.compare import compare, mean
from tunix_lab.lab.pages.compare_page import cell_text, write_comparison
from tunix_lab.lab.pages.headline import duration, is_reward, number, size
from tunix_lab.lab.pages.run_view import read_run
from tunix_lab.lab.record.journal import Journal


@pytest.fixture
def run(make_run):
    """Makes a run from (step, values) lines, a spec and samples, and reads it."""

    def make(letter, lines=(), *, spec=None, samples=(), status="finished", **changes):
        run_dir = make_run(f"dpo_nano-20261123-08000{ord(letter) % 10}-{letter * 4}", **changes)
        if spec is not None:
            (run_dir / "resolved.yaml").write_text(json.dumps(spec))
        journal = Journal.open(run_dir)
        for step, values in lines:
            journal.metrics(step, values)
        if samples:
            journal.samples(5, list(samples))
        if status != "killed":
            journal.finish(status)
        journal.close()
        return read_run(run_dir)

    return make


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(command)

    def call(*arguments):
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None, result.exception
        return result.stdout

    return call


def test_last_and_best_as_the_run_says_which_way_is_better(run):
    lines = [
        (1, {"eval/x": 3.0, "eval/loss": 0.5}),
        (2, {"eval/x": 1.0, "eval/loss": 0.4}),
        (3, {"eval/x": 2.0, "eval/loss": 0.6}),
    ]
    a = run("a", lines, primary_metric="eval/x", higher_is_better=True)
    b = run("b", [(1, {"eval/x": 2.5, "eval/loss": math.nan})], primary_metric="eval/x", higher_is_better=True)
    found = compare([a, b]).metrics
    assert list(found)[:2] == ["eval/x", "eval/loss"]
    first, second = found["eval/x"]
    assert (first.last.value, first.best.value, first.best_step, first.leads) == (2.0, 3.0, 1, False)
    assert (second.last.value, second.leads) == (2.5, True)
    first, second = found["eval/loss"]
    assert (first.last.value, first.best.value, first.best_step, first.leads) == (0.6, 0.4, 2, True)
    assert math.isnan(second.last.value) and second.best is None and not second.leads
    c = run("c", lines, primary_metric="eval/x", higher_is_better=False)
    assert compare([c]).metrics["eval/x"][0].best.value == 1.0


def test_runs_that_sample_are_compared_by_rewards(run):
    """More reward is better, whatever function it is by; of its spread, and of the rewards inside DPO's loss, nobody says so."""
    names = (
        "eval/reward",
        "train/reward",
        "eval/reward_shape",
        "train/kl",
        "train/reward_std",
        "eval/chosen_reward",
        "train/loss",
    )
    worse, better = (run(name, [(1, dict.fromkeys((*names, "eval/loss"), value))]) for name, value in (("a", 0.25), ("b", 0.5)))
    found = compare([worse, better]).metrics
    assert list(found)[:3] == ["train/reward", "train/kl", "train/loss"]
    assert {name for name, cells in found.items() if cells[1].leads} == {"eval/reward", "train/reward", "eval/reward_shape"}
    assert "eval/loss" not in found  # minus the reward
    assert [name for name in names if is_reward(name)] == ["eval/reward", "train/reward", "eval/reward_shape"]
    alone = compare([run("c", [(1, {"train/kl": 0.5, "train/loss": 1.0})])]).metrics
    assert list(alone) == ["train/loss"]  # the divergence of a distillation


def test_nobody_knows_which_way_an_unknown_metric_is_better(run):
    lines = [(1, {"eval/chosen_logp": -3.0}), (2, {"eval/chosen_logp": -1.0})]
    [cell, other] = compare([run("a", lines), run("b", lines)]).metrics["eval/chosen_logp"]
    assert cell.best is None and not cell.leads and not other.leads


def test_what_is_timed_is_a_median_without_the_first_update(run):
    values = [1.0, 100.0, 300.0, 200.0]
    view = run("a", [(step, {"perf/tokens_per_s": value}) for step, value in enumerate(values)])
    assert compare([view]).metrics["perf/tokens_per_s"][0].last.value == 200.0


def test_only_fields_that_differ_are_told(run):
    spec = {"name": "a", "seed": 0, "optimizer": {"learning_rate": 1e-3, "b1": 0.9}, "data": {"train": [{"path": "x"}]}}
    other = {"name": "b", "seed": 0, "optimizer": {"learning_rate": 1e-4, "b1": 0.9}, "data": {"train": [{"path": "y"}]}}
    other |= {"tracking": {"experiment": "elsewhere"}, "adapter": {"rank": None}}
    found = compare([run("a", spec=spec), run("b", spec=other)])
    assert {difference.name: difference.values for difference in found.settings} == {
        "optimizer.learning_rate": ("0.001", "0.0001"),
        "data.train.0.path": ("x", "y"),
        "adapter.rank": ("–", "null"),
    }
    assert found.surroundings == ()


def test_inputs_code_and_versions_that_differ_are_told(run):
    git = {"commit": "a" * 40, "dirty": False}
    a = run("a", git=git, versions={"jax": "1", "numpy": "2"}, tags={"dvc.base": "x"})
    b = run("b", git=git | {"commit": "b" * 40}, versions={"jax": "1", "numpy": "3"}, tags={"dvc.base": "y"}, datasets=[])
    found = {difference.name: difference.values for difference in compare([a, b]).surroundings}
    assert found["git.commit"] == ("a" * 40, "b" * 40)
    assert found["versions.numpy"] == ("2", "3")
    assert found["dvc.base"] == ("x", "y")
    assert found["data.train (data/train.jsonl)"] == ("a" * 32, "–")
    assert not {"git.dirty", "versions.jax"} & set(found)


def repetition(run, letter, seed, last, *, group="g1", **options):
    lines = [(1, {"eval/exact_match": 1.0 + seed}), (2, {"eval/exact_match": last})]
    tags = {"lab.group": group}
    return run(letter, lines, tags=tags, seed=seed, spec={"seed": seed, "optimizer": {"b1": 0.9}}, **options)


def test_repetitions_become_mean_and_deviation(run):
    """0.8, 0.9, 1.0: mean 0.9, deviations −0.1, 0, 0.1, variance 0.02 / 2. Best values 1, 2, 3: 2 ± 1."""
    views = [repetition(run, letter, seed, last) for letter, seed, last in (("a", 0, 0.8), ("b", 1, 0.9), ("c", 2, 1.0))]
    views.append(repetition(run, "d", 0, 0.5, group="g2"))
    found = compare(views, group=True)
    assert [column.label for column in found.columns] == ["dpo_nano [g1] ×3", "dpo_nano-dddd"] and found.is_grouped
    three, alone = found.metrics["eval/exact_match"]
    assert three.last.value == pytest.approx(0.9) and three.last.std == pytest.approx(0.1) and three.last.n == 3
    assert (three.best.value, three.best.std, three.best_step) == (2.0, 1.0, None)
    assert three.leads and alone.last.std is None and alone.best_step == 1
    assert cell_text(three) == ("0.9 ± 0.1", "(2 ± 1)")
    assert [(entry.name, entry.values) for entry in found.settings] == [("seed", ("0, 1, 2", "0"))]
    assert len(compare(views).columns) == 4


def test_a_mean_counts_finished_runs_and_each_seed_once(run):
    views = [
        repetition(run, "a", 0, 0.2),
        repetition(run, "b", 0, 0.4),  # newer
        repetition(run, "c", 1, 0.6, git={"commit": "c" * 40}),
        repetition(run, "d", 2, 0.1, status="failed"),
        repetition(run, "e", 3, 0.1, status="killed"),
    ]
    [column] = compare(views, group=True).columns
    assert [view.run_id[-4:] for view in column.counted] == ["bbbb", "cccc"]
    assert column.notes == (
        "dpo_nano-aaaa has the seed of a newer run (0) and is not counted",
        "dpo_nano-dddd is failed and not counted",
        "dpo_nano-eeee is killed and not counted",
        "its runs also differ in git.commit",
    )
    number = compare(views, group=True).metrics["eval/exact_match"][0].last
    assert number.value == pytest.approx(0.5) and number.std == pytest.approx(0.02**0.5)  # 0.4 and 0.6: (0.1² + 0.1²) / 1


def test_a_group_without_a_finished_run_has_no_numbers(run):
    views = [repetition(run, letter, seed, 0.1, status="killed") for seed, letter in enumerate("ab")]
    found = compare(views, group=True)
    assert found.metrics["eval/exact_match"] == (None,)
    assert found.columns[0].counted == ()


@pytest.mark.parametrize("values", [[math.nan, 1.0], [math.inf, 1.0], [math.inf, -math.inf], [1e308, -1e308]])
def test_a_mean_of_what_is_not_finite_does_not_raise(values):
    assert not math.isfinite(mean(values).std)


def test_runs_of_different_algorithms_have_no_leading_loss(run):
    views = [run("a", [(1, {"eval/loss": 1.0, "eval/accuracy": 0.5})]), run("b", [(1, {"eval/loss": 2.0, "eval/accuracy": 0.6})])]
    assert [cell.leads for cell in compare(views).metrics["eval/loss"]] == [True, False]
    other = run("c", [(1, {"eval/loss": 2.0, "eval/accuracy": 0.6})], algorithm="orpo")
    found = compare([views[0], other])
    assert [cell.leads for cell in found.metrics["eval/loss"]] == [False, False]
    assert [cell.leads for cell in found.metrics["eval/accuracy"]] == [False, True]
    assert "Their algorithms differ (dpo, orpo)" in found.caveats[0]


def test_caveats(run):
    a = run("a", [(4, {"train/loss": 1.0})], status="killed")
    b = run("b", datasets=[{"context": "validation", "path": "data/val.jsonl", "digest": "z", "rows": 1, "name": "v"}])
    assert compare([a, b]).caveats == (
        "They were evaluated on different data.",
        "dpo_nano-aaaa is killed at step 4: its last values are not those of a whole run.",
    )
    assert compare([b]).caveats == ()


def row(prompt, completion, score=None, identity="x"):
    return {"id": identity, "prompt": prompt, "completion": completion} | ({} if score is None else {"score": score})


def test_answers_stand_side_by_side_and_the_telling_ones_come_first(run):
    a = run("a", samples=[row("same", "1", 1.0), row("other words", "2", 1.0), row("better", "3", 0.0), row("mine", "4", 1.0)])
    b = run("b", samples=[row("better", "5", 1.0), row("same", "1", 1.0), row("other words", "6", 1.0)])
    answers = compare([a, b, run("c")]).answers
    assert [answer.prompt for answer in answers] == ["better", "other words", "same", "mine"]
    assert [entry and entry["completion"] for entry in answers[0].rows] == ["3", "5", None]
    assert [answer.differ for answer in answers] == [True, True, False, False]


def test_several_answers_to_one_prompt_are_told_apart_by_their_ids(run):
    a = run("a", samples=[row("p", "1", identity="p0"), row("p", "2", identity="p1")])
    b = run("b", samples=[row("p", "3", identity="p0"), row("p", "4", identity="p1")])
    pairs = [[entry["completion"] for entry in answer.rows] for answer in compare([a, b]).answers]
    assert pairs == [["1", "3"], ["2", "4"]]


def test_runs_of_one_short_name_keep_their_whole_ids(make_run):
    ids = ("dpo_nano-20261123-080000-aaaa", "dpo_nano-20261124-080000-aaaa")
    assert [column.label for column in compare([read_run(make_run(run_id)) for run_id in ids]).columns] == list(ids)


def test_a_metric_that_no_run_has(run):
    view = run("a", [(1, {"eval/accuracy": 1.0})])
    with pytest.raises(UserError, match="--metric eval/acuracy: none of these runs has it; did you mean 'eval/accuracy'"):
        compare([view], metrics=["eval/acuracy"])
    assert list(compare([view], metrics=["eval/accuracy"]).metrics) == ["eval/accuracy"]


def test_the_terminal_shows_it(run, invoke):
    run(
        "a",
        [(1, {"eval/exact_match": 0.25}), (2, {"eval/exact_match": 0.125})],
        spec={"seed": 0},
        samples=[row("[b]p[/b]", "[red]a")],
    )
    run("b", [(1, {"eval/exact_match": 0.5})], spec={"seed": 1}, samples=[row("[b]p[/b]", "two\x1b[2J")])
    lines = [line.split() for line in invoke("aaaa", "bbbb", "aaaa").splitlines()]
    assert ["dpo_nano-aaaa", "dpo_nano-bbbb"] in lines
    assert ["eval/exact_match", "0.125", "(0.25", "@", "1)", "0.5"] in lines
    assert ["seed", "0", "1"] in lines
    assert ["[b]p[/b]"] in lines and ["dpo_nano-aaaa", "[red]a"] in lines
    assert ["dpo_nano-bbbb", "two\ufffd[2J"] in lines  # a model does not steer the terminal
    assert "p[/b]" not in invoke("aaaa", "bbbb", "--samples", "0")


def test_more_runs_than_fit_become_lines(run, invoke):
    for letter in "abcdef":
        values = {f"eval/{name}_loss": 1.0 for name in "pqrst"} | {"perf/tokens_per_s": 77.0, "eval/exact_match": 0.5}
        run(letter, [(1, values)], spec={"seed": ord(letter)})
    lines = invoke(*(letter * 4 for letter in "abcdef")).splitlines()
    [line] = [line.split() for line in lines if "dpo_nano-dddd" in line]
    assert line[:3] == ["4", "dpo_nano-dddd", "finished"] and line[-1] == "77"
    assert any("not shown: eval/s_loss, eval/t_loss" in line for line in lines)
    assert ["seed", *(str(ord(letter)) for letter in "abcdef")] in [line.split() for line in lines]


def test_json_is_strict_and_whole(run, invoke):
    run("a", [(1, {"eval/exact_match": math.nan, "eval/loss": 1.5})], samples=[row("p", "a", 1.0)])
    run("b", [(1, {"eval/exact_match": 0.5})], spec={"seed": 3}, status="failed")
    found = json.loads(invoke("aaaa", "bbbb", "--json"), parse_constant=pytest.fail)
    first, second = found["columns"]
    assert first["metrics"]["eval/exact_match"]["last"]["value"] is None
    assert first["metrics"]["eval/loss"] == {
        "last": {"value": 1.5, "std": None, "n": 1},
        "best": {"value": 1.5, "std": None, "n": 1},
        "best_step": 1,
    }
    assert (second["runs"][0]["status"], second["runs"][0]["step"]) == ("failed", 1)
    assert found["settings"]["seed"] == ["0", "3"]
    assert found["samples"][0]["rows"][0]["completion"] == "a"


def test_the_page_and_the_curves(run, invoke, tmp_path):
    evil = "<script>alert(1)</script>"
    lines = [(step, {"train/loss": 4.0 / (1 + step), "eval/exact_match": 0.1234 * step}) for step in range(4)]
    run("a", lines, samples=[row(evil, evil)], description=evil, spec={"seed": evil, "x$y$": 1})
    run("b", lines[:3], samples=[row(evil, "other")], spec={"seed": 1})
    invoke("aaaa", "bbbb", "--out", str(tmp_path / "out"))
    page = (tmp_path / "out/compare.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") == 4  # description, seed, prompt, completion
    for text in ("0.3702", "0.2468", "dpo_nano-aaaa", "dpo_nano-bbbb", "step 5", "finished"):
        assert text in page
    assert page.count("<svg") == 2 and page.count("var(--c1)") >= 2  # both runs in both charts
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["compare.html", "eval-exact_match.png", "train-loss.png"]
    assert (tmp_path / "out/train-loss.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_metrics_that_were_asked_for_are_drawn(run, tmp_path):
    lines = [(step, {f"train/m{index}": float(step) for index in range(20)}) for step in range(3)]
    found = compare([run("a", lines)])
    assert len(write_comparison(found, tmp_path / "some")) == 1 + 12
    assert "Not drawn: train/m" in (tmp_path / "some/compare.html").read_text()
    asked = ("train/m3",)
    files = write_comparison(compare(found.views, metrics=asked), tmp_path / "one", metrics=asked)
    assert [file.name for file in files] == ["compare.html", "train-m3.png"]


def test_odd_runs_side_by_side(make_run, tmp_path):
    """One that died before its manifest, one without a metric, one that goes on, one whose numbers are none."""
    Journal.open(tmp_path / "runs/dpo_nano-20261123-080000-0000").close()
    make_run("dpo_nano-20261123-080000-1111")
    running = Journal.open(make_run("dpo_nano-20261123-080000-2222"))
    for step, value in enumerate((math.nan, 1e308, -1e308, math.inf, 5e-324)):
        running.metrics(step, {"eval/exact_match": value, "train/loss": value, "perf/tokens_per_s": value})
    (tmp_path / "runs/dpo_nano-20261123-080000-1111/resolved.yaml").write_text("[1, 2]")
    for group in (False, True):
        found = compare([read_run(path) for path in sorted((tmp_path / "runs").iterdir())], group=group)
        write_comparison(found, tmp_path / str(group))
    running.close()
    assert "running" in (tmp_path / "True/compare.html").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.123456, "0.1235"), (-2.5, "−2.5"), (12345.6, "12,346"), (5e-5, "5e−05"), (math.nan, "NaN"), (None, "–")],
)
def test_numbers_as_people_read_them(value, text):
    assert number(value) == text


def test_times_and_sizes_as_people_read_them():
    assert [duration(seconds) for seconds in (None, 0.25, 75, 3725)] == ["–", "0.2 s", "1:15", "1:02:05"]
    assert [size(n) for n in (12, 8_150_000, 2.5e9)] == ["12 B", "8.15 MB", "2.5 GB"]


def test_comparing_needs_neither_jax_nor_mlflow(run, tmp_path):
    run("a", [(1, {"train/loss": 1.0}), (2, {"train/loss": 1.0})])
    program = "import sys; from tunix_lab.cli.main import app\n"
    program += f"app(['compare', 'aaaa', '--out', {str(tmp_path / 'x')!r}], standalone_mode=False)\n"
    program += "heavy = {'mlflow', 'jax', 'dvc', 'pandas', 'matplotlib.pyplot'} & set(sys.modules); assert not heavy, heavy"
    environment = {"TUNIX_LAB_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment | {"PYTHONPATH": ":".join(sys.path)})
