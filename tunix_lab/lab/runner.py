"""Executes one spec: plan, run directory, training, outputs; whatever happens, the record says so."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.lab import build, origin
from tunix_lab.lab.build_rl import Telling
from tunix_lab.lab.jax_settings import set_up_jax
from tunix_lab.lab.journal_logger import JournalLogger
from tunix_lab.lab.outputs import ADAPTER, write_adapter, write_model, write_records
from tunix_lab.lab.pages.report import write_report_at_end
from tunix_lab.lab.preflight import check_places
from tunix_lab.lab.record.attempt import origin_of, tell_changes
from tunix_lab.lab.record.devices import hardware
from tunix_lab.lab.record.environment import command_line
from tunix_lab.lab.record.git_state import git_state
from tunix_lab.lab.record.journal import Journal, new_run_id, read_events, read_manifest
from tunix_lab.lab.record.manifest import Inputs, digest_inputs, make_manifest, write_manifest
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.record.run_state import MANIFEST
from tunix_lab.lab.record.trajectories import record_trajectories
from tunix_lab.lab.resume import interrupted_run, require_same
from tunix_lab.lab.run_hooks import RunHooks
from tunix_lab.lab.stopping import Stopping
from tunix_lab.lab.system_metrics import SystemMetrics
from tunix_lab.lab.tracking.sync import follower_problem, start_follower, wait_follower
from tunix_lab.lab.upstream import make_missing
from tunix_lab.lab.versioning import dvc_digest
from tunix_lab.models.adapters import has_adapters, parameter_table
from tunix_lab.models.catalog import read_config
from tunix_lab.models.config import ModelConfig
from tunix_lab.models.decoder import Decoder
from tunix_lab.rl.rewards import RewardProblem
from tunix_lab.sft.peft_trainer import PeftTrainer
from tunix_lab.spec import ExperimentSpec, LabSettings, LoadedSpec, resolved_yaml, tracking_uri


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
      run_id: of the run.
      out: folder with `final/`, metrics.json, the curves and run.json.
      metrics: last value of every train and eval metric.
      synced: whether the tracking store has everything; None if nothing was to be sent.
      sync_problem: what was in the way of that, if something was.
    """

    run_id: str
    out: Path
    metrics: dict[str, float]
    synced: bool | None
    sync_problem: str | None = None


