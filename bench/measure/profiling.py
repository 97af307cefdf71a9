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

SHOWN = 20  # operators that are named; the rest are summed


@dataclass(frozen=True)
class OperatorTime:
    """One operator's part of a step.

    Attributes:
        name: name of a PyTorch operator; on a GPU of the one that launched the kernels, or, in the replay of a graph,
            of the kernel.
        seconds: seconds a step in it, without the operators that it calls; on a GPU those of its kernels.
        calls: calls a step.
    """

    name: str
    seconds: float
    calls: float


def operator_times(step: Callable[[], None], device: torch.device, steps: int = 2) -> list[OperatorTime]:
    """Returns the operators of a step that take longest, longest first, and the sum of all others at the end.

    Args:
        step: takes one step; it is called once more beforehand.
        device: the device that it runs on.
        steps: how many steps are profiled.
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
    """Returns the microseconds and calls of all kernels, by the operator that launched them, or else by their own name.

    A kernel is an event itself, and is listed in the event of its operator too; it counts once.

    Args:
        events: the events of `torch.profiler.profile.events()`.
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
            short = re.sub(r"[<(].*", "", name.removeprefix("void "))  # without the arguments of its template
            before = times.get(short, (0.0, 0))
            times[short] = before[0] + microseconds, before[1] + calls
    return times
