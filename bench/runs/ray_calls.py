"""Function calls on the nodes of a Ray cluster, each with one whole GPU or a set number of CPUs.

A call whose node or worker dies is made again elsewhere.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wallclock.bench.measure.environment import package_version
from wallclock.bench.measure.turns import DIED, ContenderFailed

ATTEMPTS = 3


def connect(device: str, cpus: int) -> None:
    """Joins the cluster of this machine or starts a new one, and refuses one whose nodes cannot hold a call.

    A call on the device "cpu" has a number of CPUs, one on "cuda" a GPU.

    Raises:
        ValueError: if Ray is not installed, or no node could hold a call.
    """
    if not package_version("ray"):
        raise ValueError("Ray is not installed; uv sync --extra ray")
    import ray

    if not ray.is_initialized():
        # A cluster that this machine belongs to; without one, Ray starts a node of its own.
        runs = "RAY_ADDRESS" in os.environ or Path("/tmp/ray/ray_current_cluster").exists()
        ray.init(address="auto" if runs else None, log_to_driver=False, include_dashboard=False)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {"GPU": 1} if device == "cuda" else {"CPU": cpus}
    if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
        told = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
        raise ValueError(f"no node of the cluster has {told} for a cell; see `ray status`, or give --cpus")


def call_everywhere(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    device: str,
    cpus: int,
    done: Callable[[int, int, Any], None],
    died: Callable[[int, str], None],
) -> None:
    """Makes all calls on the nodes that are free; if one cannot be made, those under way are cancelled.

    Args:
        function: the function to call; importable on every node.
        arguments: arguments of each call; large objects are references from `ray.put`.
        device: see `connect`.
        cpus: see `connect`.
        done: called with each call's place in `arguments`, the number of its attempt from 1, and its result.
        died: called with a call's place and the type of its worker's error, before the call is made again.

    Raises:
        ContenderFailed: if the function raises, or a call's workers died `ATTEMPTS` times.
    """
    import ray

    gpus = 1 if device == "cuda" else 0
    task = ray.remote(max_retries=0, num_gpus=gpus, num_cpus=1 if gpus else cpus)(function)
    waiting: dict[Any, tuple[int, int]] = {}  # place and attempt of each call under way
    try:
        for place, each in enumerate(arguments):
            waiting[task.remote(*each)] = place, 1
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            place, attempt = waiting.pop(ready)
            try:
                returned = ray.get(ready)
            except ray.exceptions.RayError as error:
                why = str(error).strip().splitlines()[-1]
                raised = isinstance(error, ray.exceptions.RayTaskError)
                if raised and DIED not in why:  # the function failed, not its worker
                    raise ContenderFailed(f"call {place}: {why}") from None
                if attempt == ATTEMPTS:
                    raise ContenderFailed(f"call {place}: a worker died {ATTEMPTS} times; {why}") from None
                died(place, type(error).__name__)
                waiting[task.remote(*arguments[place])] = place, attempt + 1
                continue
            done(place, attempt, returned)
    finally:
        for waited in waiting:
            ray.cancel(waited, force=True)
