"""Preference training: ln 2 at the start, log-probabilities of answers alone, a frozen reference, ORPO by its formula."""

import math

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tunix_lab.data.pipeline import eval_batches
from tunix_lab.models.adapters import add_lora
from tunix_lab.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, answer_logps
from tunix_lab.sft.dpo.reference import with_reference_logps
from tunix_lab.sft.train_state import digest, flat_params

METRICS = ("loss", "margin", "accuracy", "chosen_logp", "rejected_logp")
REWARDS = ("chosen_reward", "rejected_reward")


@pytest.fixture(scope="module")
def pairs(pair_rows):
    return pair_rows(4)


@pytest.fixture(scope="module")
def make_dpo():
    def make(model, reference, optimizer=None, tokenizer=None, **config):
        config = DPOTrainingConfig(**{"pbar_description": None, "eval_every_n_steps": 1000, **config})
        return DPOTrainer(model, reference, optimizer or optax.sgd(0.05), config, tokenizer)

    return make


@pytest.fixture(scope="module")
def policy(tiny_decoder):
    return lambda seed=0: tiny_decoder(seed, num_layers=1)


def with_adapters(base):
    return add_lora(base, rank=2, alpha=4.0, targets=".*q_einsum|.*down_proj", seed=0)


def swapped(batch):
    names = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"}
    return {f"{names[key.split('_')[0]]}_{key.split('_')[1]}": value for key, value in batch.items()}


def by_rows(model, run_model, batch):
    """Summed log-probability of each answer given its prompt, one unpadded text at a time, from all logits: 2 × [pair]."""
    sums = []
    for answer in ("chosen", "rejected"):
        sums.append([])
        for i in range(len(batch["prompt_ids"])):
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i]]
            text = np.concatenate([prompt, batch[f"{answer}_ids"][i][batch[f"{answer}_mask"][i]]])
            padded = np.zeros((1, 9), np.int32)
            padded[0, : len(text)] = text
            logits = np.asarray(run_model(model, padded, np.arange(9)[None] < len(text)), np.float64)[0]
            logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            sums[-1].append(sum(logps[t - 1, text[t]] for t in range(len(prompt), len(text))))
    return np.array(sums)


def values(trainer, mode="train", names=METRICS):
    return {name: trainer.metrics_logger.get_metric_history(name, mode) for name in names}


