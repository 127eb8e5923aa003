"""`tunix-lab trajectories`: what a run sampled, how it was rewarded, and what another reward would have said."""

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tunix_lab.data.tokenizer import Tokenizer
    from tunix_lab.lab.browse import Browsed
    from tunix_lab.lab.rollouts import Answer, Rescored

_SHOWN = 5
_REWARDS = 8
_WIDE = 100
"""Columns from which tokens are coloured."""
_UNLIKELY = (("green", -0.1), ("", -1.0), ("yellow", -3.0), ("red", -math.inf))
"""Colours of tokens by log-probability, in nats: the first whose bound it reaches."""


def trajectories(
    run_id: Annotated[str, typer.Argument(help="Run: its id, or its beginning or end.", show_default=False)],
    step: Annotated[int | None, typer.Option(min=0, help="Updates made before; default: the last.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All rollouts, not only one.")] = False,
    mode: Annotated[str, typer.Option(help="train or eval.")] = "train",
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only prompts that hold this, of all rollouts.", show_default=False)
    ] = None,
    best: Annotated[int | None, typer.Option(min=1, metavar="N", help="The N best answers in full.", show_default=False)] = None,
    worst: Annotated[int | None, typer.Option(min=1, metavar="N", help="The N worst ones.", show_default=False)] = None,
    failed: Annotated[
        str | None, typer.Option(metavar="REWARD", help="Only answers that got nothing by this reward.", show_default=False)
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Score the answers again, and compare.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Prompts in the table.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every answer, for programs.")] = False,
) -> None:
    """Browse what a run of reinforcement learning sampled, a rollout at a time."""
    from tunix_lab.cli._project import open_project
    from tunix_lab.lab.browse import browse, rescored

    home = open_project().home
    found = browse(home, run_id, step=step, mode=mode, everything=everything, prompt=prompt, failed=failed)
    if reward is not None:
        _show_rescored(rescored(home, found, reward), found, reward, as_json)
        return
    answers = _chosen(found, best, worst, failed)
    if as_json:
        _print_json(found, mode, answers)
        return
    console = Console(highlight=False)
    _print_groups(console, found, mode, count)
    in_full = answers if best or worst or failed else answers[:1]
    tokenizer = found.tokenizer(home) if in_full and console.width >= _WIDE else None
    for answer in in_full[: max(best or 0, worst or 0, 1 if not failed else count)]:
        _print_answer(console, answer, tokenizer)


def _chosen(found: "Browsed", best: int | None, worst: int | None, failed: str | None) -> "list[Answer]":
    """The answers that are asked for, in the order in which they are shown; the best one first where nothing is said."""
    from tunix_lab.lab.rollouts import has_failed, ranked

    answers = [answer for group in found.groups for answer in group.answers if failed is None or has_failed(answer, failed)]
    if best is None and worst is None:
        return answers if failed else ranked(answers, best_first=True)
    top = [] if best is None else ranked(answers, best_first=True)[:best]
    bottom = [] if worst is None else ranked(answers, best_first=False)[:worst]
    return [*top, *bottom]


def _print_json(found: "Browsed", mode: str, answers: "Sequence[Answer]") -> None:
    from tunix_lab.lab.rollouts import as_json

    content = {"run_id": found.run_dir.name, "mode": mode, "steps": found.steps, "answers": [as_json(a) for a in answers]}
    typer.echo(json.dumps(content, allow_nan=False))


def _print_groups(console: Console, found: "Browsed", mode: str, count: int) -> None:
    """What was found in a line, a prompt a line, and where the rollouts before and after are."""
    answers = [answer for group in found.groups for answer in group.answers]
    rewards = [reward for group in found.groups for reward in group.rewards]
    head = Text(found.run_dir.name, "bold").append(f"  {mode} ", "")
    head.append(f"step {found.shown[0]}" if len(found.shown) == 1 else f"{len(found.shown)} rollouts")
    head.append(f": {len(found.groups)} prompts, {len(answers)} answers")
    if rewards:
        head.append(f", reward {_number(sum(rewards) / len(rewards))}")
    alike = sum(len(group.answers) > 1 and group.std == 0 for group in found.groups)
    head.append(f", {alike} prompts with answers all worth the same" if alike else "")
    console.print(head)
    console.print(_table(found, count))
    if len(found.groups) > count:
        console.print(f"[dim]{len(found.groups) - count} more prompts: -n {len(found.groups)}[/]")
    if len(found.shown) == 1:
        place = found.steps.index(found.shown[0])
        beside = {"before": found.steps[place - 1 : place] if place else (), "after": found.steps[place + 1 : place + 2]}
        hints = [f"{word}: --step {steps[0]}" for word, steps in beside.items() if steps]
        console.print(f"[dim]{'; '.join(hints) or 'the only rollout'}; {len(found.steps)} in all[/]")


