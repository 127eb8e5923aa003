"""The pages that `tunix-lab ui` names, in a real headless browser; skipped where no Chromium is installed."""

import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.tracking.sync import push

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::mlflow"),
    pytest.mark.filterwarnings("ignore:::sqlalchemy"),
]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
UI = "import typer; from tunix_lab.cli.ui import ui; app = typer.Typer(); app.command()(ui); app()"
PROMPTS = {"Tom has 3 apples and buys 4 more. How many?": 7, "A box holds 6 pens. How many do 5 boxes hold?": 30}


def learn(run_dir, seed, steps=60):
    """A run whose curves look like those of preference training."""
    rng = random.Random(seed)
    with Journal.open(run_dir) as journal:
        for step in range(steps + 1):
            learned = 1 - math.exp(-4 * step / steps)
            values = {
                "train/loss": 0.69 * (1 - learned) + 0.1 + rng.gauss(0, 0.02),
                "train/grad_norm": 1.5 - learned,
                "train/learning_rate": 3e-4 * (1 - step / steps),
                "train/margin": 2.5 * learned + rng.gauss(0, 0.1),
                "train/accuracy": 0.5 + 0.45 * learned,
                "train/chosen_logp": -20 - 3 * learned,
                "train/rejected_logp": -24 - 18 * learned,
                "perf/tokens_per_s": 14_000 + rng.gauss(0, 300),
                "perf/step_s": 0.21,
                "perf/data_s": 0.002,
            }
            journal.metrics(step, values)
            if step % 20 == 0:
                evaluated = {"eval/exact_match": 0.3 + 0.3 * learned, "eval/accuracy": 0.5 + 0.46 * learned}
                journal.metrics(step, evaluated | {"eval/loss": 0.7 - 0.4 * learned, "eval/margin": 2.2 * learned})
                answers = [(prompt, answer + (rng.random() > learned)) for prompt, answer in PROMPTS.items()]
                rows = [
                    {"id": f"p{i}", "prompt": prompt, "completion": f"By seed {seed}: <answer>{answer}</answer>"}
                    for i, (prompt, answer) in enumerate(answers)
                ]
                journal.samples(step, rows)


@pytest.fixture
def pages(make_run, tracking_uri, tmp_path):
    """Addresses by title, as the command prints them for a store with three runs; checks that Ctrl-C ends all of it."""
    for seed in range(3):
        params = {"algorithm.kind": "dpo", "optimizer.learning_rate": 3e-4, "seed": seed}
        run_dir = make_run(f"dpo_nano-20261123-08000{seed}-000{seed}", params=params)
        learn(run_dir, seed)
        assert push(run_dir, tracking_uri).outcome == "complete"
    environment = {**os.environ, "TUNIX_LAB_HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", UI], stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = []
        while not lines or "Ctrl-C ends it" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], f"the UI ended early: {lines}"
        yield dict(re.fullmatch(r"  (.+?) +(http://127\.0\.0\.1:\S+)\n", line).groups() for line in lines if "#/" in line)
        family = psutil.Process(process.pid).children(recursive=True)
        assert 1 <= len(family) <= 3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not [member for member in family if member.is_running()]


def seen(url, tmp_path, *texts):
    """The page's DOM once it shows all `texts`; a loaded machine may need a second look."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=2800,3000", "--virtual-time-budget=60000", "--dump-dom", url]
    for _ in range(4):
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        missing = [text for text in texts if text not in dom]
        if not missing:
            return dom
    pytest.fail(f"{url} does not show {missing}")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_run_list_charts_and_samples(pages, tmp_path):
    assert set(pages) == {"dpo charts", "dpo table", "samples"}
    runs = [f"dpo_nano-000{seed}" for seed in range(3)]
    columns = ["Duration", "eval/exact_match", "eval/accuracy", "eval/loss", "eval/margin", "train/loss", "perf/tokens_per_s"]
    columns += ["algorithm.kind", "optimizer.learning_rate", "seed", "lab.git.dirty", "Sort: eval/exact_match"]
    seen(pages["dpo table"], tmp_path, *runs, *columns)
    sections = ["1 · eval", "2 · training", "3 · preference", "4 · performance"]
    dom = seen(pages["dpo charts"], tmp_path, *runs, *sections, "train/chosen_logp vs train/rejected_logp", "js-plotly-plot")
    assert [section for section in re.findall(r"\d · [a-z]+", dom)] == sections
    completions = [f"By seed {seed}: " for seed in range(3)]
    seen(pages["samples"], tmp_path, *runs, *PROMPTS, *completions, "Filter by prompt")
