"""Where the time of a step goes, by operator, as PyTorch's profiler sees it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from bench.timing import synchronize

SHOWN = 20  # operators; the rest is told together


@dataclass(frozen=True)
class OperatorTime:
    """One operator's part of a step.

    Attributes:
        name: of a PyTorch operator; on a GPU of the operator that launched the kernels.
        seconds: a step, without what it calls; on a GPU of its kernels.
        calls: a step.
    """

    name: str
    seconds: float
    calls: float


def operator_times(step: Callable[[], None], device: torch.device, steps: int = 2) -> list[OperatorTime]:
    """Returns the operators of a step that take longest, and the others as one, longest first.

    Args:
        step: takes one; is called once more beforehand.
        device: where it runs.
        steps: that are profiled.
    """
    step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        for _ in range(steps):
            step()
        synchronize(device)
    found = []
    for event in profiled.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            found.append(
                OperatorTime(event.key.removeprefix("aten::"), microseconds / 1e6 / steps, event.count / steps)
            )
    found.sort(key=lambda one: -one.seconds)
    rest = found[SHOWN:]
    others = [OperatorTime("all others", sum(o.seconds for o in rest), sum(o.calls for o in rest))] if rest else []
    return found[:SHOWN] + others
