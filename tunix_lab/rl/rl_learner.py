"""The loop of reinforcement learning, for every algorithm: sample answers, reward them, judge them, train on them.

What algorithms differ in, they override: how rewards become advantages, and the loss.
"""

import abc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from tunix_lab.errors import TrainingFailed
from tunix_lab.ops.advantages import zero_std_groups
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.rl.answers import ScoredAnswers, answer_metrics, mean_of, training_metrics, trajectories
from tunix_lab.rl.config import PolicyKnobs, Role
from tunix_lab.rl.experience import Batch, token_batch, tokens_of
from tunix_lab.rl.prompt_stream import PromptStream
from tunix_lab.rl.rewards import RewardFn, RewardProblem, Rewards, in_process, total
from tunix_lab.rl.rl_cluster import RLCluster
from tunix_lab.rl.rollout.base_rollout import RolloutOutput
from tunix_lab.rl.trainer import RLTrainer
from tunix_lab.rl.trajectories import Trajectories
from tunix_lab.rl.untold import Untold
from tunix_lab.rl.update_plan import UpdatePlan
from tunix_lab.sft.metrics_logger import Mode
from tunix_lab.sft.train_step import PerRow

MetricFn = Callable[..., Mapping[str, Any]]
"""(prompts, completions, rewards, advantages, **columns) -> {name: number, or (number, reducing function)}."""

_RESERVED = frozenset({"std", "overlong", "reward_model"})


