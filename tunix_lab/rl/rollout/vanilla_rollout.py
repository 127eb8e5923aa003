"""The rollout engine of this library: its sampler, in the process of the trainer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.generate.config import CacheConfig
from tunix_lab.generate.sampler import Sampler
from tunix_lab.models.sharding import state_shardings
from tunix_lab.rl.config import RolloutConfig
from tunix_lab.rl.rollout.base_rollout import BaseRollout, RolloutOutput
from tunix_lab.sft.train_state import mesh_of

_AXES = {"data_parallel_size": "fsdp", "tensor_parallel_size": "tp"}


class VanillaRollout(BaseRollout):
    """Samples with `generate.sampler.Sampler`: one prefill per prompt, answers that end make room for others."""

    def __init__(self, model: nnx.Module, tokenizer: TokenizerAdapter, config: RolloutConfig, mesh: Mesh | None):
        held = {str(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model))}
        _check(config, mesh or mesh_of(held), model.config.dtype)
        self._tokenizer = tokenizer
        shape = model.config
        size = config.kv_cache_size or config.max_prompt_length + config.max_tokens_to_generate
        cache = CacheConfig(size, shape.num_layers, shape.num_kv_heads, shape.head_dim)
        graph, state = nnx.split(model)
        self._shardings = None if mesh is None else dict(nnx.to_flat_state(state_shardings(state, mesh)))
        self._sampler = Sampler(nnx.merge(graph, self._placed(state)), tokenizer, cache)

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        config: RolloutConfig,
        *,
        num_generations: int,
        seed: int,
        sample_ids: Sequence[int],
    ) -> RolloutOutput:
        out = self._sampler.generate_tokens(
            prompts,
            config.max_tokens_to_generate,
            stop_ids=sorted(config.eos_tokens or self._tokenizer.stop_ids()),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=seed,
            sample_ids=[int(number) for number in sample_ids],
            num_generations=num_generations,
            max_rows=config.max_rows,
        )
        repeated = [np.asarray(prompt, np.int32) for prompt in prompts for _ in range(num_generations)]
        return RolloutOutput(out.text, out.tokens, out.logprobs, out.finish_reason, repeated)

    def update_params(self, params: nnx.State) -> None:
        changed = dict(nnx.to_flat_state(self._placed(params)))
        kept = nnx.to_flat_state(self._sampler.transformer_state)
        self._sampler.transformer_state = nnx.from_flat_state([(path, changed.get(path, value)) for path, value in kept])

    def params(self) -> nnx.State:
        return self._sampler.transformer_state

    def _placed(self, state: nnx.State) -> nnx.State:
        """The arrays on this engine's mesh."""
        if self._shardings is None:
            return jax.tree.map(lambda array: array, state)
        flat = nnx.to_flat_state(state)
        return nnx.from_flat_state(
            [(path, v.replace(jax.device_put(v.get_value(), self._shardings[path].get_value()))) for path, v in flat]
        )


def _check(config: RolloutConfig, mesh: Mesh | None, dtype: str) -> None:
    """Refuses what another engine was meant by, and what does not fit the model."""
    if config.rollout_mapping_config is not None or config.engine_options:
        raise ValueError(
            "RolloutConfig.rollout_mapping_config and engine_options are for engines of other projects; this one is 'vanilla'"
        )
    if config.data_type is not None and jnp.dtype(config.data_type) != jnp.dtype(dtype):
        raise ValueError(
            f"RolloutConfig.data_type is {jnp.dtype(config.data_type)}, but the model computes in {dtype}; leave it out"
        )
    sizes = config.data_parallel_size, config.tensor_parallel_size
    for (field, axis), wanted in zip(_AXES.items(), sizes, strict=True):
        there = 1 if mesh is None else mesh.shape.get(axis, 1)
        if wanted not in (None, -1, there):
            raise ValueError(f"RolloutConfig.{field} is {wanted}, but the rollout's mesh has {there} devices along {axis!r}")
