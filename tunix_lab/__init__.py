"""tunix_lab: post-trains language models in JAX and makes every run an experiment.

`import tunix_lab as tunix` gives the public classes of the library; each is imported when it is first used.
"""

from typing import TYPE_CHECKING

from tunix_lab._lazy import lazy_names

if TYPE_CHECKING:
    from tunix_lab.data.tokenizer_adapter import Tokenizer as Tokenizer
    from tunix_lab.data.tokenizer_adapter import TokenizerAdapter as TokenizerAdapter
    from tunix_lab.distillation.config import DistillationTrainingConfig as DistillationTrainingConfig
    from tunix_lab.distillation.distillation_trainer import DistillationTrainer as DistillationTrainer
    from tunix_lab.generate.config import CacheConfig as CacheConfig
    from tunix_lab.generate.sampler import Sampler as Sampler
    from tunix_lab.generate.sampler import SamplerOutput as SamplerOutput
    from tunix_lab.models.catalog import load_model as load_model
    from tunix_lab.models.value_head import ValueModel as ValueModel
    from tunix_lab.models.value_head import value_model as value_model
    from tunix_lab.ops.weighted import WeightedMean as WeightedMean
    from tunix_lab.rl.config import ClusterConfig as ClusterConfig
    from tunix_lab.rl.config import GRPOConfig as GRPOConfig
    from tunix_lab.rl.config import PPOConfig as PPOConfig
    from tunix_lab.rl.config import RLTrainingConfig as RLTrainingConfig
    from tunix_lab.rl.config import Role as Role
    from tunix_lab.rl.config import RolloutConfig as RolloutConfig
    from tunix_lab.rl.grpo.dapo_learner import DAPOConfig as DAPOConfig
    from tunix_lab.rl.grpo.dapo_learner import DAPOLearner as DAPOLearner
    from tunix_lab.rl.grpo.drgrpo_learner import DrGRPOConfig as DrGRPOConfig
    from tunix_lab.rl.grpo.drgrpo_learner import DrGRPOLearner as DrGRPOLearner
    from tunix_lab.rl.grpo.grpo_learner import GRPOLearner as GRPOLearner
    from tunix_lab.rl.grpo.gspo_learner import GSPOConfig as GSPOConfig
    from tunix_lab.rl.grpo.gspo_learner import GSPOLearner as GSPOLearner
    from tunix_lab.rl.grpo.rloo_learner import RLOOConfig as RLOOConfig
    from tunix_lab.rl.grpo.rloo_learner import RLOOLearner as RLOOLearner
    from tunix_lab.rl.metrics_buffer import MetricsBuffer as MetricsBuffer
    from tunix_lab.rl.ppo.ppo_learner import PPOLearner as PPOLearner
    from tunix_lab.rl.rewards import RewardFn as RewardFn
    from tunix_lab.rl.rl_cluster import RLCluster as RLCluster
    from tunix_lab.sft.batches import TrainingInput as TrainingInput
    from tunix_lab.sft.checkpoint_manager import CheckpointManager as CheckpointManager
    from tunix_lab.sft.config import DPOTrainingConfig as DPOTrainingConfig
    from tunix_lab.sft.config import MetricsLoggerOptions as MetricsLoggerOptions
    from tunix_lab.sft.config import ProfilerOptions as ProfilerOptions
    from tunix_lab.sft.config import TrainingConfig as TrainingConfig
    from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer as DPOTrainer
    from tunix_lab.sft.hooks import DataHooks as DataHooks
    from tunix_lab.sft.hooks import TrainingHooks as TrainingHooks
    from tunix_lab.sft.metrics_logger import MetricsLogger as MetricsLogger
    from tunix_lab.sft.peft_trainer import PeftTrainer as PeftTrainer

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CacheConfig": "tunix_lab.generate.config",
        "CheckpointManager": "tunix_lab.sft.checkpoint_manager",
        "ClusterConfig": "tunix_lab.rl.config",
        "DAPOConfig": "tunix_lab.rl.grpo.dapo_learner",
        "DAPOLearner": "tunix_lab.rl.grpo.dapo_learner",
        "DPOTrainer": "tunix_lab.sft.dpo.dpo_trainer",
        "DPOTrainingConfig": "tunix_lab.sft.config",
        "DataHooks": "tunix_lab.sft.hooks",
        "DistillationTrainer": "tunix_lab.distillation.distillation_trainer",
        "DistillationTrainingConfig": "tunix_lab.distillation.config",
        "DrGRPOConfig": "tunix_lab.rl.grpo.drgrpo_learner",
        "DrGRPOLearner": "tunix_lab.rl.grpo.drgrpo_learner",
        "GRPOConfig": "tunix_lab.rl.config",
        "GRPOLearner": "tunix_lab.rl.grpo.grpo_learner",
        "GSPOConfig": "tunix_lab.rl.grpo.gspo_learner",
        "GSPOLearner": "tunix_lab.rl.grpo.gspo_learner",
        "MetricsBuffer": "tunix_lab.rl.metrics_buffer",
        "MetricsLogger": "tunix_lab.sft.metrics_logger",
        "MetricsLoggerOptions": "tunix_lab.sft.config",
        "PPOConfig": "tunix_lab.rl.config",
        "PPOLearner": "tunix_lab.rl.ppo.ppo_learner",
        "PeftTrainer": "tunix_lab.sft.peft_trainer",
        "ProfilerOptions": "tunix_lab.sft.config",
        "RLCluster": "tunix_lab.rl.rl_cluster",
        "RLOOConfig": "tunix_lab.rl.grpo.rloo_learner",
        "RLOOLearner": "tunix_lab.rl.grpo.rloo_learner",
        "RLTrainingConfig": "tunix_lab.rl.config",
        "RewardFn": "tunix_lab.rl.rewards",
        "Role": "tunix_lab.rl.config",
        "RolloutConfig": "tunix_lab.rl.config",
        "Sampler": "tunix_lab.generate.sampler",
        "SamplerOutput": "tunix_lab.generate.sampler",
        "Tokenizer": "tunix_lab.data.tokenizer_adapter",
        "TokenizerAdapter": "tunix_lab.data.tokenizer_adapter",
        "TrainingConfig": "tunix_lab.sft.config",
        "TrainingHooks": "tunix_lab.sft.hooks",
        "TrainingInput": "tunix_lab.sft.batches",
        "ValueModel": "tunix_lab.models.value_head",
        "WeightedMean": "tunix_lab.ops.weighted",
        "load_model": "tunix_lab.models.catalog",
        "value_model": "tunix_lab.models.value_head",
    },
)
