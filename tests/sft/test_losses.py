"""The supervised loss of a decoder whose logits are capped, against its own logits."""

import jax
import numpy as np
import pytest
from flax import nnx

from tunix_lab.sft.losses import next_token_loss


@pytest.mark.parametrize("cap", [None, 2.0])
def test_loss_of_capped_logits(tiny_decoder, run_model, sft_rows, cap):
    """−log softmax of what the model returns, over the targets; the fused loss never sees those logits."""
    model, rows = tiny_decoder(num_layers=1, final_logit_softcap=cap), sft_rows([10, 7])
    logits = np.asarray(run_model(model, rows["input_tokens"], rows["valid"]), np.float64)[:, :-1]
    logps = np.take_along_axis(logits, rows["input_tokens"][:, 1:, None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    graph, state = nnx.split(model)
    loss = jax.jit(lambda state, rows: next_token_loss(nnx.merge(graph, state), **rows))(state, rows)
    mask = rows["input_mask"][:, 1:]
    assert float(loss.mean) == pytest.approx(-logps[mask].mean(), rel=1e-5)
