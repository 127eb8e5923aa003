"""What can be chosen about reinforcement learning: one declaration for the library's classes and for the spec."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from tunix_lab._bounds import check_bounds
from tunix_lab.sft.config import TrainingConfig

if TYPE_CHECKING:
    import jax
    import optax

KlEstimator = Literal["kl", "mse_kl", "low_var_kl"]
"""k1 = log π − log π_ref, k2 = ½ k1², k3 = exp(−k1) + k1 − 1, http://joschu.net/blog/kl-approx.html; see `ops.kl`."""

AdvantageEstimator = Literal["grpo", "drgrpo", "rloo"]
"""How rewards of a group become advantages, see `ops.advantages`."""

LossAggregation = Literal[
    "token-mean",
    "sequence-mean-token-mean",
    "sequence-mean-token-scale",
    "seq-mean-token-sum",
    "sequence-mean-token-sum-norm",
]
"""How losses of tokens become one number, see `ops.policy_gradient.aggregate`."""


class Role(enum.StrEnum):
    """What a model does in reinforcement learning."""

    ACTOR = "actor"
    CRITIC = "critic"
    REFERENCE = "reference"
    REWARD = "reward"
    ROLLOUT = "rollout"


@dataclasses.dataclass(kw_only=True)
class PolicyKnobs:
    """What every policy-gradient algorithm shares.

    Attributes:
      num_iterations: times that an update is made from every answer (μ); answers are sampled anew after them.
      epsilon: a ratio π/π_old is clipped to 1 ± epsilon.
      epsilon_high: upper clip, as 1 + epsilon_high; None is epsilon.
      epsilon_c: dual clip, https://arxiv.org/abs/1912.09729: the loss of a token of negative advantage is at most epsilon_c·|A|.
        Greater than 1; None has no such bound.
      mask_truncated: answers that the budget cut off train nothing.
      logp_gap_limit: training stops where the sampler's and the trainer's log-probabilities of sampled tokens differ by more than
        this on average, nats: the sampler then samples from another policy than the one that is trained.
    """

    num_iterations: Annotated[int, Gt(0)] = 1
    epsilon: Annotated[float, Gt(0)] = 0.2
    epsilon_high: Annotated[float, Gt(0)] | None = None
    epsilon_c: Annotated[float, Gt(1)] | None = None
    mask_truncated: bool = False
    logp_gap_limit: Annotated[float, Gt(0)] = 0.1

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(kw_only=True)
class GrpoKnobs(PolicyKnobs):
    """Group relative policy optimization, https://arxiv.org/abs/2402.03300.

    Attributes:
      num_generations: answers to each prompt (G).
      beta: weight of the KL divergence from the reference in the loss; 0 needs no reference.
      kl_loss_mode: its estimator. "low_var_kl" has the right value and a low variance; "kl" in a loss has a gradient of zero on
        average, so it only adds noise.
      kl_clamp_value: bound of each token's estimate, nats; None has none.
      advantage_estimator: "grpo", (r − mean) / std over the group; "drgrpo", r − mean; "rloo", r − mean of the others.
      policy_loss_fn: "clip" ("grpo" is the same), the clipped surrogate; "unclipped", ratio · advantage as it is.
      ratio_level: the ratio is that of each "token", or of the whole "sequence" (GSPO-token, https://arxiv.org/abs/2507.18071).
      loss_agg_mode: "sequence-mean-token-mean" averages each answer, then the answers; "token-mean" (DAPO) averages all tokens;
        "sequence-mean-token-scale" (Dr. GRPO) divides each answer's sum by the budget.
      use_rollout_logps: take the sampler's log-probabilities for π_old instead of computing them again.
      sampler_is: "token" weighs each token by min(π_old/π_sampler, sampler_is_threshold), https://fengyao.notion.site/off-policy-rl.
      sampler_is_threshold: see there.
    """

    num_generations: Annotated[int, Gt(1)] = 2
    beta: Annotated[float, Ge(0)] = 0.04
    kl_loss_mode: KlEstimator = "low_var_kl"
    kl_clamp_value: Annotated[float, Gt(0)] | None = None
    advantage_estimator: AdvantageEstimator = "grpo"
    policy_loss_fn: Literal["clip", "grpo", "unclipped"] = "clip"
    ratio_level: Literal["token", "sequence"] = "token"
    loss_agg_mode: LossAggregation = "sequence-mean-token-mean"
    use_rollout_logps: bool = False
    sampler_is: Literal["token"] | None = None
    sampler_is_threshold: Annotated[float, Ge(1)] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_rollout_logps and self.sampler_is is not None:
            raise ValueError(
                "sampler_is weighs tokens by what use_rollout_logps takes to be equal, the probabilities of trainer and sampler: "
                "choose one of them"
            )


