"""Twins of `wallclock run kernels` for pytest-benchmark: the same operations, cases and variants."""

import pytest
import torch

from wallclock.bench.cases.kernels.trial import Trial
from wallclock.bench.measure.timing import now_s, synchronize
from wallclock.kernels.cases import SPECS
from wallclock.kernels.spec import available, interpreted

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    pytest.param(spec, case, variant, id=f"{spec.name} {case.name} {variant}".replace(" ", "-"))
    for spec in SPECS.values()
    for case in spec.cases
    for variant in spec.variants_at(case)
]


def device_now_s() -> float:
    """The host's clock when the device has done all it was told to."""
    synchronize(DEVICE)
    return now_s()


@pytest.mark.benchmark(timer=device_now_s)
@pytest.mark.parametrize(("spec", "case", "variant"), CASES)
def test_kernel(benchmark, spec, case, variant):
    why_not = available(variant, DEVICE) or interpreted(variant, DEVICE)
    if why_not:
        pytest.skip(why_not)
    trial = Trial(spec, case, "bf16", DEVICE)
    trial.prepare()
    error, allowed = trial.check(variant)
    assert error <= allowed
    direction = "both" if spec.differentiated else "forward"
    benchmark.extra_info |= trial.parameters | {
        "benchmark": "kernels", "case": trial.name, "variant": variant, "direction": direction, "cache": "hot"
    }  # fmt: skip
    benchmark(trial.call(variant, direction))
