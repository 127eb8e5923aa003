"""Measures a model on held-out rows: answers scored against references, and preferences between pairs of answers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from tunix_lab.data.files import read_rows
from tunix_lab.data.pairs import preference_examples
from tunix_lab.data.pipeline import eval_batches
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.lab.jax_settings import set_up_jax
from tunix_lab.lab.outputs import ModelFolder, find_model
from tunix_lab.lab.preflight import check_places
from tunix_lab.lab.prompts import Prompt, make_prompts
from tunix_lab.lab.record.environment import environment
from tunix_lab.lab.record.git_state import GitState, git_state
from tunix_lab.lab.record.journal import Journal, new_run_id
from tunix_lab.lab.record.manifest import write_manifest
from tunix_lab.lab.samples import Samples, load_scorer
from tunix_lab.lab.tracking.sync import start_follower, wait_follower
from tunix_lab.lab.versioning import dvc_digest, stage_tags
from tunix_lab.models.catalog import load_model
from tunix_lab.models.decoder import Decoder
from tunix_lab.sft.dpo.dpo_trainer import answer_logps
from tunix_lab.spec import LabSettings, tracking_uri
from tunix_lab.spec.render import to_yaml


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to measure a model on.

    Attributes:
      model: folder or run of the model.
      prompts: JSONL file of rows {"prompt", "answer", …} to answer; None skips it.
      pairs: JSONL file of rows {"prompt", "chosen", "rejected"}; None skips it.
      reference: folder or run of the model before preference training; None measures without one.
      scorer: `package.module:function` that scores answers.
      max_new_tokens: of an answer.
      rows: at most so many rows of each file; None takes all.
      batch_size: pairs at a time.
      max_prompt_length: tokens of a pair's prompt; a longer one is an error.
      max_response_length: tokens of a pair's answers, likewise.
    """

    model: str
    prompts: Path | None
    pairs: Path | None
    reference: str | None
    scorer: str | None
    max_new_tokens: int = 64
    rows: int | None = None
    batch_size: int = 50
    max_prompt_length: int = 64
    max_response_length: int = 64


def evaluate(evaluation: Evaluation, home: Path, settings: LabSettings, out: Path | None) -> dict[str, float]:
    """Measures, as a run of its own under the run that made the model, and returns the metrics.

    Metrics: `eval/<scorer>` mean score of greedy answers; `eval/ranking_accuracy` share of pairs whose chosen answer has the
    higher log-probability; with a reference `eval/preference_accuracy`, the share whose log-probability ratio to the reference is
    higher for the chosen answer (a tie counts one half), and `eval/margin`, the mean difference of these ratios in nats.

    Args:
      evaluation: what to measure.
      home: the project folder.
      settings: tracking address, cache folder.
      out: JSON file that receives the metrics; None writes none.

    Raises:
      UserError: model or data cannot be used.
    """
    check_places(home, settings, None if out is None else out.parent)
    set_up_jax(settings)
    for path in (evaluation.prompts, evaluation.pairs):
        if path is not None and not (home / path).is_file():
            raise UserError(f"evaluate: no such file {home / path}; paths are relative to the project {home}")
    found = find_model(home, evaluation.model)
    tokenizer = Tokenizer.load(found.folder)
    prompts = None
    if evaluation.prompts is not None:
        prompts = make_prompts(read_rows(home / evaluation.prompts)[: evaluation.rows], tokenizer)
    model = load_model(found.folder)
    run_id = new_run_id(f"evaluate-{found.name}")
    run_dir = home / "runs" / run_id
    with Journal.open(run_dir) as journal:
        given = {key: value for key, value in dataclasses.asdict(evaluation).items() if value is not None}
        described = {key: str(value) for key, value in given.items()}
        text = to_yaml({key: value if isinstance(value, int) else str(value) for key, value in given.items()})
        git = git_state(home)
        write_manifest(run_dir, _manifest(run_id, evaluation, found, described, home, git), text, text, git)
        follower = start_follower(run_dir, tracking_uri(settings, home)) if settings.replicates else None
        metrics: dict[str, float] = {}
        if prompts is not None:
            metrics |= _answers(evaluation, model, tokenizer, prompts, home, journal, found.step)
        if evaluation.pairs is not None:
            metrics |= _preferences(evaluation, model, tokenizer, home)
        # The step is that of the model, so that the values also stand beside its checkpoint.
        journal.metrics(found.step, metrics, checkpoint=found.step)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({name.removeprefix("eval/"): value for name, value in metrics.items()}, indent=2) + "\n")
    if follower is not None:
        wait_follower(follower, settings.sync_drain_seconds)
    return metrics


