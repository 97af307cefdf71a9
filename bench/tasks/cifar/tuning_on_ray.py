"""Tuning trials on the nodes of a Ray cluster; the study's storage stays here, and is served to them over gRPC."""

import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wallclock.bench.runs.ray_calls import call_everywhere, connect
from wallclock.bench.tasks.cifar.tuning import Objective, TuningRequest, ended, joined, quiet

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def one_trial(request: TuningRequest, command: str, host: str, port: int, worker: str) -> tuple[int, dict[str, bytes]]:
    """Runs one trial of a study whose storage is served from another machine, at a host and a port.

    The data lie at the same path on every node; `worker` is a mark by which the trial is found if this process dies.

    Returns:
        The trial's number, and the contents of its run's files by relative path.
    """
    from optuna.storages import GrpcStorageProxy

    numbers: list[int] = []
    with TemporaryDirectory() as aside, quiet():
        study = joined(GrpcStorageProxy(host=host, port=port))
        objective = Objective(request=request, folder=Path(aside), command=command, worker=worker)
        study.optimize(objective, n_trials=1, callbacks=[lambda study, trial: numbers.append(trial.number)])
        files = [path for path in Path(aside).rglob("*") if path.is_file()]
        return numbers[0], {str(path.relative_to(aside)): path.read_bytes() for path in files}


def work_on_ray(
    study: "Study",
    request: TuningRequest,
    folder: Path,
    command: str,
    trials: int,
    *,
    cpus: int,
    observe: Callable[["FrozenTrial"], None],
) -> None:
    """Runs trials on a cluster until `trials` have ended; a trial whose node dies is queued again.

    The trials' runs come into the study's folder. `cpus` is the number of CPUs for each trial, where it needs no GPU;
    `observe` is called with every trial that ends.

    Raises:
        ValueError: see `bench.runs.ray_calls.connect`.
        ContenderFailed: if a trial's workers died too often.
    """
    connect(request.device, cpus)
    import ray
    from optuna.storages import run_grpc_proxy_server
    from optuna.trial import TrialState

    host, port = ray.util.get_node_ip_address(), _free_port()
    threading.Thread(
        target=run_grpc_proxy_server, args=(study._storage,), kwargs={"host": host, "port": port}, daemon=True
    ).start()
    workers = [secrets.token_hex(8) for _ in range(max(0, trials - len(ended(study))))]

    def done(place: int, attempt: int, returned: Any) -> None:
        number, files = returned
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        observe(study.get_trials()[number])

    def died(place: int, how: str) -> None:
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == workers[place]:
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params)

    call_everywhere(
        one_trial,
        [(request, command, host, port, worker) for worker in workers],
        device=request.device,
        cpus=cpus,
        done=done,
        died=died,
    )


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("", 0))
        return bound.getsockname()[1]
