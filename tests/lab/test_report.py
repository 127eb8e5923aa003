"""`tunix-lab report`: the page of a run, its numbers, and what it makes of odd runs."""

import html.parser
import json
import math
import re
import subprocess
import sys

import pytest
import typer
from hand_made_rollouts import PROMPTS, rollout
from typer.testing import CliRunner

from tunix_lab.cli.report import report
from tunix_lab.errors import UserError
from tunix_lab.lab.pages.plots import Series, panel, to_svg
from tunix_lab.lab.pages.report import write_report, write_report_at_end
from tunix_lab.lab.pages.run_view import Curve, read_run
from tunix_lab.lab.pages.timings import read_timings
from tunix_lab.lab.pages.verdict import verdict, warnings
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.record.trajectories import record_trajectories

EVIL = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>'
T0 = 1_800_000_000_000


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self._words, self._is_style = set(), [], [], False
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self._words))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._is_style = tag == "style"
        self.attributes += attrs

    def handle_data(self, data):
        if not self._is_style:
            self._words.append(data)


def page_of(run_dir, name="page.html", **options):
    file = run_dir.parent / name
    write_report(run_dir, file, **options)
    return Page(file.read_text("utf-8"))


def learn(journal):
    """Accuracy is best at step 20, the loss at step 10; both have numbers that stand nowhere else."""
    journal.event("ledger", source="train", rows_in=4000, rows_duplicate=7, rows_cut=0, rows_dropped=3, tokens_in=90)
    journal.metrics(0, {"eval/exact_match": 0.1111, "eval/loss": 2.0})
    for step in range(1, 31):
        journal.metrics(step, {"train/loss": 2 - step / 20, "perf/step_s": 9.0 if step == 1 else 0.25})
        if step % 10 == 0:
            found = {10: (0.4444, 0.5151), 20: (0.8888, 0.6161), 30: (0.7777, 0.7171)}[step]
            journal.metrics(step, dict(zip(("eval/exact_match", "eval/loss"), found, strict=True)))
    journal.checkpoint(30, "checkpoints/x/30", "feedface" * 8, 8_150_000)
    for step, answer in ((0, "answer A"), (10, "answer B"), (20, "answer C"), (30, "answer D")):
        journal.samples(step, [{"id": "a", "prompt": "How many?", "completion": answer, "reference": "10", "score": 0.0}])


UNTRACKED = [{"path": "a.py", "bundled": True}, {"path": "large.bin", "bundled": False}]


def test_the_page_has_the_numbers_of_the_run(make_run):
    run_dir = make_run(
        git={"commit": "c0ffee" * 6 + "abcd", "branch": "main", "remote": None, "dirty": True, "untracked": UNTRACKED}
    )
    (run_dir / "dirty.patch").write_text("-a\n+b\n")
    (run_dir / "resolved.yaml").write_text("name: dpo_nano\ntraining: {max_steps: 30, batch_size: 48}\nmodel: {init: null}\n")
    with Journal.open(run_dir) as journal:
        learn(journal)
    page = page_of(run_dir)
    for text in (
        "dpo_nano-3a61",
        "Does beta matter?",
        "Finished after 30 of 30 updates",
        "eval/exact_match rose from 0.1111 to 0.7777; its best was 0.8888 at step 20.",
        "best 0.8888 at step 20",
        "eval/loss was lowest at step 10 (0.5151) and ended at 0.7171",
        "Data train: 7 duplicate rows, 3 rows dropped of 4,000.",
        "The code was not all committed: a difference, kept in dirty.patch and 1 new in untracked.tar.gz and 1 not kept.",
        "c0ffeec0ffee",
        "an update (median) 0.25 s",  # the first one compiles
        "batch_size 48",
        "data/train.jsonl",
        "a" * 32,
        "feedfacefeedface",
        "8.15 MB",
    ):
        assert text in page.text, text
    assert all(f"answer {letter}" in page.text for letter in "ACD")  # first, middle, last
    assert "answer B" not in page.text