def _answers(
    evaluation: Evaluation,
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
    home: Path,
    journal: Journal,
    step: int,
) -> dict[str, float]:
    scorer = load_scorer(evaluation.scorer, home)
    samples = Samples(model, tokenizer, prompts, max_new_tokens=evaluation.max_new_tokens, scorer=scorer)
    table, score = samples.generate(nnx.state(model))
    journal.samples(step, table)
    stopped = float(np.mean([row["finish_reason"] == "stop" for row in table]))
    named = {} if score is None else {f"eval/{evaluation.scorer.rpartition(':')[2]}": score}
    return named | {"eval/stopped": stopped, "eval/answer_tokens": float(np.mean([row["tokens"] for row in table]))}


def _preferences(evaluation: Evaluation, model: Decoder, tokenizer: Tokenizer, home: Path) -> dict[str, float]:
    rows = read_rows(home / evaluation.pairs)[: evaluation.rows]
    lengths = {"max_prompt_length": evaluation.max_prompt_length, "max_response_length": evaluation.max_response_length}
    examples, _ = preference_examples(rows, tokenizer, split="test", **lengths)
    chosen, rejected = _pair_logps(model, examples, evaluation.batch_size)
    metrics = {"eval/ranking_accuracy": _share_positive(chosen - rejected)}
    if evaluation.reference is not None:
        reference = load_model(find_model(home, evaluation.reference).folder)
        ref_chosen, ref_rejected = _pair_logps(reference, examples, evaluation.batch_size)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        metrics |= {"eval/preference_accuracy": _share_positive(margin), "eval/margin": float(margin.mean())}
    return metrics


def _pair_logps(model: Decoder, examples: list[dict[str, np.ndarray]], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, batch: answer_logps(nnx.merge(graph, state), batch)[:2])
    pairs = [jax.device_get(compiled(state, batch)) for batch in eval_batches(examples, batch_size)]
    chosen, rejected = (np.concatenate(column)[: len(examples)] for column in zip(*pairs, strict=True))
    return chosen, rejected


def _share_positive(difference: np.ndarray) -> float:
    return float(np.mean(np.where(difference == 0, 0.5, difference > 0)))


def _manifest(
    run_id: str, evaluation: Evaluation, found: ModelFolder, described: dict[str, str], home: Path, git: GitState
) -> dict[str, Any]:
    files = {"prompts": evaluation.prompts, "pairs": evaluation.pairs}
    datasets = [
        {
            "name": f"{path.parent.name}-{path.stem}",
            "path": path.as_posix(),
            "digest": dvc_digest(home / path),
            "context": "test",
            "rows": len(read_rows(home / path)),
        }
        for path in files.values()
        if path is not None
    ]
    return {
        "run_id": run_id,
        "name": f"evaluate-{found.name}",
        "experiment": _experiment(found, home),
        "kind": "evaluate",
        "parent_run_id": found.run_id,
        "description": f"Held-out evaluation of {found.name}.",
        "algorithm": "evaluate",
        "primary_metric": None,
        "higher_is_better": True,
        "seed": 0,
        "params": described,
        "tags": {**git.tags(), **_model_tags(evaluation, found, home), **stage_tags()},
        "datasets": datasets,
        **environment(),
    }


def _model_tags(evaluation: Evaluation, found: ModelFolder, home: Path) -> dict[str, str]:
    """The content of the models that are measured, as DVC shows it: a folder may hold another one later."""
    tags = {"dvc.model": dvc_digest(found.folder)}
    if evaluation.reference is not None:
        tags["dvc.reference"] = dvc_digest(find_model(home, evaluation.reference).folder)
    return tags


def _experiment(found: ModelFolder, home: Path) -> str:
    """The MLflow experiment of the training run, so that an evaluation stands beside it."""
    manifest = home / "runs" / (found.run_id or "") / "manifest.json"
    return json.loads(manifest.read_text())["experiment"] if manifest.is_file() else "evaluations"
