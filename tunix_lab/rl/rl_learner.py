"""The loop of reinforcement learning, for every algorithm: sample answers, reward them, judge them, train on them.

What algorithms differ in, they override: how rewards become advantages, and the loss.
"""

import abc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from tunix_lab.errors import TrainingFailed, UserError
from tunix_lab.ops.weighted import WeightedMean
from tunix_lab.rl.answers import ScoredAnswers, answer_metrics, group_std, mean_of, training_metrics, trajectories
from tunix_lab.rl.config import PolicyKnobs, Role
from tunix_lab.rl.experience import Batch, fill_up, rows_of, token_batch
from tunix_lab.rl.prompt_stream import PromptStream
from tunix_lab.rl.rewards import RewardFn, Rewards, in_process
from tunix_lab.rl.rl_cluster import RLCluster
from tunix_lab.rl.rollout.base_rollout import RolloutOutput
from tunix_lab.rl.trainer import RLTrainer
from tunix_lab.rl.trajectories import Trajectories
from tunix_lab.sft.metrics_logger import Mode
from tunix_lab.sft.train_step import PerRow

MetricFn = Callable[..., Mapping[str, Any]]
"""(prompts, completions, rewards, advantages, **columns) -> {name: number, or (number, reducing function)}."""

_SHUFFLE = 3  # purpose of the random numbers that order the prompts of an update


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
        if not self.rewards.names and not rl_cluster.inference_worker.has(Role.REWARD):
            raise ValueError("no reward: give reward_fns, or RLCluster a reward model")
        self._metric_fns = list(metric_fns or ())
        self._shuffle_seed = data_shuffle_seed
        self._on_trajectories = on_trajectories
        self._waiting: deque[list[Batch]] = deque()
        self._n_updates = 1
        self._untold: ScoredAnswers | None = None
        self._untold_batch: Batch = {}
        self._untold_logps: np.ndarray | None = None
        self._first_rows = np.zeros(0, int)
        self.trainer: RLTrainer = rl_cluster.actor_trainer.with_source(self)
        self.trainer.with_loss_fn(self._loss, has_aux=True)

    # ---- what an algorithm is ---------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def num_generations(self) -> int:
        """ScoredAnswers to each prompt."""

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
        return self._n_updates

    @property
    def between_rollouts(self) -> bool:
        """Whether all that was sampled has been trained on."""
        return not self._waiting

    def updates(self, prompts: Iterable[Any]) -> Iterator[list[Batch]]:
        """The micro-batches of each update; an iterator that can save its place between rollouts."""
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
        answers, n_prompts, n_rounds = self._sample_useful(stream)
        self._n_updates = self._count_updates(n_prompts)
        batch = self._batch(answers)
        with perf.span("logps"):
            batch |= self._logps(batch)
            batch |= self.judge(answers, batch)
        self._untold, self._untold_batch = answers, batch
        self._untold_logps = batch.get("old_logps") if self.needs_old_logps else None
        self._buffer(answers, batch, Mode.TRAIN)
        if self.sampling_rounds > 1:
            cluster.buffer_metrics({"sampling_rounds": n_rounds})
        return self._updates_of(batch, n_prompts)

    def _sample_useful(self, stream: "PromptStream") -> tuple[ScoredAnswers, int, int]:
        """ScoredAnswers to as many prompts as one batch has, those of no use left out as far as rounds of sampling last."""
        kept: ScoredAnswers | None = None
        wanted, n_rounds = 0, 0
        while n_rounds < self.sampling_rounds and (kept is None or len(kept.prompts) < wanted):
            rows = stream.read() if n_rounds == 0 else stream.further()
            if rows is None:
                break
            sampled = self._answers(rows, Mode.TRAIN, n_rounds)
            wanted = max(wanted, len(sampled.prompts))
            if self.num_generations > 1:
                self.rl_cluster.buffer_metrics(
                    {"frac_zero_std_groups": mean_of(group_std(sampled.reward, self.num_generations) == 0)}
                )
            useful = sampled.take(np.flatnonzero(self.is_useful(sampled)))
            last = sampled
            if len(useful.prompts):
                kept = useful if kept is None else kept + useful
            n_rounds += 1
        kept = last if kept is None else kept  # nothing is of use: an update of advantage zero, which is counted
        return kept.take(np.arange(min(wanted, len(kept.prompts)))), wanted // self.num_generations, n_rounds

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
                rewards = rewards | {"reward_model": self._model_scores(rollout)}
        answers = ScoredAnswers(
            texts, np.arange(len(texts)) // g, rollout, dict(rewards), np.zeros(len(texts), np.float32), columns
        )
        answers.rewards |= self.shape_rewards(answers)
        answers.reward = np.sum(list(answers.rewards.values()), axis=0, dtype=np.float32)
        return answers

    def _model_scores(self, rollout: RolloutOutput) -> np.ndarray:
        batch = self._token_batch(rollout, np.ones(len(rollout.text), bool))
        return self.rl_cluster.get_rewards(**_tokens_of(batch), micro_batch_size=self._logps_rows)

    def _text(self, prompt: Any) -> str:
        match prompt:
            case str():
                return prompt
            case [{"content": _}, *_]:
                return str(prompt[-1]["content"])
            case _:
                return self.rl_cluster.tokenizer.decode(list(prompt))

    # ---- from answers to batches ------------------------------------------------------------------------------------

    def _batch(self, answers: ScoredAnswers) -> Batch:
        """The arrays of answers; those without a reward, and cut ones if so configured, train nothing."""
        trained = np.isfinite(answers.reward)
        if self.config.mask_truncated:
            trained &= np.asarray([reason == "stop" for reason in answers.rollout.finish_reason])
        return self._token_batch(answers.rollout, trained)

    def _token_batch(self, rollout: RolloutOutput, trained: np.ndarray) -> Batch:
        config = self.rl_cluster.cluster_config.rollout_for(Mode.TRAIN)
        lengths = {"max_prompt": config.max_prompt_length, "max_completion": config.max_tokens_to_generate}
        return token_batch(rollout.prompt_tokens, rollout.tokens, rollout.logprobs, trained, **lengths)

    def _logps(self, batch: Batch) -> Batch:
        """The log-probabilities that are computed before the updates."""
        cluster, tokens, found = self.rl_cluster, _tokens_of(batch), {}
        if self.needs_old_logps:
            found["old_logps"] = cluster.get_old_per_token_logps(**tokens, micro_batch_size=self._logps_rows)
        if self.needs_reference:
            found["ref_logps"] = cluster.get_ref_per_token_logps(**tokens, micro_batch_size=self._logps_rows)
        return found

    @property
    def _logps_rows(self) -> int | None:
        prompts = self.rl_cluster.cluster_config.training_config.compute_logps_micro_batch_size
        return None if prompts is None else prompts * self.num_generations

    def _sizes(self, n_prompts: int) -> tuple[int, int]:
        """Prompts of an update, and of a forward pass of training."""
        micro = self.rl_cluster.cluster_config.training_config.train_micro_batch_size
        mini = min(self.mini_batch_size or n_prompts, n_prompts)
        return mini, min(micro or mini, mini)

    def _count_updates(self, n_prompts: int) -> int:
        mini, _ = self._sizes(n_prompts)
        if n_prompts % mini:
            raise UserError(
                f"a batch of {n_prompts} prompts cannot be divided into updates of {mini} (mini_batch_size); take a multiple"
            )
        return self.config.num_iterations * (n_prompts // mini)

    def _updates_of(self, batch: Batch, n_prompts: int) -> list[list[Batch]]:
        """The micro-batches of every update: the whole batch in updates of `mini_batch_size` prompts, `num_iterations` times."""
        mini, micro = self._sizes(n_prompts)
        g = self.num_generations
        batch = fill_up(batch, n_prompts * g)
        updates, self._first_rows = [], np.zeros(0, int)
        for iteration in range(self.config.num_iterations):
            order = self._order(n_prompts, iteration)
            for begin in range(0, n_prompts, mini):
                prompts = order[begin : begin + mini]
                rows = (prompts[:, None] * g + np.arange(g)).ravel()
                self._first_rows = rows if not updates else self._first_rows
                part, size = rows_of(batch, rows), micro * g
                pieces = [rows_of(part, slice(i, i + size)) for i in range(0, len(rows), size)]
                updates.append([fill_up(piece, size) for piece in pieces])
        return updates

    def _order(self, n_prompts: int, iteration: int) -> np.ndarray:
        if self._shuffle_seed is None or self.updates_per_rollout == 1:
            return np.arange(n_prompts)
        key = [self._shuffle_seed, _SHUFFLE, self.trainer.train_steps, iteration]
        return np.random.default_rng(key).permutation(n_prompts)

    # ---- what is told -----------------------------------------------------------------------------------------------

    def _loss(self, model: nnx.Module, batch: Mapping[str, Any]) -> tuple[WeightedMean, dict[str, WeightedMean | PerRow]]:
        return self.loss(model, batch)

    def told(self, step: int, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """The first update of a rollout tells how far the sampler's log-probabilities are from the trainer's, and of the answers.

        Raises:
          TrainingFailed: they are further apart than `logp_gap_limit`.
        """
        if self._untold is None:
            return {}
        answers, batch, old = self._untold, self._untold_batch, self._untold_logps
        self._untold = None
        n = len(answers.prompts)
        # The first update is made with the weights that sampled; of its rows at least the log-probabilities are known.
        known = self._first_rows[self._first_rows < n] if old is None else np.arange(n)
        logps = rows["logps"][: len(known)] if old is None else old
        gap = np.abs(logps - batch["sampler_logps"][known])[batch["completion_mask"][known]]
        trainer_logps = logps if len(known) == n else None
        mean, largest = (float(gap.mean()), float(gap.max())) if gap.size else (0.0, 0.0)
        if self._on_trajectories is not None:
            first = step - 1
            self._on_trajectories(trajectories(answers, first, Mode.TRAIN, batch, trainer_logps))
        if not mean <= self.config.logp_gap_limit:
            raise TrainingFailed(
                f"at step {step} the sampler's log-probabilities of its tokens are {mean:.4g} nats from the trainer's on average "
                f"(at most {largest:.4g}), the limit is {self.config.logp_gap_limit}: what is sampled is not what is trained. "
                "Compute in float32, or raise logp_gap_limit if rounding alone explains it"
            )
        return {"logp_gap_mean": mean, "logp_gap_max": largest}

    def _buffer(self, answers: ScoredAnswers, batch: Batch | None, mode: Mode) -> None:
        """Metrics of rewards and answers, and those of the user's functions."""
        cluster = self.rl_cluster
        cluster.buffer_metrics(answer_metrics(answers), mode)
        if batch is not None:
            cluster.buffer_metrics(training_metrics(answers, batch, self.num_generations), mode)
        given = {"prompts": answers.prompts, "completions": answers.rollout.text, "rewards": answers.reward}
        given |= {"advantages": None if batch is None else batch["advantages"], **answers.columns}
        for function in self._metric_fns:
            cluster.buffer_metrics(function(**given), mode)

    def close(self) -> None:
        """Ends the processes of the rewards; they start again when they are needed."""
        self.rewards.close()

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, prompts: Iterable[Any]) -> dict[str, float]:
        """ScoredAnswers all prompts once, as the evaluation's rollout configuration says; `loss` is minus the mean reward."""
        cluster = self.rl_cluster
        if not cluster.is_synced:
            cluster.sync_weights()
        answers: ScoredAnswers | None = None
        for number, rows in enumerate(prompts):
            sampled = self._answers(rows, Mode.EVAL, number)
            answers = sampled if answers is None else answers + sampled
        if answers is None:
            return {}
        self._buffer(answers, None, Mode.EVAL)
        if self._on_trajectories is not None:
            self._on_trajectories(trajectories(answers, self.trainer.train_steps, Mode.EVAL))
        return {"loss": -mean_of(answers.reward[np.isfinite(answers.reward)])}


def token_means(values: Mapping[str, Any], mask: Any) -> dict[str, WeightedMean]:
    """Metrics that are means over the tokens of the mask, of arrays [rows, tokens]."""
    return {name: WeightedMean.of(value.astype("float32"), mask) for name, value in values.items()}


def _repeated(values: Sequence[Any], times: int) -> list[Any]:
    return [value for value in values for _ in range(times)]


def _tokens_of(batch: Batch) -> dict[str, np.ndarray]:
    names = {"prompt_tokens": "prompt_ids", "completion_tokens": "completion_ids"}
    masks = {name: batch[name] for name in ("prompt_mask", "completion_mask")}
    return {argument: batch[name] for argument, name in names.items()} | masks
