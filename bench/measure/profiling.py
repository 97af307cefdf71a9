"""The time of a step by operator, from PyTorch's profiler."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from wallclock.bench.measure.timing import synchronize

SHOWN = 20  # operators listed by name; the others are summed up in one line


@dataclass(frozen=True)
class OperatorTime:
    """One operator's share of a training step.

    Attributes:
        name: name of the PyTorch operator; on a GPU the operator that launched the kernels, or the kernel's own name
            when a CUDA graph is replayed.
        seconds: seconds per step in the operator, without the operators that it calls; on a GPU those of its kernels.
        calls: calls per step.
    """

    name: str
    seconds: float
    calls: float


def operator_times(step: Callable[[], None], device: torch.device, steps: int = 2) -> list[OperatorTime]:
    """Profiles a step and returns its slowest operators, slowest first, with the sum of all others as the last entry.

    `step` runs one training step; it is called once to warm up, then `steps` times.
    """
    step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        for _ in range(steps):
            step()
        synchronize(device)
    if on_gpu:
        parts = times_on_gpu(profiled.events())
    else:
        parts = {event.key: (event.self_cpu_time_total, event.count) for event in profiled.key_averages()}
    found = [
        OperatorTime(name.removeprefix("aten::"), microseconds / 1e6 / steps, calls / steps)
        for name, (microseconds, calls) in parts.items()
        if microseconds > 0
    ]
    found.sort(key=lambda one: -one.seconds)
    rest = found[SHOWN:]
    others = [OperatorTime("all others", sum(o.seconds for o in rest), sum(o.calls for o in rest))] if rest else []
    return found[:SHOWN] + others


def times_on_gpu(events: Iterable[Any]) -> dict[str, tuple[float, int]]:
    """Returns microseconds and calls of all kernels, by the operator that launched them, or else by the kernel's name.

    The events of `torch.profiler.profile.events()` list a kernel alone and within its operator; here it counts once.
    """
    by_operator = defaultdict[str, list[float]](list)
    kernels, launched = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for event in events:
        if event.device_type != DeviceType.CPU:
            if not event.is_user_annotation:
                kernels[event.name].append(event.time_range.elapsed_us())
        elif event.kernels:
            by_operator[event.name].append(sum(kernel.duration for kernel in event.kernels))
            for kernel in event.kernels:
                launched[kernel.name].append(kernel.duration)
    times = {name: (sum(each), len(each)) for name, each in by_operator.items()}
    for name, each in kernels.items():
        calls, microseconds = len(each) - len(launched[name]), sum(each) - sum(launched[name])
        if calls > 0:
            short = re.sub(r"[<(].*", "", name.removeprefix("void "))  # without template and function arguments
            before = times.get(short, (0.0, 0))
            times[short] = before[0] + microseconds, before[1] + calls
    return times