@dataclasses.dataclass(kw_only=True)
class GspoKnobs(GrpoKnobs):
    """Group sequence policy optimization in its token form, https://arxiv.org/abs/2507.18071, and the clip of its section 5.1."""

    epsilon: Annotated[float, Gt(0)] = 3e-4
    epsilon_high: Annotated[float, Gt(0)] | None = 4e-4
    ratio_level: Literal["token", "sequence"] = "sequence"


@dataclasses.dataclass(kw_only=True)
class DapoKnobs(GrpoKnobs):
    """Decoupled clip and dynamic sampling policy optimization, https://arxiv.org/abs/2503.14476.

    Attributes:
      dynamic_sampling: groups whose rewards are all alike are replaced by those of further prompts, until the batch is full.
      max_sampling_rounds: rounds of sampling for one batch at most; a batch that is not full then trains with what it has.
      overlong_buffer_length: answers longer than the budget less this lose reward, in proportion; None takes nothing away.
      overlong_buffer_penalty: what an answer that fills the whole budget loses.
    """

    beta: Annotated[float, Ge(0)] = 0.0
    epsilon_high: Annotated[float, Gt(0)] | None = 0.28
    loss_agg_mode: LossAggregation = "token-mean"
    dynamic_sampling: bool = True
    max_sampling_rounds: Annotated[int, Gt(0)] = 4
    overlong_buffer_length: Annotated[int, Gt(0)] | None = None
    overlong_buffer_penalty: Annotated[float, Ge(0)] = 1.0


@dataclasses.dataclass(kw_only=True)
class DrGrpoKnobs(GrpoKnobs):
    """GRPO done right, https://arxiv.org/abs/2503.20783: neither the length of an answer nor the spread of a group scales it."""

    beta: Annotated[float, Ge(0)] = 0.0
    advantage_estimator: AdvantageEstimator = "drgrpo"
    loss_agg_mode: LossAggregation = "sequence-mean-token-scale"


@dataclasses.dataclass(kw_only=True)
class RlooKnobs(GrpoKnobs):
    """REINFORCE with a leave-one-out baseline, https://arxiv.org/abs/2402.14740: an answer is one action."""

    advantage_estimator: AdvantageEstimator = "rloo"
    policy_loss_fn: Literal["clip", "grpo", "unclipped"] = "unclipped"
    loss_agg_mode: LossAggregation = "seq-mean-token-sum"


@dataclasses.dataclass(kw_only=True)
class PpoKnobs(PolicyKnobs):
    """Proximal policy optimization with a critic, https://arxiv.org/abs/1707.06347.

    Attributes:
      num_generations: answers to each prompt.
      gamma: discount of later rewards.
      gae_lambda: λ of generalized advantage estimation, https://arxiv.org/abs/1506.02438.
      beta: weight of the KL divergence from the reference, taken off the reward of each token; 0 needs no reference.
      kl_method: its estimator.
      epsilon_low: lower clip, as 1 − epsilon_low; None is epsilon.
      entropy_coef: weight of the entropy bonus; None has none.
      clip_range_value: a value moves at most this far from the one before the updates, in the loss.
      whiten_advantages: advantages get mean 0 and deviation 1 over the tokens of a batch.
      bootstrap_truncated: behind an answer that the budget cut off stands the critic's value, as if it went on. Off, since its
        reward was given for the whole of it: with both and gamma 1, values of answers that are always cut grow without end.
    """

    num_generations: Annotated[int, Gt(0)] = 1
    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.95
    beta: Annotated[float, Ge(0)] = 0.04
    kl_method: KlEstimator = "low_var_kl"
    epsilon_low: Annotated[float, Gt(0)] | None = None
    entropy_coef: Annotated[float, Ge(0)] | None = None
    clip_range_value: Annotated[float, Gt(0)] = 0.2
    whiten_advantages: bool = True
    bootstrap_truncated: bool = False


