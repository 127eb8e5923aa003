"""Where the time of an update goes: phases inside others count once."""

import time

from tunix_lab.perf.trace import HostTracer


def test_a_span_inside_another_counts_for_itself():
    tracer = HostTracer()
    with tracer.span("data"):
        time.sleep(0.02)
        with tracer.span("rollout"):
            time.sleep(0.2)
    with tracer.span("rollout"):
        time.sleep(0.02)
    taken = tracer.take()
    assert taken["rollout"] >= 0.22 and 0.02 <= taken["data"] < 0.2
    assert tracer.take() == {}


def test_phases_of_an_update(make_grpo, prompts, metrics):
    learner = make_grpo(max_steps=1)
    learner.train(prompts())
    [step] = metrics(learner, "perf/step_s")
    phases = [metrics(learner, f"perf/{name}_s")[0] for name in ("data", "rollout", "reward", "logps", "wait")]
    assert all(seconds >= 0 for seconds in phases) and sum(phases) < step