def test_nothing_of_a_run_becomes_part_of_the_page(make_run):
    tags = {"lab.git.dirty": EVIL, "lab.devices": EVIL, "lab.group": EVIL}
    changes = {"algorithm": EVIL, "experiment": EVIL, "description": EVIL, "parent_run_id": EVIL, "versions": {EVIL: EVIL}}
    run_dir = make_run(**changes, tags=tags, platform=EVIL, git={"commit": EVIL, "branch": EVIL, "remote": EVIL})
    (run_dir / "resolved.yaml").write_text(json.dumps({EVIL: {EVIL: EVIL}, "training": {"max_steps": EVIL}}))
    journal = Journal.open(run_dir)
    journal.event("note", text=EVIL)
    journal.event("ledger", source=EVIL, rows_in=EVIL)
    for step in (0, 1):
        journal.samples(step, [{"id": EVIL, "prompt": EVIL, "completion": EVIL + str(step), "reference": EVIL, "score": EVIL}])
        journal.metrics(step, {"eval/loss": 1.0})
    with open(run_dir / "journal/metrics.jsonl", "a") as file:  # not written by us
        for step in (1, 2):
            file.write(json.dumps({"t": T0, "step": step, "m": {"eval/" + EVIL.replace("/", "|"): 1.0}}) + "\n")
    journal.finish("failed", EVIL)
    journal.close()
    page = page_of(run_dir)
    assert not page.tags & {"script", "img", "iframe", "link", "object", "embed", "form"}
    assert page.text.count("<script>") > 15
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        assert name not in ("src", "action", "data")
        assert name not in ("href", "xlink:href") or value.startswith("#"), value
        assert "url(" not in (value or "") or re.search(r"url\(#", value), value


