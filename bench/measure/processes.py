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
    """A process that has ended: its exit, its output, and the time and memory of it and the children it waited for.

    Attributes:
        seconds: wall-clock seconds from just before the start until the end.
        cpu_s: CPU seconds of all threads and children.
        peak_bytes: peak resident memory of the largest process among them, in bytes; never less than the memory of the
            measuring process, which Linux counts in.
        code: exit code; -N if signal N ended the process.
        timed_out: whether the process was killed at the timeout.
        output: text of standard output.
        errors: text of standard error.
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
    """Runs a command to its end in a session of its own; a timeout or an exception kills the whole session.

    It is started in a directory, without a shell, and with no other environment variables than those given.

    Raises:
        OSError: if the process cannot be started.
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
            kill()  # children left running would disturb later measurements; after Ctrl-C the process itself would
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