class RLLearner(abc.ABC):
    """Trains the actor of a cluster on answers that it samples itself.

    A batch of the dataset is a mapping with "prompts" (strings, conversations or token ids) and any other columns, which reward
    functions get, each repeated for every answer. Optional columns of its own: "prompt_ids", the ids to read in place of the
    texts; "sample_ids", numbers of the prompts, which with the step say their random numbers.
    """

    config: PolicyKnobs

    def __init__(
        self,
        rl_cluster: RLCluster,
        config: PolicyKnobs,
        reward_fns: "Sequence[RewardFn] | RewardFn | Rewards | None",
        metric_fns: Sequence[MetricFn] | None = None,
        data_shuffle_seed: int | None = None,
        on_trajectories: Callable[[Trajectories], None] | None = None,
    ):
        """Prepares training.

        Args:
          rl_cluster: the models.
          config: of the algorithm.
          reward_fns: functions whose rewards are added up, or what calls them (`rl.reward_pool`); None only where the cluster has
            a reward model.
          metric_fns: make further metrics of every batch.
          data_shuffle_seed: deals the prompts of a batch out to its updates by chance; None keeps their order.
          on_trajectories: receives the record of every rollout.

        Raises:
          ValueError: there is no reward, or no reference though the algorithm needs one.
        """
        self.rl_cluster = rl_cluster
        self.config = config
        self.rewards = reward_fns if isinstance(reward_fns, Rewards) else in_process(reward_fns)
        for name in _RESERVED.intersection(self.rewards.names):
            raise ValueError(f"a reward may not be called {name!r}: that is the name of another metric; rename the function")
        if not self.rewards.names and not rl_cluster.inference_worker.has(Role.REWARD):
            raise ValueError("no reward: give reward_fns, or RLCluster a reward model")
        self._metric_fns = list(metric_fns or ())
        self._shuffle_seed = data_shuffle_seed
        self._on_trajectories = on_trajectories
        self._waiting: deque[list[Batch]] = deque()
        self._plan: UpdatePlan | None = None
        self._untold: Untold | None = None
        self._to_check: Untold | None = None
        self.last_batch: Batch = {}  # made of the last rollout, to look at
        self.trainer: RLTrainer = rl_cluster.actor_trainer.with_source(self)
        self.trainer.with_loss_fn(self.loss, has_aux=True)

    # ---- what an algorithm is ---------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def num_generations(self) -> int:
        """Answers to each prompt."""

    @property
    @abc.abstractmethod
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed."""

    @property
    def mini_batch_size(self) -> int | None:
        """Prompts of one update; None is all of a batch."""
        return self.rl_cluster.cluster_config.training_config.mini_batch_size

    @property
    def needs_old_logps(self) -> bool:
        """Whether the policy's log-probabilities before the updates must be computed: not where there is one update only."""
        return self.updates_per_rollout > 1

    @property
    def needs_sampler_logps(self) -> bool:
        """Whether the loss reads the sampler's log-probabilities."""
        return False

    @abc.abstractmethod
    def judge(self, answers: ScoredAnswers, batch: Batch) -> dict[str, np.ndarray]:
        """What the batch needs beyond tokens and log-probabilities: advantages, and what else the loss reads, by token."""

    @abc.abstractmethod
    def loss(self, model: nnx.Module, batch: Mapping[str, Any]) -> tuple[WeightedMean, dict[str, WeightedMean | PerRow]]:
        """The loss and its metrics; among them `logps` as `PerRow`, the log-probabilities of the answers' tokens."""

    def shape_rewards(self, answers: ScoredAnswers) -> dict[str, np.ndarray]:
        """Rewards that the algorithm itself adds, by name."""
        return {}

    def is_useful(self, answers: ScoredAnswers) -> np.ndarray:
        """By answer, whether it may stay in the batch; the others make room for answers to further prompts."""
        return np.ones(len(answers.prompts), bool)

    @property
    def sampling_rounds(self) -> int:
        """Rounds of sampling for one batch at most."""
        return 1

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def train(self, train_ds: Iterable[Any], eval_ds: Iterable[Any] | None = None, skip_jit: bool = False) -> None:
        """Trains until `max_steps` updates are made, or the prompts end.

        Args:
          train_ds: batches of prompts. If its iterator can save its state a restored run goes on at the exact next batch.
          eval_ds: batches of prompts to evaluate on.
          skip_jit: run the steps uncompiled, to debug them.
        """
        self.trainer.train(train_ds, eval_ds, skip_jit)

    @property
    def updates_per_rollout(self) -> int:
        """Updates that are made from what is sampled at once; known once a batch was seen."""
        return 1 if self._plan is None else self._plan.n_updates

    @property
    def between_rollouts(self) -> bool:
        """Whether all that was sampled has been trained on."""
        return not self._waiting

    def updates(self, prompts: Iterable[Any]) -> Iterator[list[Batch]]:
        """The micro-batches of each update; an iterator that can save its place between rollouts."""
        self._waiting.clear()  # of an earlier call that ended within a rollout
        return PromptStream(prompts, self._next_update)

    def _next_update(self, stream: "PromptStream") -> list[Batch]:
        if not self._waiting:
            self.trainer.flush()  # told before the next rollout, whose metrics would else mix with it
            self._waiting.extend(self._experience(stream))
        return self._waiting.popleft()

    def _experience(self, stream: "PromptStream") -> list[list[Batch]]:
        """Samples answers to the next prompts, and makes the micro-batches of all updates from them."""
        cluster, perf = self.rl_cluster, self.rl_cluster.perf
        if not cluster.is_synced:
            cluster.sync_weights()
        rows = stream.read()
        plan = self._plan = self._make_plan(len(rows["prompts"]))
        answers, dropped = self._sample_useful(rows, stream)
        # Where nothing was of use the batch trains nothing: an update without weight, which is counted.
        trained = self.trains(answers) & self.is_useful(answers)
        batch = self._token_batch(answers.rollout, trained, Mode.TRAIN)
        with perf.span("logps"):
            batch |= self._logps(batch)
            batch |= self.judge(answers, batch)
        self.last_batch = batch
        self._untold = Untold(self.trainer.train_steps, plan.n_updates, plan.first_rows, answers, dropped, batch)
        rollout = cluster.cluster_config.rollout_for(Mode.TRAIN)
        is_whole = rollout.top_k is None and rollout.top_p in (None, 1.0)
        cluster.buffer_metrics(training_metrics(answers, batch, self.num_generations, samples_all=is_whole))
        self._buffer_of_user(answers, batch["advantages"], Mode.TRAIN)
        return plan.updates(self._read(batch))

    def _sample_useful(self, rows: Mapping[str, Any], stream: "PromptStream") -> tuple[ScoredAnswers, ScoredAnswers | None]:
        """Answers to as many prompts as one batch has, those of no use left out as far as rounds of sampling last; and those."""
        kept: ScoredAnswers | None = None
        dropped: ScoredAnswers | None = None
        n_wanted, n_rounds = len(rows["prompts"]) * self.num_generations, 0
        while rows is not None:
            sampled = self._answers(rows, Mode.TRAIN, n_rounds)
            self.rl_cluster.buffer_metrics(answer_metrics(sampled) | self._group_metrics(sampled))
            useful = self.is_useful(sampled)
            kept = _added(kept, sampled.take(np.flatnonzero(useful)))
            dropped = _added(dropped, sampled.take(np.flatnonzero(~useful)))
            n_rounds += 1
            rows = stream.further() if n_rounds < self.sampling_rounds and _count(kept) < n_wanted else None
        if self.sampling_rounds > 1:
            self.rl_cluster.buffer_metrics({"sampling_rounds": n_rounds})
        if kept is None:
            return dropped.take(np.arange(n_wanted)), None
        surplus = kept.take(np.arange(n_wanted, _count(kept)))
        return kept.take(np.arange(min(n_wanted, _count(kept)))), _added(dropped, surplus)

    def _group_metrics(self, sampled: ScoredAnswers) -> dict[str, float]:
        """The share of prompts whose answers are all worth the same, which teach nothing."""
        if self.num_generations == 1:
            return {}
        groups = sampled.reward.reshape(-1, self.num_generations)
        return {"frac_zero_std_groups": mean_of(np.asarray(zero_std_groups(groups, np.isfinite(groups))))}

    def _answers(self, rows: Mapping[str, Any], mode: Mode, round_number: int) -> ScoredAnswers:
        """Samples answers to a batch of prompts and rewards them."""
        cluster, perf = self.rl_cluster, self.rl_cluster.perf
        g = self.num_generations if mode is Mode.TRAIN else 1
        given = list(rows["prompts"])
        with perf.span("rollout"):
            rollout = cluster.generate(
                list(rows.get("prompt_ids", given)),
                mode=mode,
                num_generations=g,
                sample_ids=rows.get("sample_ids"),
                round_number=round_number,
            )
        columns = {name: _repeated(rows[name], g) for name in rows if name not in ("prompts", "prompt_ids", "sample_ids")}
        texts = [self._text(prompt) for prompt in given for _ in range(g)]
        with perf.span("reward"):
            rewards = self.rewards.score(texts, rollout.text, columns, group_size=g)
            if cluster.inference_worker.has(Role.REWARD):
                rewards = rewards | {"reward_model": self._model_scores(texts, rollout, mode)}
        answers = ScoredAnswers(
            texts, np.arange(len(texts)) // g, rollout, dict(rewards), np.zeros(len(texts), np.float32), columns
        )
        answers.rewards |= self.shape_rewards(answers)
        answers.reward = total(answers.rewards)
        return answers

    def _model_scores(self, prompts: Sequence[str], rollout: RolloutOutput, mode: Mode) -> np.ndarray:
        """The reward model's scores.

        Raises:
          RewardProblem: one of them is no number.
        """
        batch = self._token_batch(rollout, np.ones(len(rollout.text), bool), mode)
        scores = self.rl_cluster.get_rewards(**tokens_of(batch), micro_batch_size=self._logps_rows)
        for i in np.flatnonzero(~np.isfinite(scores)):
            raise RewardProblem("reward_model", int(i), len(scores), prompts[i], rollout.text[i], f"it gave {scores[i]}")
        return scores

    def _text(self, prompt: Any) -> str:
        match prompt:
            case str():
                return prompt
            case [{"content": _}, *_]:
                return str(prompt[-1]["content"])
            case _:
                return self.rl_cluster.tokenizer.decode(list(prompt))

    # ---- from answers to batches ------------------------------------------------------------------------------------

    def trains(self, answers: ScoredAnswers) -> np.ndarray:
        """By answer, whether it trains anything: not without a reward, and, if so configured, not where the budget cut it off."""
        trained = np.isfinite(answers.reward)
        if self.config.mask_truncated:
            trained &= np.asarray([reason == "stop" for reason in answers.rollout.finish_reason])
        return trained

    def _token_batch(self, rollout: RolloutOutput, trained: np.ndarray, mode: Mode) -> Batch:
        config = self.rl_cluster.cluster_config.rollout_for(mode)
        lengths = {"max_prompt": config.max_prompt_length, "max_completion": config.max_tokens_to_generate}
        return token_batch(rollout.prompt_tokens, rollout.tokens, rollout.logprobs, trained, **lengths)

    def _logps(self, batch: Batch) -> Batch:
        """The log-probabilities that are computed before the updates."""
        cluster, tokens, found = self.rl_cluster, tokens_of(batch), {}
        if self.needs_old_logps:
            found["old_logps"] = cluster.get_old_per_token_logps(**tokens, micro_batch_size=self._logps_rows)
        if self.needs_reference:
            found["ref_logps"] = cluster.get_ref_per_token_logps(**tokens, micro_batch_size=self._logps_rows)
        return found

    @property
    def _logps_rows(self) -> int | None:
        prompts = self.rl_cluster.cluster_config.training_config.compute_logps_micro_batch_size
        return None if prompts is None else prompts * self.num_generations

    def _make_plan(self, n_prompts: int) -> UpdatePlan:
        """How a rollout of so many prompts is trained on. Raises UserError where they do not divide into updates."""
        shuffle = None if self._shuffle_seed is None else (self._shuffle_seed, self.trainer.train_steps)
        micro = self.rl_cluster.cluster_config.training_config.train_micro_batch_size
        sizes = self.num_generations, self.mini_batch_size, micro, self.config.num_iterations
        return UpdatePlan.of(n_prompts, *sizes, shuffle)

    def _read(self, batch: Batch) -> Batch:
        """What the loss reads of a batch."""
        unread = set() if self.needs_sampler_logps else {"sampler_logps"}
        # A single update is on-policy: π_old is π itself, exactly, whatever rounding did to what was computed before.
        unread |= {"old_logps"} if self.updates_per_rollout == 1 else set()
        return {name: array for name, array in batch.items() if name not in unread}

    # ---- what is told -----------------------------------------------------------------------------------------------

    def told(self, step: int, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """What the updates of a rollout tell of it: the first, how far the sampler is from the trainer; the last, all metrics."""
        untold = self._untold
        if untold is None:
            return {}
        if step == untold.step + 1:
            untold.learn(rows, untold.batch.get("old_logps") if self.needs_old_logps else None)
            self._to_check = untold
            if self._on_trajectories is not None:
                self._on_trajectories(untold.record())
        if step < untold.step + untold.n_updates:
            return {}
        self._untold = None
        return untold.gap | self.rl_cluster.take_metrics(Mode.TRAIN, step)

    def check(self) -> None:
        """Ends training where what is sampled is not what is trained.

        Raises:
          TrainingFailed: the log-probabilities of sampler and trainer are further apart than `logp_gap_limit`.
        """
        untold, self._to_check = self._to_check, None
        if untold is not None:
            untold.require_small_gap(self.config.logp_gap_limit)

    def _buffer_of_user(self, answers: ScoredAnswers, advantages: np.ndarray | None, mode: Mode) -> None:
        """The metrics that the user's functions make."""
        given = {"prompts": answers.prompts, "completions": answers.rollout.text, "rewards": answers.reward}
        given |= {"advantages": advantages, **answers.columns}
        for function in self._metric_fns:
            self.rl_cluster.buffer_metrics(function(**given), mode)

    def close(self) -> None:
        """Ends the processes of the rewards; they start again when they are needed."""
        self.rewards.close()

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, prompts: Iterable[Any]) -> dict[str, float]:
        """Answers all prompts once, as the evaluation's rollout configuration says; `loss` is minus the mean reward."""
        cluster = self.rl_cluster
        if not cluster.is_synced:
            cluster.sync_weights()
        answers: ScoredAnswers | None = None
        for rows in prompts:
            begin = 0 if answers is None else _count(answers)
            numbered = {"sample_ids": np.arange(begin, begin + len(rows["prompts"])), **rows}
            answers = _added(answers, self._answers(numbered, Mode.EVAL, 0))
        if answers is None:
            return {}
        known = np.isfinite(answers.reward)
        if not known.any():
            raise TrainingFailed("evaluation: no answer has a reward; the reward functions failed on all of them")
        cluster.buffer_metrics(answer_metrics(answers), Mode.EVAL)
        self._buffer_of_user(answers, None, Mode.EVAL)
        if self._on_trajectories is not None:
            self._on_trajectories(trajectories(answers, self.trainer.train_steps, Mode.EVAL))
        return {"loss": -mean_of(answers.reward[known])} | cluster.take_metrics(Mode.EVAL, self.trainer.train_steps)


def token_means(values: Mapping[str, Any], mask: Any) -> dict[str, WeightedMean]:
    """Metrics that are means over the tokens of the mask, of arrays [rows, tokens]."""
    return {name: WeightedMean.of(value.astype("float32"), mask) for name, value in values.items()}


def _repeated(values: Sequence[Any], times: int) -> list[Any]:
    return [value for value in values for _ in range(times)]


def _count(answers: ScoredAnswers | None) -> int:
    return 0 if answers is None else len(answers.prompts)


def _added(some: ScoredAnswers | None, more: ScoredAnswers | None) -> ScoredAnswers | None:
    """Both together; None where there are none."""
    if not _count(more):
        return some
    return more if some is None else some + more