def run(
    loaded: LoadedSpec,
    home: Path,
    settings: LabSettings,
    *,
    out: Path | None = None,
    fresh: bool = False,
    resumed: Path | None = None,
) -> RunResult:
    """Runs an experiment, or goes on with its interrupted run.

    Args:
      loaded: the spec.
      home: the project folder.
      settings: tracking address, cache folder.
      out: where the outputs go; None is the run directory.
      fresh: start anew even where an interrupted run could be continued.
      resumed: directory of the run to go on with; None looks for one.

    Raises:
      UserError: spec, data or upstream cannot be used.
      TrainingFailed: the loss stopped being a number.
      Stopped: a signal, a stop file or the budget ended it; a checkpoint was saved.
    """
    spec = loaded.spec
    check_places(home, settings, out)
    make_missing(spec, home)
    set_up_jax(settings)
    mesh = build.build_mesh(spec)
    tokenizer = Tokenizer.load(origin.tokenizer_folder(spec, home))
    data = build.build_data(spec, home, tokenizer, settings.cache_dir / "tokenised")
    base_folder = origin.base_folder(spec, home)  # last: a mistake in the data is told before gigabytes are fetched
    teacher_folder = origin.teacher_folder(spec, home)
    for folder in (base_folder, teacher_folder):
        if folder is not None:
            read_config(folder)  # a folder that is no model leaves no run behind
    inputs = digest_inputs(spec, home, base_folder, tokenizer, teacher_folder)
    if resumed is not None:
        require_same(read_manifest(resumed), spec, inputs)
        run_id = resumed.name
    else:
        run_id = None if fresh else interrupted_run(home, spec, inputs, settings.trial)
    if run_id is not None:
        _say(f"continuing interrupted run {run_id}" + (" (--fresh starts anew)" if resumed is None else ""))
    run_id = run_id or new_run_id(spec.name)
    run_dir = home / "runs" / run_id
    out = out or run_dir
    git, devices, resolved = git_state(home), hardware(), resolved_yaml(spec)
    with Journal.open(run_dir, origin_of(git, devices, resolved)) as journal:
        tell_changes(run_dir)
        if not (run_dir / MANIFEST).is_file():
            manifest = make_manifest(
                spec,
                inputs,
                home=home,
                run_id=run_id,
                parent_run_id=_parent(base_folder),
                rows={part.file.key: len(part.rows) for split in (data.train, data.validation) for part in split.parts},
                hardware=devices,
                git=git,
                command=command_line(Redactor.of_process()),
                chat_template=tokenizer.template_digest,
                out=_relative(out, home),
                trial=settings.trial,
            )
            write_manifest(run_dir, manifest, loaded.source_text, resolved, git)
        told = {event["source"] for event in read_events(run_dir) if event["kind"] == "ledger"}
        for part in (*data.train.parts, *data.validation.parts):
            if part.file.key not in told:  # an attempt may have been killed in between
                journal.event("ledger", source=part.file.key, **part.ledger.summary())
        _say(f"run {run_id}")
        follower = start_follower(run_dir, tracking_uri(settings, home)) if settings.replicates else None
        folders = Folders(home, settings.cache_dir, base_folder, teacher_folder, out)
        stopping = Stopping(run_dir, settings.stop_file, spec.training.budget_s)
        metrics = _execute(spec, folders, journal, mesh, tokenizer, data, inputs, stopping)
        journal.finish("finished")
        write_report_at_end(run_dir)  # while the lock is held: whoever replicates the run waits for it, and takes the page along
    synced = None if follower is None else wait_follower(follower, settings.sync_drain_seconds)
    return RunResult(run_id, out, metrics, synced, None if synced is not False else follower_problem(run_dir))


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where a run reads and writes.

    Attributes:
      home: the project folder.
      cache: what may be thrown away.
      base: of the starting weights; None from random ones.
      teacher: of the teacher; None without one.
      out: of the outputs.
    """

    home: Path
    cache: Path
    base: Path | None
    teacher: Path | None
    out: Path


def _execute(
    spec: ExperimentSpec,
    folders: Folders,
    journal: Journal,
    mesh: Any,
    tokenizer: Tokenizer,
    data: build.Data,
    inputs: Inputs,
    stopping: Stopping,
) -> dict[str, float]:
    """Trains and writes the outputs; returns the last metrics."""
    base = build.build_base(spec, folders.base, mesh, tokenizer)
    model = build.build_model(spec, base, mesh)
    teacher = build.build_teacher(spec, folders.teacher, mesh, tokenizer)
    data = build.with_reference(spec, data, model, base, folders.cache / "reference")
    identity = inputs.identity(spec)
    checkpoints = folders.home / "checkpoints" / identity[:16] / journal.run_id

    known = {(event["step"], event["digest"]) for event in read_events(journal.run_dir) if event["kind"] == "checkpoint"}

    def on_saved(step: int, path: Path, digest: str) -> None:
        if (step, digest) in known:  # restored, or saved again on the way from an older one
            return
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        journal.checkpoint(step, path.relative_to(folders.home).as_posix(), digest, size)

    def on_failed(step: int, reason: str) -> None:
        journal.event("checkpoint_failed", step=step, reason=reason)

    def masked_reward(problem: RewardProblem) -> None:
        step = trainer.train_steps
        journal.event("reward_failed", step=step, function=problem.function, reason=problem.reason, completion=problem.completion)

    logger = JournalLogger(journal, log_every=spec.training.log_every, last_step=spec.training.max_steps)
    trainer = build.build_trainer(
        spec,
        model,
        base,
        teacher,
        tokenizer,
        mesh,
        home=folders.home,
        checkpoints=checkpoints,
        identity=identity,
        logger=logger,
        on_saved=on_saved,
        on_failed=on_failed,
        telling=Telling(lambda trajectories: record_trajectories(journal, trajectories), masked_reward),
    )
    if trainer.train_steps:
        journal.event("resumed", step=trainer.train_steps)
        _say(f"resuming after step {trainer.train_steps} of {spec.training.max_steps}")
    _tell_parameters(model, journal)
    trainer.with_training_hooks(RunHooks(spec, folders.home, journal, model, tokenizer, data.prompts, stopping))
    # Where the base was quantized for an adapter, nobody needs it in full any more.
    config = base.config
    del base
    with SystemMetrics(journal, device_memory=_device_memory), stopping.on_signals(trainer):
        trainer.train(data.train_batches, data.eval_batches)
        if trainer.stopped_early:
            trainer.checkpoint_manager.wait()
            journal.event("pace", **stopping.pace(trainer))
            stopping.raise_stopped(trainer)
        trainer.close()
    return _write_outputs(spec, folders, journal, trainer, config, mesh, tokenizer)


def _write_outputs(
    spec: ExperimentSpec,
    folders: Folders,
    journal: Journal,
    trainer: PeftTrainer,
    config: ModelConfig,
    mesh: Any,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Model, adapter, run.json, metrics and curves; returns the last metrics."""
    out = folders.out
    out.mkdir(parents=True, exist_ok=True)
    params = build.final_params(spec, trainer, folders.base, mesh, tokenizer)
    digest = write_model(params, config, tokenizer, out / "final", folders.base)
    adapter = write_adapter(spec, folders.home, trainer.model, folders.base, out / ADAPTER)
    journal.event("output", path=_relative(out / "final", folders.home), digest=digest)
    record = {"run_id": journal.run_id, "name": spec.name, "params_digest": digest, "step": trainer.train_steps}
    record |= {"model": _relative(out / "final", folders.home), "dvc_digest": dvc_digest(out / "final")}
    if adapter is not None:
        record |= {"adapter": adapter | {"path": _relative(out / ADAPTER, folders.home)}}
    (journal.run_dir / "run.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return write_records(journal.run_dir, out, record)


def _tell_parameters(model: Decoder, journal: Journal) -> None:
    """Says what is trained: with adapters each kind of them, else how many parameters."""
    adapted = has_adapters(model)
    table = parameter_table(model, nnx.LoRAParam if adapted else nnx.Param)
    total, trained = sum(row[2] for row in table), sum(row[3] for row in table)
    columns = ("name", "shapes", "count", "trained")
    rows = [dict(zip(columns, row, strict=True)) for row in table if row[3]]
    journal.event("parameters", total=total, trained=trained, rows=rows)
    _say(f"trains {trained:,} of {total:,} parameters ({trained / total:.2%})")
    for row in rows if adapted else ():
        _say(f"  {row['name']:<40}{row['trained']:>14,}  {row['shapes']}")


def _parent(base: Path | None) -> str | None:
    """The run that made the starting weights, if they came with their record."""
    record = None if base is None else base.parent / "run.json"
    return json.loads(record.read_text())["run_id"] if record is not None and record.is_file() else None


def _device_memory() -> dict[str, float]:
    """Memory in use by device, where the backend can tell (a CPU cannot)."""
    used = {}
    for device in jax.local_devices():
        stats = device.memory_stats()
        if stats:
            used[f"{device.platform}_{device.id}_memory_usage_megabytes"] = stats["bytes_in_use"] / 1e6
    return used


def _relative(path: Path, home: Path) -> str:
    path = path.absolute()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
