"""Roles on meshes: together, apart, split by other rules, and out of the way in the host's memory."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.models.adapters import adapter_off, add_lora
from tunix_lab.rl.config import PPOConfig, Role
from tunix_lab.rl.ppo.ppo_learner import PPOLearner

ROLLOUT = {"max_tokens_to_generate": 6}


def mesh_of(devices, fsdp: int, tp: int) -> Mesh:
    return Mesh(np.array(devices).reshape(fsdp, tp), ("fsdp", "tp"))


def same(first, second, **tolerance):
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


@pytest.fixture(scope="module")
def alone(make_grpo, prompts, params_of, policy):
    """What one device makes."""
    learner = make_grpo({"beta": 0.1}, reference=policy(5), rollout=ROLLOUT, max_steps=2)
    learner.train(prompts())
    return params_of(learner)


def devices_of(tree) -> set[int]:
    return {device.id for array in jax.tree.leaves(tree) for device in array.sharding.device_set}


def test_together_on_four_devices(make_grpo, prompts, params_of, policy, alone):
    mesh = {Role.ACTOR: mesh_of(jax.devices()[:4], 2, 2)}
    learner = make_grpo({"beta": 0.1}, reference=policy(5), rollout=ROLLOUT, mesh=mesh, max_steps=2)
    learner.train(prompts())
    same(params_of(learner), alone, rtol=1e-3, atol=1e-5)
    assert devices_of(learner.trainer.state.params) == {0, 1, 2, 3}


def test_apart(make_grpo, prompts, params_of, policy, alone):
    """Actor, reference and rollout on devices of their own: the same updates, and weights that arrive as they were sent."""
    meshes = {
        Role.ACTOR: mesh_of(jax.devices()[:4], 4, 1),
        Role.REFERENCE: mesh_of(jax.devices()[4:6], 2, 1),
        Role.ROLLOUT: mesh_of(jax.devices()[6:], 1, 2),
    }
    learner = make_grpo({"beta": 0.1}, reference=policy(5), rollout=ROLLOUT, mesh=meshes, max_steps=2)
    learner.train(prompts())
    same(params_of(learner), alone, rtol=1e-3, atol=1e-5)
    cluster = learner.rl_cluster
    assert devices_of(cluster.rollout.params()) == {6, 7}
    assert devices_of(cluster.inference_worker.state(Role.REFERENCE)) == {4, 5}
    cluster.sync_weights()
    sent = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(cluster.rollout.params())}
    held = learner.trainer.state.params
    assert sent.keys() == held.keys()
    for name in sent:
        np.testing.assert_array_equal(sent[name], held[name], err_msg=name)
    assert max(learner.trainer.metrics_logger.get_metric_history("logp_gap_max")) < 1e-4


def test_weight_sync_checksum(make_grpo, monkeypatch):
    """Weights that change on their way are refused."""
    meshes = {Role.ACTOR: mesh_of(jax.devices()[:1], 1, 1), Role.ROLLOUT: mesh_of(jax.devices()[1:2], 1, 1)}
    cluster = make_grpo(rollout=ROLLOUT, mesh=meshes).rl_cluster
    update = cluster.rollout.update_params
    monkeypatch.setattr(cluster.rollout, "update_params", lambda params: update(jax.tree.map(lambda x: x + 1, params)))
    with pytest.raises(RuntimeError, match="the rollout's weights are not those that the actor sent"):
        cluster.sync_weights()


def test_adapters_alone_are_sent(make_grpo, prompts, policy):
    adapted = add_lora(policy(), rank=2, alpha=2.0, targets=".*q_einsum", seed=0)
    meshes = {Role.ACTOR: mesh_of(jax.devices()[:2], 2, 1), Role.ROLLOUT: mesh_of(jax.devices()[2:4], 2, 1)}
    learner = make_grpo({"beta": 0.1}, actor=adapted, reference=adapter_off(adapted), rollout=ROLLOUT, mesh=meshes)
    sent = []
    update = learner.rl_cluster.rollout.update_params
    learner.rl_cluster.rollout.update_params = lambda params: (sent.append(len(jax.tree.leaves(params))), update(params))
    learner.train(prompts())
    assert sent == [2, 2] and learner.trainer.train_steps == 3  # after the first and the second update


def test_a_critic_apart(make_cluster, even_reward, prompts):
    """Beside an actor that lies where it was made: the same updates, on batches that divide over the critic's devices."""

    def trained(mesh):
        cluster = make_cluster(critic=True, rollout=ROLLOUT, mesh=mesh, max_steps=2)
        learner = PPOLearner(cluster, PPOConfig(num_generations=2, beta=0.0), [even_reward])
        learner.train(prompts(4))
        return cluster, jax.device_get(learner.trainer._whole_state().params)

    _, expected = trained({})
    cluster, found = trained({Role.CRITIC: mesh_of(jax.devices()[2:6], 4, 1)})
    same(found, expected, rtol=1e-3, atol=1e-5)
    assert devices_of(cluster.critic_trainer.state.params) == {2, 3, 4, 5}


def test_rules_of_a_role(make_grpo):
    """`role_to_logical_axis_rule` splits one role otherwise than the table says."""
    mesh = {Role.ACTOR: mesh_of(jax.devices()[:2], 1, 2)}
    plain = make_grpo(rollout=ROLLOUT, mesh=mesh).trainer.state.params["layers.0.mlp.gate_proj.w"]
    rules = {"role_to_logical_axis_rule": {Role.ACTOR: [("embed", "tp")]}}
    ruled = make_grpo(rollout=ROLLOUT, mesh=mesh, cluster=rules).trainer.state.params["layers.0.mlp.gate_proj.w"]
    assert tuple(plain.sharding.spec) == ("fsdp", "tp")
    assert tuple(ruled.sharding.spec) == ("tp", None)


@pytest.mark.slow
def test_offloading_changes_nothing(make_cluster, even_reward, prompts, policy):
    """Optimizer states and the reference wait in the host's memory while nobody needs them."""

    def trained(offload):
        cluster = make_cluster(
            critic=True,
            reference=policy(5),
            optimizer=optax.adam(0.01),
            rollout=ROLLOUT,
            cluster={"offload_to_cpu": offload},
            max_steps=2,
        )
        learner = PPOLearner(cluster, PPOConfig(num_generations=2, num_iterations=2, beta=0.1), [even_reward])
        learner.train(prompts(2))
        return learner

    learner, plain = trained(True), trained(False)
    whole = lambda learner: jax.device_get(learner.trainer._whole_state().params)  # noqa: E731
    same(whole(learner), whole(plain), rtol=0)
    cluster = learner.rl_cluster
    kinds = {a.sharding.memory_kind for a in jax.tree.leaves(cluster.inference_worker.state(Role.REFERENCE))}
    assert kinds == {"pinned_host"}
    cluster.sync_weights()
    cluster.generate(["a b"])
    for trainer in (cluster.actor_trainer, cluster.critic_trainer):
        assert {a.sharding.memory_kind for a in jax.tree.leaves(trainer.state.opt_state)} == {"pinned_host"}
