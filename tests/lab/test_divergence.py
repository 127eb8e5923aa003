"""The first difference between two runs, on fingerprints made by hand: every cause, the layers it names, and how large it is."""

import dataclasses
import math

import pytest

from tunix_lab.lab.divergence import Gap, by_depth, first_divergence, same_number
from tunix_lab.lab.record.fingerprints import Fingerprint

LAYERS = ("embedder", "final_norm", "layers.0", "layers.1", "layers.10", "layers.2")


def fingerprint(step: int, **changes) -> Fingerprint:
    """Update `step` of a run that draws its rows in the order r0 r1 r2 r3, r4 …"""
    rows = tuple(f"r{4 * (step - 1) + i}" for i in range(4))
    hashes = {layer: f"{layer}@{step}" for layer in LAYERS}
    whole = {"batch": f"batch{step}", "rows": rows, "loss": 2.0 / step, "grad_norm": 0.5}
    whole |= {"grads": dict(hashes), "params": dict(hashes), "rest": f"rest{step}"}
    return Fingerprint(step=step, **(whole | changes))


def run(last: int = 5, **at) -> dict[int, Fingerprint]:
    """Updates 1 … `last`; `s3={...}` changes those of step 3."""
    return {step: fingerprint(step, **at.get(f"s{step}", {})) for step in range(1, last + 1)}


def with_layers(step: int, *names: str) -> dict[str, str]:
    return {layer: f"{layer}@{step}" + ("x" if layer in names else "") for layer in LAYERS}


def test_the_same_run_twice_has_no_divergence():
    assert first_divergence(run(), run(), True) is None
    assert first_divergence(run(5), run(3), True) is None  # what both have is the same
    assert first_divergence(run(), {}, True) is None


def test_not_a_number_in_both_is_the_same():
    broken = run(s2={"loss": math.nan, "grad_norm": math.inf})
    assert first_divergence(broken, run(s2={"loss": math.nan, "grad_norm": math.inf}), True) is None
    assert first_divergence(broken, run(), True).loss.relative == math.inf


@pytest.mark.parametrize(
    ("rows", "detail"),
    [
        (("r3", "r2", "r1", "r0"), "the same 4 rows in another order"),
        (("r0", "r9", "r2", "r3"), "1 of 4 rows are not in the other run's update"),  # the first run meets r9 in its third update
        (("r16", "r17", "r18", "r19"), "4 of 4 rows are not"),
        (("s0", "s1", "s2", "s3"), "4 of 4 rows are not"),  # rows that only one of them got to
        (("r0", "r1"), "4 rows against 2"),
    ],
    ids=["shuffled", "one", "all", "strange", "fewer"],
)
def test_other_rows_of_the_same_data_are_another_order(rows, detail):
    found = first_divergence(run(), run(s1={"batch": "other", "rows": rows, "loss": 9.0}), True)
    assert (found.step, found.cause, found.layers, found.first) == (1, "data order", (), True)
    assert detail in found.detail


def test_rows_that_changed_in_their_places_are_other_content():
    found = first_divergence(run(), run(s2={"batch": "other", "rows": ("r4", "x", "r6", "r7")}), True)
    assert (found.step, found.cause, found.first) == (2, "batch content", False)
    assert found.detail == "1 of 4 rows have other content; the others stand in the same places"


def test_rows_that_the_other_run_never_meets_are_other_content():
    strange = {f"s{step}": {"batch": f"b{step}", "rows": tuple(f"x{step}{i}" for i in range(4))} for step in range(1, 6)}
    found = first_divergence(run(), run(**strange), True)
    assert (found.cause, found.detail) == (
        "batch content",
        "no row of either run occurs in the other, although both read the same data",
    )


def test_the_same_rows_in_other_arrays_are_other_content():
    found = first_divergence(run(), run(s1={"batch": "padded"}), True)
    assert found.cause == "batch content" and "differ in shape" in found.detail


def test_other_data_is_other_content_but_a_permutation_of_its_rows_is_an_order():
    other = {"batch": "other", "rows": ("r0", "r9", "r2", "r3")}
    found = first_divergence(run(), run(s1=other), False)
    assert found.cause == "batch content" and "1 of 4 rows are not" in found.detail
    found = first_divergence(run(), run(s1=other | {"rows": ("r1", "r0", "r2", "r3")}), False)
    assert found.cause == "data order"


def test_gradient_names_layers_in_depth_order_and_the_loss():
    changed = {"loss": 1.5, "grads": with_layers(2, "layers.10", "layers.2", "final_norm"), "params": with_layers(2, *LAYERS)}
    found = first_divergence(run(), run(s2=changed, s3={"loss": 7.0}), True)
    assert (found.step, found.cause, found.layers) == (2, "gradient", ("layers.2", "layers.10", "final_norm"))
    assert found.detail == "the loss itself differs on the same batch (3 of 6 layers)"
    assert found.same_params_after == 1 and not found.first


def test_gradient_with_the_same_loss():
    found = first_divergence(run(), run(s1={"grads": with_layers(1, "embedder"), "grad_norm": 0.6}), True)
    assert (found.cause, found.layers, found.first, found.same_params_after) == ("gradient", ("embedder",), True, None)
    assert found.detail == "the same batch and loss, another gradient (1 of 6 layers)"


