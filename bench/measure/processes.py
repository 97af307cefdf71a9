"""The time, CPU time and memory of a whole process, from before it starts until it has ended."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from wallclock.bench.measure.timing import now_s


@dataclass(frozen=True, kw_only=True)
class ProcessDone:
    """How a process ended, and what it used together with the children that it waited for.

    Attributes:
        seconds: seconds from before it was started until it had ended.
        cpu_s: CPU seconds of all its threads and children.
        peak_bytes: resident memory of the largest process among them at its peak; at least that of this process, which
            Linux counts in.
        code: exit code; negative for the signal that ended it.
        timed_out: whether it was killed because its time was up.
        output: its standard output.
        errors: its standard error.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int
    code: int
    timed_out: bool
    output: str
    errors: str


def time_process(
    arguments: list[str], *, directory: Path, environment: dict[str, str], timeout_s: float
) -> ProcessDone:
    """Runs a command to its end, in a session of its own, which is killed whole at a timeout or an exception.

    Args:
        arguments: the program and its arguments; no shell reads them.
        directory: its working directory.
        environment: all of its environment variables.
        timeout_s: seconds after which it is killed.

    Raises:
        OSError: if it cannot be started.
    """
    expired = threading.Event()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def expire() -> None:
        expired.set()
        kill()

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = now_s()
        process = subprocess.Popen(
            arguments, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = now_s() - begun
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            timer.cancel()
            kill()  # children that it left running would disturb later measurements; after Ctrl-C, itself
            process.wait()
        for file in (out, err):
            file.seek(0)
        output, errors = (file.read().decode(errors="replace") for file in (out, err))
    return ProcessDone(
        seconds=seconds,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=1024 * usage.ru_maxrss,
        code=process.returncode,
        timed_out=expired.is_set(),
        output=output,
        errors=errors,
    )