_SEQUENCE = ("gspo", "gspo-token")
_AGGREGATIONS = {"mean": "token-mean", "sum": "seq-mean-token-sum"}


@dataclasses.dataclass(kw_only=True)
class GRPOConfig(GrpoKnobs):
    """`GrpoKnobs` under the names of the original library.

    Attributes:
      algo_variant: "grpo", or "gspo-token" ("gspo" is the same), which makes `ratio_level` "sequence".
      loss_algo: the same choice under its older name; None leaves it to `algo_variant`.
      loss_agg_mode: also "mean", which is "token-mean", and "sum", which is "seq-mean-token-sum".
    """

    algo_variant: Literal["grpo", "gspo", "gspo-token"] = "grpo"
    loss_algo: Literal["grpo", "gspo", "gspo-token"] | None = None
    loss_agg_mode: LossAggregation | Literal["mean", "sum"] = "sequence-mean-token-mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algo_variant in _SEQUENCE or self.loss_algo in _SEQUENCE:
            self.ratio_level = "sequence"
        self.loss_agg_mode = _AGGREGATIONS.get(self.loss_agg_mode, self.loss_agg_mode)


@dataclasses.dataclass(kw_only=True)
class PPOConfig(PpoKnobs):
    """`PpoKnobs` under the names of the original library.

    Attributes:
      algo_variant: "ppo".
      mini_batch_size: prompts of one update, in place of `RLTrainingConfig.mini_batch_size`; None leaves it to that.
    """

    algo_variant: Literal["ppo"] = "ppo"
    mini_batch_size: Annotated[int, Gt(0)] | None = None


@dataclasses.dataclass(kw_only=True)
class RolloutConfig:
    """How answers are sampled.

    Attributes:
      max_tokens_to_generate: tokens of an answer at most, its terminator included.
      max_prompt_length: tokens of a prompt at most; a longer one is an error.
      kv_cache_size: positions that a prompt and its answer may use together; None is what both lengths add up to.
      temperature: 0 or None takes the most probable token.
      top_k: only the k most probable tokens; None takes all.
      top_p: only the smallest set of tokens of this total probability; None takes all.
      eos_tokens: ids that end an answer; None or [] takes the tokenizer's.
      seed: root of the random numbers; every answer's are those of (seed, step, prompt, number of the answer). None is 0.
      data_type: dtype of the key-value cache; None is the model's.
      max_rows: answers that are decoded side by side; the others wait and take the places of those that end. None is all.
      data_parallel_size: devices over which rows are split, to check the rollout's mesh against; None or -1 takes any.
      tensor_parallel_size: devices over which heads are split, likewise.
      rollout_mapping_config: how an engine of another project names the weights; the vanilla engine has no use for it.
      engine_options: options of an engine of another project.
    """

    max_tokens_to_generate: Annotated[int, Gt(0)] = 64
    max_prompt_length: Annotated[int, Gt(0)] = 64
    kv_cache_size: Annotated[int, Gt(0)] | None = None
    temperature: Annotated[float, Ge(0)] | None = 0.9
    top_k: Annotated[int, Gt(0)] | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    eos_tokens: Sequence[int] | None = None
    seed: "int | jax.Array | None" = None
    data_type: Any = None
    max_rows: Annotated[int, Gt(0)] | None = None
    data_parallel_size: int | None = None
    tensor_parallel_size: int | None = None
    rollout_mapping_config: Mapping[str, Any] | None = None
    engine_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bounds(self)
        if isinstance(self.seed, int) and self.seed < 0:
            raise ValueError(f"RolloutConfig.seed must be at least 0, got {self.seed}")
        needed = self.max_prompt_length + self.max_tokens_to_generate
        if self.kv_cache_size is not None and self.kv_cache_size < needed:
            raise ValueError(
                f"RolloutConfig.kv_cache_size {self.kv_cache_size} is less than max_prompt_length + max_tokens_to_generate "
                f"({needed}); leave it out to have it computed"
            )