def test_a_step_without_hashes_still_shows_its_loss():
    bare = {"grads": {}, "params": {}, "rest": ""}
    a, b = run(s2=bare, s3=bare), run(s2=bare, s3=bare | {"loss": 0.7})
    found = first_divergence(a, b, True)
    assert (found.step, found.cause, found.layers, found.same_params_after) == (3, "update or gradient", (), 1)
    assert "(layers were not hashed at this step); the update of step 2 or this gradient differs" in found.detail
    # one run hashed this step and the other did not: hashes alone are no difference
    assert first_divergence(run(), run(s3=bare), True) is None


BARE = {"params": {}, "rest": ""}


@pytest.mark.parametrize(
    ("bare", "step", "same_start", "said"),
    [
        ((1,), 2, True, "; the update of step 1 or this gradient differs, since no parameters were hashed before it"),
        ((1, 2, 3), 4, True, "; the update of a step from 1 to 3 or this gradient differs, since no parameters were"),
        (
            (2, 3),
            4,
            False,
            "; the update of a step from 2 to 3 or this gradient differs, since no parameters were hashed in both",
        ),
        ((1, 2), 3, False, "; the parameters at the start, the update of a step from 1 to 2 or this gradient differs, since"),
    ],
)
def test_a_gradient_after_an_update_that_was_not_hashed_can_follow_from_it(bare, step, same_start, said):
    """Another learning rate changes update 1; where its parameters were not hashed, the loss of update 2 is the first to tell."""
    missing = {f"s{i}": BARE for i in bare}
    for a, b in ((run(**missing), run()), (run(**missing), run(**missing)), (run(), run(**missing))):
        b[step] = dataclasses.replace(b[step], loss=9.0)
        found = first_divergence(a, b, True, same_start)
        assert (found.step, found.cause) == (step, "update or gradient")
        assert found.detail.startswith("the loss itself differs on the same batch") and said in found.detail


def test_parameters_that_were_hashed_later_only_blame_every_update_since():
    missing = {"s1": BARE, "s2": BARE}
    found = first_divergence(run(**missing), run(**missing, s3={"params": with_layers(3, "layers.1")}), True)
    assert (found.step, found.cause, found.layers) == (3, "update", ("layers.1",))
    assert "the update of this step or that of a step from 1 to 2 differs" in found.detail


def test_the_first_update_begins_with_the_parameters_of_the_start():
    for same_start in (True, False):
        assert first_divergence(run(), run(s1={"loss": 9.0}), True, same_start).cause == "gradient"


def test_update_names_layers_or_the_optimizers_state():
    found = first_divergence(run(), run(s4={"params": with_layers(4, "layers.1"), "rest": "x"}), True)
    assert (found.step, found.cause, found.layers) == (4, "update", ("layers.1",))
    found = first_divergence(run(), run(s4={"rest": "x"}), True)
    assert (found.step, found.cause, found.layers) == (4, "update", ())
    assert "optimizer's state" in found.detail


def test_a_layer_of_only_one_run_differs():
    without = {layer: f"{layer}@1" for layer in LAYERS if layer != "layers.10"}
    assert first_divergence(run(), run(s1={"grads": without}), True).layers == ("layers.10",)


def test_only_steps_that_both_have_are_compared():
    a = {step: value for step, value in run(6).items() if step > 2}
    b = run(4, s4={"loss": 0.25})
    found = first_divergence(a, b, True)
    assert (found.step, found.last_step, found.first, found.same_params_after) == (4, 4, False, 3)


def test_magnitude_at_the_step_and_at_the_end():
    found = first_divergence(run(), run(s2={"loss": 1.25}, s5={"loss": 0.5, "grad_norm": 0.25}), True)
    assert found.loss == Gap(1.0, 1.25) and math.isclose(found.loss.relative, 0.2)  # 0.25 / 1.25
    assert found.grad_norm.relative == 0
    assert found.last_step == 5 and math.isclose(found.last_loss.relative, 0.2)  # |0.4 - 0.5| / 0.5
    assert math.isclose(found.last_grad_norm.relative, 0.5)


def test_numbers():
    assert same_number(math.nan, -math.nan) and not same_number(0.0, -0.0) and not same_number(1.0, 1.0 + 2**-52)
    assert Gap(0.0, -0.0).relative == 0 and Gap(0.0, 3.0).relative == 1 and Gap(math.inf, math.inf).relative == 0
    assert by_depth(["lm_head", "layers.10", "layers.9", "embedder"]) == ("embedder", "layers.9", "layers.10", "lm_head")


def test_a_fingerprint_is_compared_whole():
    """Every field that a fingerprint has is looked at: a change in any of them alone is found."""
    changes = {"batch": "x", "rows": ("x",), "loss": 9.0, "grad_norm": 9.0, "grads": {"x": ""}, "params": {"x": ""}, "rest": "x"}
    assert {"step", *changes} == {field.name for field in dataclasses.fields(Fingerprint)}
    for name, value in changes.items():
        assert first_divergence(run(), run(s3={name: value}), True).step == 3, name