def _table(found: "Browsed", count: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = len(found.shown) > 1
    for name in (["step"] if several else []) + ["prompt"]:
        table.add_column(name, justify="right")
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("reward", "std", "rewards", "tokens", "cut off"):
        table.add_column(name, justify="left" if name == "rewards" else "right")
    for group in found.groups[:count]:
        first, tokens = group.answers[0], [len(answer.completion_ids) for answer in group.answers]
        cut = sum(answer.finish_reason == "length" for answer in group.answers)
        table.add_row(
            *([str(first.step)] if several else []),
            str(first.group),
            Text(_printable(" ".join(group.prompt.split()))),
            _number(group.mean),
            _number(group.std),
            _listed([answer.reward for answer in group.answers]),
            str(round(sum(tokens) / len(tokens))),
            str(cut) if cut else "",
        )
    return table


def _print_answer(console: Console, answer: "Answer", tokenizer: "Tokenizer | None") -> None:
    """One answer in full, its tokens coloured where the terminal is wide and the tokenizer is at hand."""
    worth = ", ".join(f"{name} {_number(value)}" for name, value in answer.rewards.items())
    facts = f"step {answer.step}, prompt {answer.group}, answer {answer.number}"
    told = Text(f"\n{facts}", "bold").append(f"  reward {_number(answer.reward)} ({worth}), ", "")
    told.append(f"{len(answer.completion_ids)} tokens, {'cut off' if answer.finish_reason == 'length' else answer.finish_reason}")
    told.append("" if answer.trained or answer.mode == "eval" else ", trains nothing")
    advantages = answer.advantages.tolist()
    same = len(set(advantages)) <= 1
    told.append(f", advantage {_number(advantages[0])}" if advantages and same else "")
    console.print(told)
    console.print(Text(_printable(answer.prompt), "dim"))
    if tokenizer is None:
        console.print(Text(_printable(answer.completion)))
    elif advantages and not same:
        console.print(_coloured(answer, tokenizer, advantages, _of_advantage))
        console.print("[dim]green: better than expected, red: worse[/]")
    else:
        console.print(_coloured(answer, tokenizer, answer.sampler_logps.tolist(), _of_logp))
        console.print("[dim]green: the model was sure, yellow and red: it was not[/]")
    for name, value in answer.columns.items():
        console.print(Text(f"{name}: ", "dim").append(_printable(str(value)), ""))


def _coloured(answer: "Answer", tokenizer: "Tokenizer", values: Sequence[float], colour: Callable[[float], str]) -> Text:
    from tunix_lab.lab.rollouts import token_texts

    drawn = Text()
    for text, value in zip(token_texts(tokenizer, answer.completion_ids.tolist()), values, strict=True):
        drawn.append(_printable(text), colour(value))
    return drawn


def _of_advantage(value: float) -> str:
    return "green" if value > 0 else "red" if value < 0 else "dim"


def _of_logp(value: float) -> str:
    return next((colour for colour, bound in _UNLIKELY if value >= bound), "red")


def _show_rescored(scores: "list[Rescored]", found: "Browsed", reference: str, as_json: bool) -> None:
    """How often, and by how much, the stored and the new rewards differ; the answers that differ most in full."""
    changed = sorted((score for score in scores if score.differs), key=_difference, reverse=True)
    if as_json:
        from tunix_lab.lab.rollouts import as_json as plain

        rows = [plain(s.answer) | {"before": _strict(s.before), "now": _strict(s.now)} for s in scores]
        typer.echo(json.dumps({"run_id": found.run_dir.name, "reward": reference, "answers": rows}, allow_nan=False))
        return
    console = Console(highlight=False)
    before, now = (_mean([getattr(s, name) for s in scores]) for name in ("before", "now"))
    console.print(f"[bold]{found.run_dir.name}[/]  {len(scores)} answers of {len(found.shown)} rollouts, by {reference}")
    console.print(f"mean reward {_number(before)} before, {_number(now)} now; {len(changed)} answers differ")
    for score in changed[:_SHOWN]:
        a = score.answer
        facts = f"\nstep {a.step}, prompt {a.group}, answer {a.number}"
        console.print(Text(facts, "bold").append(f"  {_number(score.before)} → {_number(score.now)}", ""))
        console.print(Text(_printable(a.prompt), "dim"))
        console.print(Text(_printable(a.completion)))
    if len(changed) > _SHOWN:
        console.print(f"\n[dim]{len(changed) - _SHOWN} more: --json has them all[/]")


def _difference(score: "Rescored") -> float:
    """By how much the rewards differ; a number where there was none, or the other way round, differs most."""
    difference = abs(score.now - score.before)
    return math.inf if math.isnan(difference) else difference


def _mean(values: Sequence[float]) -> float:
    numbers = [value for value in values if math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _listed(rewards: Sequence[float]) -> str:
    """Rewards of the answers to a prompt, in their order; of many, the first ones."""
    return " ".join(map(_number, rewards[:_REWARDS])) + (" …" if len(rewards) > _REWARDS else "")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _strict(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _printable(text: str) -> str:
    """What a model says must not steer the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)