def test_a_page_loads_nothing(make_run):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        learn(journal)
    text = (page_of(run_dir) and run_dir.parent / "page.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    assert "@import" not in text
    first = (run_dir.parent / "page.html").read_bytes()
    page_of(run_dir, "again.html")
    assert (run_dir.parent / "again.html").read_bytes() == first


def nothing(journal):
    pass


def numbers_that_are_none(journal):
    for step, value in enumerate((math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0)):
        journal.metrics(step, {"train/loss": value, "eval/loss": math.nan, "perf/step_s": value, "perf/tokens_per_s": math.inf})
        journal.metrics(step, {"train/huge": 10.0 ** (300 - 100 * step), "eval/exact_match": value})


def no_evaluation(journal):
    for step in range(1, 4):
        journal.metrics(step, {"train/loss": 1.0, "system/process_memory_usage_megabytes": 10.0})


def one_step(journal):
    journal.metrics(0, {"eval/exact_match": 0.5})


def strange_samples(journal):
    journal.samples(0, [])
    journal.samples(3, [{"id": 1, "completion": "half a character: \ud83d"}, {"id": 2, "completion": "x" * 10_000}])
    journal.samples(5, [{"id": 1, "completion": "a", "prompt": "same"}, {"id": 2, "completion": "b", "prompt": "same"}])


def odd_events(journal):
    journal.event("resumed", step=3)
    journal.event("parameters", total=3, trained=1, rows=[])
    journal.event("something new", value={"a": [1, None]})


@pytest.mark.parametrize("status", ["finished", "failed", "killed", None, "running"])
@pytest.mark.parametrize(
    "write",
    [nothing, learn, numbers_that_are_none, no_evaluation, one_step, strange_samples, odd_events],
    ids=lambda f: f.__name__,
)
def test_any_run_has_a_page(make_run, write, status):
    run_dir = make_run()
    journal = Journal.open(run_dir)
    write(journal)
    if status == "running":
        assert "Still running when this was written" in page_of(run_dir).text
    elif status is not None:
        journal.finish(status, "by hand")
    journal.close()
    shown = {"finished": "Finished after", "failed": "Failed after", "killed": "Stopped after"}
    assert shown.get(status, "Stopped after step") in page_of(run_dir).text


def test_broken_files_are_told(make_run, train):
    run_dir = make_run()
    train(run_dir)
    (run_dir / "manifest.json").write_text("{")
    (run_dir / "resolved.yaml").write_text("a: [")
    (run_dir / "samples/step-000001.jsonl").write_text('{"id": 1}\n')
    (run_dir / "samples/step-last.jsonl").write_text('{"id": 1, "completion": "a"}\n')
    page = page_of(run_dir)
    for name in ("manifest.json: not valid JSON", "resolved.yaml: not valid YAML", "step-000001.jsonl: a row", "step-last.jsonl"):
        assert name in page.text
    assert "train/loss" in page.text


def test_a_directory_with_state_alone_and_one_with_the_latest_samples_alone(make_run, tmp_path):
    Journal.open(tmp_path / "runs/dpo_nano-20261123-080000-aaaa").close()
    assert "Stopped after step 0" in page_of(tmp_path / "runs/dpo_nano-20261123-080000-aaaa").text
    run_dir = make_run()
    (run_dir / "samples").mkdir()
    table = {"columns": ["prompt", "completion", "step"], "data": [["Who?", "Me.", 7]]}
    (run_dir / "samples/latest.json").write_text(json.dumps(table))
    page = page_of(run_dir)
    assert "Who?" in page.text and "step 7" in page.text


def sample(journal):
    """Three updates of reinforcement learning; in the last rollout the answers to the second prompt differ more."""
    for step in (1, 2, 3):
        names = ("reward", "kl", "entropy", "answer_tokens", "frac_zero_std_groups", "clip_fraction", "loss", "reward_std")
        journal.metrics(step, {f"train/{name}": step / 10 for name in names})
        journal.metrics(step, {"eval/reward": 0.1 * step, "eval/reward_exact_match": 0.05, "eval/loss": 0.1 * step})
    record_trajectories(journal, rollout(0))
    last = {"reward": [1.5, 1.25, -2.0, 1.0], "completions": ["2", EVIL, "6", "It is 5"]}
    record_trajectories(journal, rollout(2, **last))
    record_trajectories(journal, rollout(3, "eval"))


def test_a_run_that_samples_shows_its_rewards_and_answers(make_run):
    run_dir = make_run(algorithm="grpo", primary_metric="eval/reward")
    with Journal.open(run_dir) as journal:
        sample(journal)
    page = page_of(run_dir)
    tiles = re.search(r"eval/reward 0\.3 (.*?) Curves", page.text)[1]
    assert tiles.startswith("train/reward 0.3 train/kl 0.3 train/entropy 0.3")
    drawn = [value for name, value in page.attributes if name == "aria-label"]
    assert drawn[:6] == ["reward", "kl", "entropy", "answer_tokens", "frac_zero_std_groups", "clip_fraction"]
    told = page.text[page.text.index("Sampled answers") :]
    assert "2 prompts of the last rollout of training, at step 2; 4 answers in all" in told
    first, second = told.index(PROMPTS[1]), told.index(PROMPTS[0])
    assert first < second and "exact_match 1, shape 0, cut off, trains nothing 1 It is 5" in told[first:second]
    assert "script" not in page.tags and EVIL in told and "Other events" not in page.text
    assert "eval/loss was lowest" not in page.text  # minus the reward


def test_rollouts_that_cannot_be_read_are_told(make_run):
    run_dir = make_run(algorithm="grpo")
    with Journal.open(run_dir) as journal:
        record_trajectories(journal, rollout(4)).write_bytes(b"PAR1")
    page = page_of(run_dir)
    assert "trajectories/train-000004.parquet: cannot be read as trajectories" in page.text and "Sampled answers" not in page.text


def test_what_a_run_survived_is_told(make_run):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        journal.event("checkpoint_failed", step=4, reason="No space left on device")
        journal.event("nonfinite", step=7, batch="nonfinite/step-000007.npz")
    found = warnings(read_run(run_dir))
    assert "The checkpoint of step 4 could not be saved: No space left on device" in found
    assert "Update 7 met numbers that are none; its batch is kept in nonfinite/step-000007.npz." in found


def test_non_finite_values_are_counted(make_run):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        for step, value in enumerate([1.0, math.nan, math.inf, 0.5]):
            journal.metrics(step, {"train/loss": value})
    assert "train/loss is not a finite number at 2 of 4 points (step 1, 2)." in warnings(read_run(run_dir))


@pytest.mark.parametrize(
    ("values", "higher", "sentence"),
    [
        ([0.2, 0.6, 0.9], True, "eval/x rose from 0.2 to 0.9, its best."),
        ([0.2, 0.9, 0.6], True, "eval/x rose from 0.2 to 0.6; its best was 0.9 at step 1."),
        ([0.2, 0.9, 0.1], True, "eval/x fell from 0.2 to 0.1: worse than at the start. Its best was 0.9 at step 1."),
        ([2.0, 0.5, 1.0], False, "eval/x fell from 2 to 1; its best was 0.5 at step 1."),
        ([2.0, 3.0], False, "eval/x rose from 2 to 3: worse than at the start. Its best was 2 at step 0."),
        ([0.5, 0.5], True, "eval/x is 0.5, as at the start, its best."),
        ([0.5], True, "eval/x is 0.5 at step 0."),
        ([0.5, math.nan], True, "eval/x is NaN at step 1."),
    ],
)
def test_the_verdict_on_the_primary_metric(make_run, values, higher, sentence):
    run_dir = make_run(primary_metric="eval/x", higher_is_better=higher)
    with Journal.open(run_dir) as journal:
        for step, value in enumerate(values):
            journal.metrics(step, {"eval/x": value})
    assert verdict(read_run(run_dir))[1] == sentence


def test_a_primary_metric_that_never_came(make_run, train):
    run_dir = make_run(primary_metric="eval/x")
    train(run_dir)
    assert verdict(read_run(run_dir))[1] == "Its primary metric eval/x was never measured."


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_time_by_attempt_and_phase(make_run):
    """Attempt 1: loads for 10 s, updates of 5, 2, 2 s, 1 s until its last word. Attempt 2, an hour later: 4 s, 3, 2 s, 1 s."""
    run_dir = make_run()

    def trained(second, step, step_s):
        values = {"train/loss": 1.0, "perf/step_s": step_s, "perf/data_s": 0.5, "perf/tokens_per_s": 100 / step_s}
        return {"t": T0 + 1000 * second, "step": step, "m": values}

    metrics = [trained(15, 1, 5), trained(17, 2, 2), trained(19, 3, 2), trained(3607, 3, 3), trained(3609, 4, 2)]
    write_lines(run_dir / "journal/metrics.jsonl", metrics)
    events = [
        {"t": T0, "kind": "attempt", "attempt": 1, "pid": 1, "host": "here"},
        {"t": T0 + 20_000, "kind": "checkpoint", "step": 2, "path": "p", "digest": "d", "bytes": 1},
        {"t": T0 + 3_600_000, "kind": "attempt", "attempt": 2, "pid": 2, "host": "there"},
        {"t": T0 + 3_600_500, "kind": "resumed", "step": 2},
        {"t": T0 + 3_610_000, "kind": "finish", "status": "finished", "message": None},
    ]
    write_lines(run_dir / "journal/events.jsonl", events)
    times = {"started": T0, "attempt_started": T0, "updated": T0 + 3_610_000, "ended": T0 + 3_610_000}
    state = {"status": "finished", "message": None, "attempt": 2, "pid": 2, "host": "there", "step": 4, "latest": {}}
    (run_dir / "state.json").write_text(json.dumps(state | times | {"journal_bytes": 0}))
    timings = read_timings(read_run(run_dir))
    assert timings.active_s == 30
    assert timings.phases == {"before the first update": 14, "first update": 8, "other updates": 6, "the rest": 2}
    assert timings.data_s == 2.5
    assert timings.step_s == 2  # of the curve 5, 2, 3, 2 (the last writer of step 3 wins) without its first value
    assert timings.tokens_per_s == 50
    first, second = timings.attempts
    assert (first.first_step, first.last_step, first.resumed_from, first.end) == (1, 3, None, "gone without a word")
    assert (second.first_step, second.last_step, second.resumed_from, second.end) == (3, 4, 2, "finished")
    page = page_of(run_dir)
    assert "It was started 2 times" in page.text and "step 2" in page.text and "there, pid 2" in page.text


def test_updates_that_are_not_journaled_took_their_time_too(make_run):
    run_dir = make_run()
    steps = [{"t": T0 + 1000 * step, "step": step, "m": {"perf/step_s": 1.0}} for step in (10, 20, 30)]
    write_lines(run_dir / "journal/metrics.jsonl", steps)
    events = [{"t": T0, "kind": "attempt", "attempt": 1, "pid": 1, "host": "here"}]
    write_lines(run_dir / "journal/events.jsonl", events)
    assert read_timings(read_run(run_dir)).phases["other updates"] == 20


def test_lineage_goes_back_to_the_first_run_and_never_round(make_run):
    make_run("pretrain-20261123-060000-aaaa", description="From nothing.", parent_run_id="sft-20261123-070000-bbbb")
    make_run("sft-20261123-070000-bbbb", description="To answer.", parent_run_id="pretrain-20261123-060000-aaaa")
    page = page_of(make_run(parent_run_id="sft-20261123-070000-bbbb"))
    assert page.text.index("From nothing.") < page.text.index("To answer.") < page.text.rindex("dpo_nano-20261123-080000-3a61")
    lost = page_of(make_run("dpo_nano-20261123-080000-ffff", parent_run_id="gone-20261123-050000-cccc"))
    assert "gone-20261123-050000-cccc its directory is not here" in lost.text


def test_at_the_end_of_a_run_the_page_says_that_it_has_finished(make_run):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        learn(journal)
        journal.finish("finished")
        write_report_at_end(run_dir)
    assert "Finished after" in Page((run_dir / "report.html").read_text()).text


def test_a_page_that_cannot_be_written_harms_nobody(make_run, capsys):
    run_dir = make_run()
    (run_dir / "report.html").mkdir()
    with Journal.open(run_dir):
        write_report_at_end(run_dir)
    assert read_run(run_dir).state.status == "finished"
    assert "report.html could not be written (IsADirectoryError" in capsys.readouterr().err


def test_a_long_curve_keeps_its_spikes_and_stays_small():
    values = [1.0] * 100_000
    values[54_321], values[77_777] = 50.0, math.nan
    svg = to_svg(panel("loss", [Series("train/loss", Curve(tuple(range(100_000)), tuple(values)))]))
    assert len(svg) < 60_000
    [line] = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--c0\)', svg)
    heights = [float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", line)]
    assert len(heights) > 2 and heights.count(min(heights)) == 1  # the spike is the highest point
    assert line.count("M") == 2  # the line is broken at the NaN


def test_the_command_writes_into_the_run_or_elsewhere(make_run, train, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
    run_dir = make_run()
    train(run_dir)
    app = typer.Typer()
    app.command()(report)
    assert CliRunner().invoke(app, ["3a61"]).stdout.strip().endswith("report.html")
    assert "train/loss" in (run_dir / "report.html").read_text()
    CliRunner().invoke(app, ["3a61", "--out", str(tmp_path / "new/folder/page.html")])
    assert (tmp_path / "new/folder/page.html").read_bytes() == (run_dir / "report.html").read_bytes()
    assert isinstance(CliRunner().invoke(app, ["none"]).exception, UserError)


def test_a_page_needs_neither_jax_nor_mlflow(make_run, train):
    run_dir = make_run()
    train(run_dir)
    program = "import sys, pathlib; from tunix_lab.lab.pages.report import write_report\n"
    program += f"write_report(pathlib.Path({str(run_dir)!r}), pathlib.Path({str(run_dir / 'x.html')!r}))\n"
    program += "heavy = {'mlflow', 'jax', 'dvc', 'pandas', 'matplotlib.pyplot'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", program], check=True)
