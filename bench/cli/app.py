"""The command line. Every command imports what it needs when it runs, so that `--help` and `report` need no torch."""

import os
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn

import typer

from wallclock.bench.cli.ablate import ablate_app
from wallclock.bench.cli.bisect import bisect
from wallclock.bench.cli.calibrate import calibrate
from wallclock.bench.cli.compare import compare, gate
from wallclock.bench.cli.data import data_app
from wallclock.bench.cli.inventory import env, list_
from wallclock.bench.cli.networks import judge, translate
from wallclock.bench.cli.output import INVALID_RESULT, USAGE_ERROR
from wallclock.bench.cli.plans import quick, suite
from wallclock.bench.cli.report import history, report, serve
from wallclock.bench.cli.run import run_app
from wallclock.bench.cli.tune import tune

app = typer.Typer(
    name="wallclock",
    help="Benchmark deep-learning training by wall-clock time, not FLOPs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(run_app, name="run")
app.add_typer(data_app, name="data")
app.add_typer(ablate_app, name="ablate")
command: Callable[..., None]
for command in (tune, compare, gate, bisect, history, calibrate, quick, suite, report, serve):
    app.command()(command)
app.command("list")(list_)
for command in (env, translate, judge):
    app.command()(command)


def main() -> None:
    """Runs the command line.

    Exit codes: 0 for a result, also one that misses its target; 1 for a regression that `gate` found, and nothing else;
    2 for a request that cannot be met; 3 for a run that diverged or failed, and for a fault of our own; 130 for Ctrl-C.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # keeps PyTorch's profiler from printing its stages
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # prints "?" for arrows and boxes that the locale lacks
            stream.reconfigure(errors="replace")
    try:
        app()
    except ValueError as error:  # bad input: DataError, StoreError, unknown names, values out of range
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror}; check the path, its permissions and the disk")
    except (RuntimeError, MemoryError) as error:  # from torch, a compiler or a driver, in the middle of a run
        kept = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        if _is_out_of_memory(error):
            _fail(f"out of memory; use a smaller batch (--set batch_size=...) or a device with more{kept}")
        _fail(f"{type(error).__name__}: {error}{kept}", INVALID_RESULT)
    except Exception as error:  # noqa: BLE001 - Python's own exit code would be 1, which means "regressed"
        traceback.print_exc()
        _fail(f"a fault of wallclock's own: {type(error).__name__}: {error}; please report it", INVALID_RESULT)


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    typer.echo(f"wallclock: {message}", err=True)
    raise SystemExit(code)


def _is_out_of_memory(error: Exception) -> bool:
    texts = ("out of memory", "can't allocate memory", "cannot allocate memory")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the latter is torch's
    return known or any(text in str(error).lower() for text in texts)


if __name__ == "__main__":
    main()
