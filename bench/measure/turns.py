"""Contenders, such as variants of a recipe, measured in turns, each in its own process, so that they can be compared.

A turn takes about a second. In each round every contender has one turn, in an order drawn for that round, so that other
work on the machine and changes of its clocks affect all of them alike. Figures are compared within rounds.
"""

import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

DIED = "its process died"
Turn = Callable[[], Any]
Contender = Callable[[ExitStack], Turn]


class ContenderFailed(RuntimeError):
    """An exception for a contender that raised or whose process died; the message names it and the reason."""


@dataclass(frozen=True)
class Taken:
    """The result of one turn of the contender called `name`; rounds, and slots within a round, count from 0."""

    name: str
    round: int
    slot: int
    result: Any


def interleaved(contenders: Mapping[str, Contender], rounds: int, *, first: int = 0, seed: int = 0) -> Iterator[Taken]:
    """Takes all turns, with one process at work at a time, and yields each result.

    Args:
        contenders: contenders by name. Each is pickled into its own process and called there once, with an exit stack
            for contexts that last as long as the process; it returns the function to call for each turn, whose result
            must be picklable.
        rounds: number of the round after the last, so that rounds `first` to `rounds` - 1 are taken.
        first: number of the first round to take; above 0 for a resumed run, which has the earlier ones.
        seed: seed of the order of turns within rounds.

    Raises:
        ContenderFailed: if a contender raises or dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and a used heap
    with ExitStack() as stack:
        at: dict[str, Connection] = {}
        for name, contender in contenders.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, contender), daemon=True, name=name)
            process.start()
            there.close()
            stack.callback(_end, here, process)
            at[name] = here
        for name, here in at.items():  # all processes prepare at the same time
            _reply(name, here)
        for number in range(first, rounds):
            order = list(contenders)
            random.Random(f"{seed} {number}").shuffle(order)
            for slot, name in enumerate(order):
                try:
                    at[name].send(None)
                except OSError:  # the pipe is broken
                    raise ContenderFailed(f"{name}: {DIED}") from None
                yield Taken(name, number, slot, _reply(name, at[name]))


def _reply(name: str, connection: Connection) -> Any:
    try:
        failure, result = connection.recv()
    except (EOFError, OSError):
        raise ContenderFailed(f"{name}: {DIED}, killed or out of memory") from None
    if failure:
        raise ContenderFailed(f"{name}: {failure}")
    return result


def _end(connection: Connection, process: BaseProcess) -> None:
    connection.close()  # the process ends when its connection closes
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _serve(connection: Connection, contender: Contender) -> None:
    """Prepares a contender in its own process, then takes a turn for each message until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the recording process handles Ctrl-C
    with ExitStack() as stack:
        try:
            turn: Turn | None = None
            while True:
                if turn is None:
                    turn, result = contender(stack), None
                else:
                    connection.recv()
                    result = turn()
                connection.send(("", result))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # noqa: BLE001 - the recording process raises it
            connection.send((f"{type(error).__name__}: {error}", None))
