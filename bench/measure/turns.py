"""Contenders measured in turns, each in a process of its own, so that they may be compared.

A turn takes a second or so, and in each round every contender has one, in an order drawn for that round: other work on
the machine, and changes of its clocks, meet all of them alike. Figures are compared within rounds.
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
    """A contender raised, or its process died; the message says which, and why."""


@dataclass(frozen=True)
class Taken:
    """A turn that was taken.

    Attributes:
        name: the contender's name.
        round: the round's number, from 0.
        slot: the turn's place within the round, from 0.
        result: what the turn returned.
    """

    name: str
    round: int
    slot: int
    result: Any


def interleaved(contenders: Mapping[str, Contender], rounds: int, *, first: int = 0, seed: int = 0) -> Iterator[Taken]:
    """Yields turn after turn, one process at work at a time.

    Args:
        contenders: contenders by name; each is pickled into a process of its own and called there once, with a stack
            for contexts that last as long as the process; it returns a function that is called for each turn, whose
            result can be pickled.
        rounds: number of rounds in all.
        first: number of the first round to take; a resumed run has the earlier ones.
        seed: seed of the order within rounds.

    Raises:
        ContenderFailed: if a contender raises or dies.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads, and a heap that has been used
    with ExitStack() as stack:
        at: dict[str, Connection] = {}
        for name, contender in contenders.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, contender), daemon=True, name=name)
            process.start()
            there.close()
            stack.callback(_end, here, process)
            at[name] = here
        for name, here in at.items():  # they get ready side by side
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
    connection.close()  # the process takes that as its end
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _serve(connection: Connection, contender: Contender) -> None:
    """Gets ready in the contender's process, then takes a turn for each message until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that records
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
