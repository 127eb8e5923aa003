"""What a run came to, in sentences: how it ended, whether its metric became better, and what a reader should be warned of."""

import math
from typing import Any

from tunix_lab.lab.pages.headline import SAMPLED_REWARD, duration, higher_is_better, number
from tunix_lab.lab.pages.run_view import Curve, RunView
from tunix_lab.lab.record.run_state import BUNDLE, PATCH

_WORSE_BY = 0.02  # of the best value: less is noise


def verdict(view: RunView) -> list[str]:
    """How the run ended and what became of its primary metric, or of its loss where it names none."""
    sentences = [_ending(view)]
    name = view.primary or next((name for name in ("eval/loss", "train/loss") if name in view.curves), None)
    if name is None:
        return sentences
    if name not in view.curves:
        return [*sentences, f"Its primary metric {name} was never measured."]
    return [*sentences, _course(name, view.curves[name], higher_is_better(name, [view]))]


def warnings(view: RunView) -> list[str]:
    """What a reader of the numbers must know."""
    found = [f"{problem} (left out here)" for problem in view.problems]
    for name, curve in view.curves.items():
        if curve.nonfinite:
            steps = ", ".join(map(str, curve.nonfinite[:3])) + (", …" if len(curve.nonfinite) > 3 else "")
            found.append(f"{name} is not a finite number at {len(curve.nonfinite)} of {len(curve.steps)} points (step {steps}).")
    found += _from_events(view) + _from_loss(view) + _from_data(view)
    attempts = sum(event["kind"] == "attempt" for event in view.events)
    if attempts > 1:
        found.append(f"It was started {attempts} times; see Attempts.")
    git = view.manifest.get("git") or {}
    if git.get("dirty"):
        patch = [f"a difference, kept in {PATCH}"] if (view.state.run_dir / PATCH).is_file() else []
        entries = git.get("untracked", [])
        kept = sum(isinstance(entry, dict) and entry["bundled"] for entry in entries)  # older records have names only
        lost = len(entries) - kept + len(git.get("left_out", []))
        new = [f"{kept} new in {BUNDLE}"] if kept else []
        new += [f"{lost} not kept"] if lost else []
        found.append(f"The code was not all committed: {' and '.join([*patch, *new]) or 'what differed is unknown'}.")
    elif view.manifest and not git.get("commit"):
        found.append("The code was in no git repository, so nothing tells its version.")
    return found


def _ending(view: RunView) -> str:
    state, last = view.state, view.fields.get("training.max_steps")
    of = f" of {number(last)}" if isinstance(last, int) else ""
    why = f": {state.message}" if state.message else ""
    match state.status:
        case "finished":
            if view.manifest.get("kind") == "evaluate":
                return f"Measured in {duration(view.duration_s)}."
            return f"Finished after {number(state.step)}{of} updates in {duration(view.duration_s)}."
        case "failed":
            return f"Failed after step {number(state.step)}{of}{why}."
        case "killed":
            return f"Stopped after step {number(state.step)}{of}{why}. The same command goes on from its newest checkpoint."
    return f"Still running when this was written: step {number(state.step)}{of}."


def _course(name: str, curve: Curve, higher: bool | None) -> str:
    """How a metric went from its first value to its last."""
    if len(curve.values) == 1 or not (math.isfinite(curve.first) and math.isfinite(curve.last)):
        return f"{name} is {number(curve.last)} at step {curve.steps[-1]}."
    if curve.first == curve.last:
        text = f"{name} is {number(curve.last)}, as at the start"
    else:
        moved = "rose" if curve.last > curve.first else "fell"
        text = f"{name} {moved} from {number(curve.first)} to {number(curve.last)}"
    best = None if higher is None else curve.best(higher)
    if best is None:
        return f"{text}."
    value, step = best
    if higher is not None and (curve.last < curve.first if higher else curve.last > curve.first):
        return f"{text}: worse than at the start. Its best was {number(value)} at step {step}."
    return f"{text}, its best." if value == curve.last else f"{text}; its best was {number(value)} at step {step}."


def _from_events(view: RunView) -> list[str]:
    """What went wrong and was survived."""
    found = []
    for event in view.events:
        match event:
            case {"kind": "checkpoint_failed", "step": step, "reason": reason}:
                found.append(f"The checkpoint of step {step} could not be saved: {reason}")
            case {"kind": "nonfinite", "step": step, "batch": batch}:
                found.append(f"Update {step} met numbers that are none; its batch is kept in {batch}.")
    return found


def _from_loss(view: RunView) -> list[str]:
    """Whether the loss rose again; where answers are sampled it is minus their reward, of which the verdict tells."""
    curve = None if SAMPLED_REWARD in view.curves else view.curves.get("eval/loss")
    best = None if curve is None else curve.best(False)
    if curve is None or best is None or not curve.last > best[0] + _WORSE_BY * abs(best[0]):
        return []
    return [f"eval/loss was lowest at step {best[1]} ({number(best[0])}) and ended at {number(curve.last)}."]


def _from_data(view: RunView) -> list[str]:
    """What the ledgers and the batches say was lost."""
    found = []
    ledgers: dict[str, dict[str, Any]] = {str(event.get("source")): event for event in view.events if event["kind"] == "ledger"}
    words = {"rows_duplicate": "duplicate rows", "rows_cut": "rows cut", "rows_dropped": "rows dropped"}
    for source, ledger in ledgers.items():
        lost = [f"{number(ledger[key])} {word}" for key, word in words.items() if ledger.get(key)]
        if lost:
            found.append(f"Data {source}: {', '.join(lost)} of {number(ledger.get('rows_in'))}.")
    empty = view.curves.get("train/empty_batches")
    if empty is not None and any(value > 0 for value in empty.values):
        found.append("Some batches had nothing to train on (train/empty_batches).")
    return found
