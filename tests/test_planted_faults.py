"""The tests can fail: each fault that is planted in the library turns at least one of the named tests red."""

import os
import subprocess
import sys
from pathlib import Path

import planted_fault
import pytest

TESTS = Path(__file__).parent

# fault -> tests that must notice it
NOTICED_BY = {
    "mean_of_micro_batch_means": "sft/test_train_step.py::test_tail_window",
    "mask_off_by_one": "sft/test_packed_training.py::test_packing_equals_padding sft/test_train_step.py::test_ga_invariance",
    "padding_counts_in_evaluation": "sft/test_train_step.py::test_eval_batch_invariance",
    "empty_batch_moves_parameters": "sft/test_train_step.py::test_all_masked_noop",
    "leaked_segment": "sft/test_packed_training.py::test_packing_equals_padding",
    "positions_run_on": "sft/test_packed_training.py::test_training_on_packed_rows",
    "bos_in_the_middle": "data/test_pairs.py",
    "dropped_terminator": "data/test_chat.py::test_terminator_trained",
    "trained_reference": "sft/test_dpo_trainer.py::test_dpo_loss_and_metrics_by_hand",
    "prompt_in_the_log_probability": "sft/test_dpo_trainer.py::test_dpo_logp_scope",
    "swapped_pair": "sft/test_dpo_trainer.py::test_dpo_gradient_sign",
    "summed_orpo": "sft/test_dpo_trainer.py::test_orpo_fixture",
    "everything_trains": "sft/test_adapter_training.py::test_only_adapters_move",
    "no_master_weights": "sft/test_memory_options.py::test_small_update_survives",
    "optimizer_reset_on_resume": "sft/test_resume.py",
    "data_replayed_on_resume": "sft/test_resume.py",
    "divided_twice": "sft/test_train_step.py::test_ga_invariance",
    "reversed_distillation": "ops/test_distill.py",
    "temperature_not_squared": "ops/test_distill.py",
    "soft_cap_left_out_of_the_loss": "sft/test_losses.py",
    "rollouts_of_one_seed": "rl/test_grpo_learner.py::test_rollouts_differ_by_step_and_within_a_group",
    "critic_optimizer_not_saved": "rl/test_ppo_learner.py::test_resume_bitwise",
    "ratio_to_the_policy_itself": "rl/test_grpo_learner.py::test_updates_of_one_rollout",
    "groups_mixed_up": "rl/test_grpo_learner.py::test_zero_std_group",
    "end_of_answers_not_trained": "rl/test_grpo_learner.py::test_terminator_trained",
    "sampler_one_update_behind": "rl/test_grpo_learner.py::test_the_sampler_agrees_with_the_trainer",
    "reference_that_follows": "rl/test_grpo_learner.py::test_kl_pulls_to_the_reference",
    "prompts_read_again_on_resume": "rl/test_grpo_learner.py::test_resume_bitwise",
    "saved_amid_a_rollout": "rl/test_grpo_learner.py::test_checkpoints_stand_between_rollouts",
    "failed_rewards_are_zero": "rl/test_reward_faults.py::test_everything_fails_with_mask",
    "reward_at_every_token": "rl/test_ppo_learner.py::test_the_first_batch",
    "padding_is_sampled": "rl/test_grpo_learner.py::test_grpo_step0",
}


def test_every_fault_has_its_tests():
    assert NOTICED_BY.keys() == planted_fault.FAULTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("fault", NOTICED_BY)
def test_a_planted_fault_is_noticed(fault):
    tests = [str(TESTS / name) for name in NOTICED_BY[fault].split()]
    environment = os.environ | {"TUNIX_LAB_FAULT": fault, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "planted_fault", "-p", "no:xdist", "-m", "not slow", *tests]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    # exit code 1: tests were run, and some failed
    assert done.returncode == 1, f"nothing noticed {fault}, or the tests could not be run\n{done.stdout[-2000:]}"
