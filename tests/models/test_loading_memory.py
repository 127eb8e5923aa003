"""Loading holds one tensor at a time on the host, beside the parameters themselves: the benchmark's own figures, smaller."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "load_memory.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--devices", "8")])
def test_peak_memory_of_loading(options):
    done = subprocess.run([sys.executable, BENCHMARK, "--scale", "0.5", *options], check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout)
    assert measured["parameters_on_devices_bytes"] >= measured["checkpoint_bytes"] * 0.99 > 5e8
    assert measured["overhead_largest_tensors"] <= 1.1
