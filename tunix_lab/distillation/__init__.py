"""Distillation: a small student learns from a large, frozen teacher."""

from tunix_lab._lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AttentionProjectionStrategy": "tunix_lab.distillation.strategies",
        "AttentionTransferStrategy": "tunix_lab.distillation.strategies",
        "DistillationTrainer": "tunix_lab.distillation.distillation_trainer",
        "DistillationTrainingConfig": "tunix_lab.distillation.config",
        "FeaturePoolingStrategy": "tunix_lab.distillation.strategies",
        "FeatureProjectionStrategy": "tunix_lab.distillation.strategies",
        "LogitStrategy": "tunix_lab.distillation.strategies",
        "TrainingConfig": "tunix_lab.sft.config",
    },
)
