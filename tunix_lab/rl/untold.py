"""A rollout whose updates are being made: what is known of it, and how far its sampler is from the trainer."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tunix_lab.errors import TrainingFailed
from tunix_lab.rl.answers import ScoredAnswers, trajectories
from tunix_lab.rl.experience import Batch
from tunix_lab.rl.trajectories import Trajectories
from tunix_lab.sft.metrics_logger import Mode


@dataclasses.dataclass
class Untold:
    """A rollout that is not told of yet.

    Attributes:
      step: updates made before it.
      n_updates: that are made of it.
      first_rows: rows of the first of them, in its order.
      answers: that train.
      dropped: that were sampled too, and do not.
      batch: made of `answers`.
      logps: the trainer's log-probabilities of the answers' tokens before the updates, [known, tokens].
      known: the answers of which they are known.
    """

    step: int
    n_updates: int
    first_rows: np.ndarray
    answers: ScoredAnswers
    dropped: ScoredAnswers | None
    batch: Batch
    logps: np.ndarray | None = None
    known: np.ndarray | None = None

    def learn(self, rows: Mapping[str, np.ndarray], old_logps: np.ndarray | None) -> None:
        """Takes the log-probabilities from before the updates, or from the first of them.

        Args:
          rows: what the loss of the first update kept; it is made with the weights that sampled.
          old_logps: [answers, tokens], of all; None where they were not computed.
        """
        n = len(self.answers.prompts)
        if old_logps is not None:
            self.known, self.logps = np.arange(n), old_logps
            return
        is_answer = self.first_rows < n
        self.known, self.logps = self.first_rows[is_answer], rows["logps"][: len(is_answer)][is_answer]

    @property
    def gap(self) -> dict[str, float]:
        """How far the sampler's log-probabilities are from the trainer's, nats; {} where there is nothing to compare."""
        if self.known is None or not len(self.known):
            return {}
        mask = self.batch["completion_mask"][self.known]
        gap = np.abs(self.logps - self.batch["sampler_logps"][self.known])[mask]
        return {"logp_gap_mean": float(gap.mean()), "logp_gap_max": float(gap.max())} if gap.size else {}

    def record(self) -> Trajectories:
        """Its answers; the trainer's log-probabilities are with them if they are known of all."""
        whole = None
        if self.known is not None and len(self.known) == len(self.answers.prompts):
            whole = np.zeros(self.logps.shape, np.float32)
            whole[self.known] = self.logps
        return trajectories(self.answers, self.step, Mode.TRAIN, self.batch, whole, self.dropped)

    def require_small_gap(self, limit: float) -> None:
        """Raises TrainingFailed where the gap is larger than `limit` on average: what is sampled is not what is trained."""
        gap = self.gap
        if not gap or gap["logp_gap_mean"] <= limit:
            return
        where = f"the answers sampled after {self.step} updates"
        if not np.isfinite(gap["logp_gap_mean"]):
            raise TrainingFailed(f"the log-probabilities of {where} are no numbers; the weights, or the loss, are not finite")
        raise TrainingFailed(
            f"the sampler's log-probabilities of {where} are {gap['logp_gap_mean']:.4g} nats from the trainer's on average (at "
            f"most {gap['logp_gap_max']:.4g}), the limit is {limit}: what is sampled is not what is trained. Compute in "
            "float32, or raise logp_gap_limit if rounding alone explains it"
        )