def test_answer_logps(policy, run_model, pairs):
    model = policy()
    chosen, rejected, n_chosen, n_rejected = jax.jit(lambda batch: answer_logps(model, batch))(pairs)
    np.testing.assert_allclose([chosen, rejected], by_rows(model, run_model, pairs), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal([n_chosen, n_rejected], [pairs[f"{answer}_mask"].sum(1) for answer in ("chosen", "rejected")])


def test_dpo_logp_scope(policy, pairs):
    """What stands in padding, before the prompt or after an answer, changes nothing; more padding neither."""
    model = policy()
    compute = jax.jit(lambda batch: answer_logps(model, batch)[:2])
    expected = np.array(compute(pairs))
    noisy = {k: np.where(pairs[k.replace("ids", "mask")], v, 13) if k.endswith("ids") else v for k, v in pairs.items()}
    np.testing.assert_array_equal(compute(noisy), expected)
    wide = {k: np.pad(v, ((0, 0), (3, 0) if k.startswith("prompt") else (0, 4))) for k, v in pairs.items()}
    np.testing.assert_allclose(compute(wide), expected, rtol=1e-4, atol=1e-4)
    # the answers' log-probabilities do depend on the prompt, and not on one another
    other = pairs | {"prompt_ids": np.where(pairs["prompt_mask"], 40, 0)}
    assert np.abs(np.array(compute(other)) - expected).min() > 1e-3
    np.testing.assert_allclose(compute(pairs | {"rejected_ids": pairs["rejected_ids"] * 0})[0], expected[0], rtol=1e-5)


def test_dpo_step0_ln2(policy, make_dpo, pairs):
    """Policy = reference: loss ln 2, margin 0, and a tie is half right; in evaluation and in the first update."""
    trainer = make_dpo(policy(), policy(), max_steps=1)
    trainer.train([pairs], [pairs])
    for mode in ("eval", "train"):
        found = values(trainer, mode)
        assert found["loss"] == [pytest.approx(math.log(2), abs=1e-6)]
        assert found["margin"] == [pytest.approx(0, abs=1e-6)]
    assert found["chosen_logp"][0] < -1


@pytest.mark.parametrize("reference", ["itself", "adapters off"])
def test_dpo_step0_ln2_of_one_model(policy, make_dpo, pairs, reference):
    """The policy's own object as reference, and the policy without its adapters: training leaves the reference alone."""
    model = policy() if reference == "itself" else with_adapters(policy())
    trainer = make_dpo(model, model if reference == "itself" else None, max_steps=3)
    trainer.train([pairs] * 3)
    losses = values(trainer)["loss"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[2] < losses[1] < losses[0]


def test_dpo_loss_and_metrics_by_hand(policy, make_dpo, run_model, pairs):
    model, reference = policy(0), policy(1)
    chosen, rejected = by_rows(model, run_model, pairs)
    ref_chosen, ref_rejected = by_rows(reference, run_model, pairs)
    margin = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    losses = 0.9 * np.log1p(np.exp(-margin)) + 0.1 * np.log1p(np.exp(margin))
    trainer = make_dpo(model, reference, beta=0.3, label_smoothing=0.1, max_steps=1)
    trainer.train([pairs])
    expected = losses.mean(), margin.mean(), (margin > 0).mean(), chosen.mean(), rejected.mean()
    np.testing.assert_allclose([v[0] for v in values(trainer).values()], expected, rtol=1e-4, atol=1e-4)
    rewards = 0.3 * (chosen - ref_chosen).mean(), 0.3 * (rejected - ref_rejected).mean()
    np.testing.assert_allclose([v[0] for v in values(trainer, names=REWARDS).values()], rewards, rtol=1e-4, atol=1e-4)


def test_ipo_against_the_formula(policy, make_dpo, run_model, pairs):
    model, reference = policy(0), policy(1)
    (chosen, rejected), (ref_chosen, ref_rejected) = (by_rows(m, run_model, pairs) for m in (model, reference))
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    trainer = make_dpo(model, reference, algorithm="ipo", beta=0.25, max_steps=1)
    trainer.train([pairs])
    assert values(trainer)["loss"] == [pytest.approx(np.square(margin - 2.0).mean(), rel=1e-4)]
    assert values(trainer)["margin"] == [pytest.approx(0.25 * margin.mean(), rel=1e-4, abs=1e-5)]


def test_reference_computed_beforehand(policy, make_dpo, pairs, tmp_path):
    """The same training without the reference in memory; the second time it comes from the cache, for these very inputs only."""
    examples = [{k: v[i] for k, v in pairs.items()} for i in range(4)]
    known = with_reference_logps(policy(1), examples, batch_size=3, cache=tmp_path)
    batch = {name: np.stack([example[name] for example in known]) for name in known[0]}
    alone, beside = make_dpo(policy(0), None, precompute_reference=True), make_dpo(policy(0), policy(1))
    alone.train([batch] * 3, [batch])
    beside.train([pairs] * 3, [pairs])
    for mode in ("train", "eval"):
        for name in METRICS:
            np.testing.assert_allclose(values(alone, mode)[name], values(beside, mode)[name], rtol=1e-5, atol=1e-6)

    (file,) = tmp_path.iterdir()
    np.savez(file, ref_chosen=np.arange(4.0), ref_rejected=np.zeros(4))
    again = with_reference_logps(policy(1), examples, batch_size=3, cache=tmp_path)
    assert [float(example["ref_chosen"]) for example in again] == [0.0, 1.0, 2.0, 3.0]  # read, not computed
    changed = [examples[0] | {"chosen_ids": examples[0]["chosen_ids"] + 1}, *examples[1:]]
    for other_reference, rows in ((policy(2), examples), (policy(1), changed)):
        other = with_reference_logps(other_reference, rows, batch_size=3, cache=tmp_path)
        assert float(other[1]["ref_chosen"]) != 1.0
    with_reference_logps(policy(1), examples, batch_size=2, cache=tmp_path)  # sums of other shapes can have other bits
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_reference_cache_is_made_again(policy, pairs, tmp_path):
    examples = [{k: v[i] for k, v in pairs.items()} for i in range(4)]
    known = with_reference_logps(policy(1), examples, batch_size=4, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damage in (whole[:100], b"", b"no zip", np.lib.format.MAGIC_PREFIX):
        file.write_bytes(damage)
        again = with_reference_logps(policy(1), examples, batch_size=4, cache=tmp_path)
        assert [row["ref_chosen"] for row in again] == [row["ref_chosen"] for row in known]
        assert set(np.load(file)) == {"ref_chosen", "ref_rejected"} and list(tmp_path.iterdir()) == [file]


def test_a_batch_without_the_reference_is_refused(policy, make_dpo, pairs):
    with pytest.raises(ValueError, match="the batch lacks ref_chosen, ref_rejected; of the reference, .*with_reference_logps"):
        make_dpo(policy(), None, precompute_reference=True).train([pairs])


def test_dpo_gradient_sign(policy, make_dpo, pairs):
    """One update raises chosen minus rejected; with the pair swapped it goes the other way."""
    for batch, sign in ((pairs, 1), (swapped(pairs), -1)):
        trainer = make_dpo(policy(), policy(), optax.sgd(0.01), eval_every_n_steps=1)
        trainer.train([batch], [pairs])  # evaluates before the update and after it
        before, after = values(trainer, "eval")["margin"]
        assert before == pytest.approx(0, abs=1e-6) and sign * after > 1e-4


def test_reference_frozen(policy, make_dpo, pairs, numpy_params):
    """After twenty updates the reference has the same bytes, and a policy with its adapters off has its base's."""
    reference = policy()
    before = digest(flat_params(nnx.state(reference)))
    trainer = make_dpo(policy(), reference)
    trainer.train([pairs] * 20)
    assert digest(flat_params(nnx.state(reference))) == before
    assert digest(flat_params(nnx.state(trainer.model))) != before

    adapted = with_adapters(policy())
    make_dpo(adapted, None).train([pairs] * 20)
    after = numpy_params(adapted)
    for name, value in numpy_params(policy()).items():
        np.testing.assert_array_equal(after[name], value)


def test_adapters_with_a_reference_that_shares_their_base(policy, make_dpo, pairs):
    """The base serves as reference and lies under the adapters; neither takes the other's memory."""
    base = policy()
    shared, off = make_dpo(with_adapters(base), base), make_dpo(with_adapters(policy()), None)
    shared.train([pairs] * 3)
    off.train([pairs] * 3)
    np.testing.assert_allclose(values(shared)["loss"], values(off)["loss"], rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["dpo", "orpo"])
def test_ga_invariance(policy, make_dpo, pairs, split_rows, numpy_params, algorithm):
    found = []
    for size, accumulate in ((4, 1), (1, 4)):
        model = policy()
        reference = policy(1) if algorithm == "dpo" else None
        trainer = make_dpo(model, reference, algorithm=algorithm, gradient_accumulation_steps=accumulate)
        trainer.train(split_rows(pairs, size))
        found.append((values(trainer), numpy_params(model)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize("size", [1, 3])
def test_eval_batch_invariance(policy, make_dpo, pairs, size):
    examples = [{k: v[i] for k, v in pairs.items()} for i in range(4)]
    trainer = make_dpo(policy(0), policy(1), max_steps=1)
    trainer.train([pairs], eval_batches(examples, size))
    train, evaluated = values(trainer), values(trainer, "eval")
    for name in METRICS:
        assert evaluated[name] == [pytest.approx(train[name][0], rel=1e-4, abs=1e-5)]


def test_orpo_fixture(policy, make_dpo, run_model, pairs):
    """−mean log p of the chosen answer + λ·(−log σ of the log odds ratio), the odds of mean log-probabilities."""
    model = policy()
    sums = by_rows(model, run_model, pairs)
    mean_chosen, mean_rejected = sums[0] / pairs["chosen_mask"].sum(1), sums[1] / pairs["rejected_mask"].sum(1)
    log_odds = lambda a: np.log(np.exp(a) / (1 - np.exp(a)))  # noqa: E731
    ratio = log_odds(mean_chosen) - log_odds(mean_rejected)
    losses = -mean_chosen + 0.4 * np.log1p(np.exp(-ratio))
    trainer = make_dpo(model, None, algorithm="orpo", lambda_orpo=0.4, max_steps=1)
    trainer.train([pairs])
    found = values(trainer)
    assert found["loss"] == [pytest.approx(losses.mean(), rel=1e-4)]
    margin = 0.4 * (mean_chosen - mean_rejected)
    assert found["margin"] == [pytest.approx(margin.mean(), rel=1e-3, abs=1e-5)]
    assert found["accuracy"] == [(margin > 0).mean()]
    assert found["chosen_logp"] == [pytest.approx(sums[0].mean(), rel=1e-4)]
    terms = values(trainer, names=("sft_loss", "or_loss", "log_odds_ratio"))
    expected = -mean_chosen.mean(), np.log1p(np.exp(-ratio)).mean(), ratio.mean()
    np.testing.assert_allclose([v[0] for v in terms.values()], expected, rtol=1e-3, atol=1e-5)


def test_all_masked_noop(policy, make_dpo, pairs, numpy_params):
    """Pairs without answers weigh nothing."""
    empty = pairs | {k: np.zeros_like(v) for k, v in pairs.items() if k in ("chosen_mask", "rejected_mask")}
    model = policy()
    trainer = make_dpo(model, policy(1))
    trainer.train([empty])
    jax.tree.map(np.testing.assert_array_equal, numpy_params(model), numpy_params(policy()))
    assert values(trainer)["loss"] == [0.0] and trainer.metrics_logger.get_metric("empty_batches") == 1.0


def test_strings_are_tokenised(policy, make_dpo, word_tokenizer):
    """Strings, or the same as ids with one BOS before the prompt and EOS after each answer."""
    strings = {"prompts": ["a b", "c"], "chosen_responses": ["d", "e f"], "rejected_responses": ["g h i", "j <eos>"]}
    ids = {
        "prompt_ids": [[0, 2, 5, 6], [0, 0, 2, 7]],
        "chosen_ids": [[8, 1, 0, 0], [9, 10, 1, 0]],
        "rejected_ids": [[11, 12, 13, 1], [14, 1, 0, 0]],
    }
    tokenised = {name: np.array(rows, np.int32) for name, rows in ids.items()}
    tokenised |= {name.replace("ids", "mask"): rows != 0 for name, rows in tokenised.items()}
    config = {"max_prompt_length": 4, "max_response_length": 4}
    first = make_dpo(policy(0), policy(1), tokenizer=word_tokenizer, **config)
    first.train([strings])
    second = make_dpo(policy(0), policy(1), **config)
    second.train([tokenised])
    assert values(first) == values(second)
    with pytest.raises(ValueError, match="string batches need a tokenizer"):
        second.train([tokenised, strings])


def test_what_is_refused(policy, make_dpo):
    with pytest.raises(ValueError, match="DPO needs a reference: pass ref_model, or a policy with adapters"):
        make_dpo(policy(), None)
    with pytest.raises(ValueError, match="algorithm must be 'dpo', 'ipo' or 'orpo', got 'ppo'"):
        DPOTrainingConfig(algorithm="ppo")
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        DPOTrainingConfig(beta=0.0)
