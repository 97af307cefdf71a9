"""Time by operator: the step's own operators, each once, longest first, and nothing lost."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from wallclock.bench.measure.profiling import SHOWN, operator_times, times_on_gpu
from wallclock.bench.measure.sampling import measure


def test_operators_of_a_step_are_told_with_their_calls(device):
    x = torch.randn(200, 200, device=device, requires_grad=True)

    def step():
        for _ in range(3):
            (x @ x).relu().sum().backward()

    found = operator_times(step, device)
    by_name = {one.name: one for one in found}
    assert by_name["mm"].calls == 9 and by_name["relu"].calls == 3  # forward, and two gradients each
    seconds = [one.seconds for one in found]
    assert all(0 < each < 10 for each in seconds)
    shown = seconds[:-1] if found[-1].name == "all others" else seconds
    assert shown == sorted(shown, reverse=True) and len(shown) <= SHOWN


def test_what_is_too_much_to_show_is_told_together(device, monkeypatch):
    monkeypatch.setattr("wallclock.bench.measure.profiling.SHOWN", 1)
    x = torch.randn(50, device=device)
    first, others = operator_times(lambda: x.sin().cos().exp().sum(), device)
    assert others.name == "all others" and others.calls >= 3 and first.calls == 1


def event(name, microseconds=0.0, kernels=(), on=DeviceType.CPU, annotation=False):
    """What a profiler on a GPU gives: an operator with its kernels, or a kernel."""
    launched = [SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels]
    time_range = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(
        name=name, kernels=launched, time_range=time_range, device_type=on, is_user_annotation=annotation
    )


def test_a_kernel_counts_once_under_the_operator_that_launched_it_or_under_its_own_name():
    gpu = DeviceType.CUDA
    events = [
        event("aten::linear"),  # calls addmm, and launches nothing
        event("aten::addmm", kernels=[("gemm", 30.0), ("splitK", 5.0)]),
        event("gemm", 30.0, on=gpu),
        event("splitK", 5.0, on=gpu),
        event("aten::addmm", kernels=[("gemm", 34.0)]),
        event("gemm", 34.0, on=gpu),
        event("cudaGraphLaunch"),
        event("gemm", 20.0, on=gpu),  # of the graph
        event("void elementwise<4, at::native::add(float)>(int)", 3.0, on=gpu),
        event("void elementwise<2, at::native::mul>", 4.0, on=gpu),
        event("step", 500.0, on=gpu, annotation=True),
    ]
    assert times_on_gpu(events) == {"aten::addmm": (69.0, 2), "gemm": (20.0, 1), "elementwise": (7.0, 2)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
def test_operators_add_up_to_what_the_gpu_was_busy(device):
    x = torch.randn(4096, 4096, device=device)
    measured = measure(lambda: (x @ x).relu_(), device=device, budget_s=1.0)
    told = sum(one.seconds for one in operator_times(lambda: (x @ x).relu_(), device))
    assert 0.7 * measured.median_s < told < 1.3 * measured.median_s
