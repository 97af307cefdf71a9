"""The operations can be captured in a CUDA graph: on a GPU they are; elsewhere, nothing in them waits for a device."""

from dataclasses import replace

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from wallclock.bench.cases.kernels.trial import Trial
from wallclock.kernels.batch_norm_act import BatchNorm, batch_norm_act
from wallclock.kernels.cases import SPECS
from wallclock.kernels.residual import residual_

SHAPES = {name: (4, 24, 6, 6) for name in SPECS} | {
    "augment": (6, 3, 32, 32),
    "rmsprop_clamp": (3, 8, 24, 1),
    "muon": (3, 24, 24),
}
WAITS = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.equal",
    "aten.is_nonzero",
    "aten.unique",
    "aten.masked_select",
)
TRIALS = [
    pytest.param(name, variant, place, id=f"{name}-{variant}-{place}", marks=pytest.mark.slow if place else ())
    for name, spec in SPECS.items()
    for place in (0, -1)
    for variant in spec.variants_at(spec.cases[place])
    if variant.startswith("triton")
]


class Watch(TorchDispatchMode):
    """Notes every operation, those within our own too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.seen.append(name)
        own = OPDEFS.get(name.removesuffix(".default").replace(".", "::", 1))
        if own is None:
            return function(*args, **(kwargs or {}))
        with self:
            return own._init_fn(*args, **(kwargs or {}))


def trial_of(name, place, device):
    spec = SPECS[name]
    trial = Trial(spec, replace(spec.cases[place], shape=SHAPES[name]), "fp32", device)
    trial.prepare()
    return trial


@pytest.mark.parametrize(("name", "variant", "place"), TRIALS)
def test_nothing_waits_for_the_device(name, variant, place, device):
    trial = trial_of(name, place, device)
    with Watch() as watch:
        trial.call(variant, "both" if trial.spec.differentiated else "forward")()
    assert any(seen.startswith("wallclock.") for seen in watch.seen)
    assert [seen for seen in watch.seen if seen.startswith(WAITS)] == []


def test_running_statistics_and_the_sum_in_place_do_not_wait_either(device):
    x = torch.randn(4, 8, 6, 6, device=device).to(memory_format=torch.channels_last).requires_grad_()
    mean, var = torch.zeros(8, device=device), torch.ones(8, device=device)
    with Watch() as watch:
        y = batch_norm_act(x, BatchNorm(None, None, mean, var, act="relu"))
        residual_(2 * y, x, act="leaky_relu").sum().backward()
    assert {"wallclock.update_running_stats_.default", "wallclock.residual_.default"} <= set(watch.seen)
    assert [seen for seen in watch.seen if seen.startswith(WAITS)] == []


def test_the_watch_sees_what_waits():
    with Watch() as watch:
        torch.ones(3).sum().item()
    assert any(seen.startswith(WAITS) for seen in watch.seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
@pytest.mark.parametrize(("name", "variant", "place"), TRIALS)
def test_a_replayed_graph_computes_what_a_call_does(name, variant, place):
    trial = trial_of(name, place, torch.device("cuda"))
    leaves = trial._leaves(trial.spec.own(trial.inputs, variant))
    wanted = trial._differentiated(leaves)
    function, options = trial.spec.variants[variant], trial.case.options

    dy = trial._dy(function(**leaves, **options))

    def step():
        y = function(**leaves, **options)
        return [*trial.spec.results(leaves, y), *(torch.autograd.grad(y, wanted, dy) if wanted else ())]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        for tensor in leaves.values():
            if tensor is not None and tensor.is_floating_point() and tensor.numel():
                tensor.mul_(1.5)
    before = trial.spec.own(leaves, variant)
    graph.replay()
    computed = [t.clone() for t in replayed]
    for tensor, was in zip(leaves.values(), before.values(), strict=True):
        if was is not tensor:  # what has been overwritten, as it was
            tensor.detach().copy_(was.detach())
    for ours, called in zip(computed, step(), strict=True):
        assert torch.equal(ours, called)
