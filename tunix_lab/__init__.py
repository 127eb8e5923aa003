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
    from tunix_lab.ops.weighted import WeightedMean as WeightedMean
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
        "DPOTrainer": "tunix_lab.sft.dpo.dpo_trainer",
        "DPOTrainingConfig": "tunix_lab.sft.config",
        "DataHooks": "tunix_lab.sft.hooks",
        "DistillationTrainer": "tunix_lab.distillation.distillation_trainer",
        "DistillationTrainingConfig": "tunix_lab.distillation.config",
        "MetricsLogger": "tunix_lab.sft.metrics_logger",
        "MetricsLoggerOptions": "tunix_lab.sft.config",
        "PeftTrainer": "tunix_lab.sft.peft_trainer",
        "ProfilerOptions": "tunix_lab.sft.config",
        "Sampler": "tunix_lab.generate.sampler",
        "SamplerOutput": "tunix_lab.generate.sampler",
        "Tokenizer": "tunix_lab.data.tokenizer_adapter",
        "TokenizerAdapter": "tunix_lab.data.tokenizer_adapter",
        "TrainingConfig": "tunix_lab.sft.config",
        "TrainingHooks": "tunix_lab.sft.hooks",
        "TrainingInput": "tunix_lab.sft.batches",
        "WeightedMean": "tunix_lab.ops.weighted",
        "load_model": "tunix_lab.models.catalog",
    },
)
