"""Supervised and preference training."""

from tunix_lab._lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DPOTrainer": "tunix_lab.sft.dpo.dpo_trainer",
        "DPOTrainingConfig": "tunix_lab.sft.config",
        "MetricsLogger": "tunix_lab.sft.metrics_logger",
        "MetricsLoggerOptions": "tunix_lab.sft.config",
        "PeftTrainer": "tunix_lab.sft.peft_trainer",
        "TrainingConfig": "tunix_lab.sft.config",
        "TrainingHooks": "tunix_lab.sft.hooks",
    },
)