@dataclasses.dataclass(kw_only=True, slots=True)
class RLTrainingConfig(TrainingConfig):
    """`TrainingConfig` for an actor, and a critic if there is one. Every size is in prompts; each has several answers.

    Attributes:
      actor_optimizer: of the actor.
      critic_optimizer: of the critic; None is like the actor's.
      mini_batch_size: prompts of one update; None is all that one batch of the dataset has.
      train_micro_batch_size: prompts of one forward pass of training; divides mini_batch_size. None is mini_batch_size.
      rollout_micro_batch_size: prompts that are sampled from at once; None is all.
      compute_logps_micro_batch_size: prompts of one forward pass that only computes log-probabilities or values; None is all.
    """

    actor_optimizer: "optax.GradientTransformation"
    critic_optimizer: "optax.GradientTransformation | None" = None
    mini_batch_size: Annotated[int, Gt(0)] | None = None
    train_micro_batch_size: Annotated[int, Gt(0)] | None = None
    rollout_micro_batch_size: Annotated[int, Gt(0)] | None = None
    compute_logps_micro_batch_size: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.gradient_accumulation_steps is not None:
            raise ValueError(
                "RLTrainingConfig.gradient_accumulation_steps follows from mini_batch_size / train_micro_batch_size; leave it out"
            )
        mini, micro = self.mini_batch_size, self.train_micro_batch_size
        if mini is not None and micro is not None and mini % micro:
            raise ValueError(f"RLTrainingConfig.train_micro_batch_size must divide mini_batch_size ({mini}), got {micro}")


@dataclasses.dataclass(kw_only=True)
class ClusterConfig:
    """Where the models of reinforcement learning live, and how they are trained and sampled.

    Attributes:
      role_to_mesh: the mesh of each role. Roles of one mesh share what they can; a rollout on a mesh of its own gets the weights
        sent. A role that is not named lives where the actor does.
      role_to_logical_axis_rule: for roles that are to be split otherwise than `models.sharding` says: (logical axis, mesh axis).
      rollout_engine: "vanilla", this library's sampler; a class of `rollout.base_rollout.BaseRollout`; or the name of an engine
        of another project.
      offload_to_cpu: keep in the host's memory what the running phase does not need.
      training_config: how to train.
      rollout_config: how to sample; one for all, or one for each of "train" and "eval".
    """

    role_to_mesh: "Mapping[Role, jax.sharding.Mesh]"
    role_to_logical_axis_rule: Mapping[Role, Sequence[tuple[str, str | None]]] | None = None
    rollout_engine: str | type[Any] = "vanilla"
    offload_to_cpu: bool = False
    training_config: RLTrainingConfig
    rollout_config: RolloutConfig | Mapping[str, RolloutConfig] = dataclasses.field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        given = self.rollout_config
        missing = [] if isinstance(given, RolloutConfig) else [mode for mode in ("train", "eval") if mode not in given]
        if missing:
            raise ValueError(f"ClusterConfig.rollout_config has no entry {missing[0]!r}; give one RolloutConfig for both, or two")

    def rollout_for(self, mode: str) -> RolloutConfig:
        """How to sample in "train" or "eval"."""
        return self.rollout_config if isinstance(self.rollout_config, RolloutConfig) else self.rollout_config[mode]
