"""A whole process, timed: from before it starts until it and what it waited for have ended."""

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
    """What became of a process and of all it started and waited for.

    Attributes:
        seconds: from before it was started until it had ended.
        cpu_s: of all its threads and children.
        peak_bytes: of the largest of them, resident; at least what this process holds, which Linux counts in.
        code: exit code; negative for the signal that ended it.
        timed_out: whether it was killed for taking too long.
        output: standard output.
        errors: standard error.
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
        arguments: program and arguments, no shell.
        directory: to run in.
        environment: whole.
        timeout_s: after which it is killed.

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
            kill()  # what it left running would disturb what comes after; after Ctrl-C, itself
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return ProcessDone(
        seconds=seconds,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=1024 * usage.ru_maxrss,
        code=process.returncode,
        timed_out=expired.is_set(),
        output=texts[0],
        errors=texts[1],
    )
