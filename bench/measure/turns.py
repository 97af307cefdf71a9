"""Contenders measured in turns, each in a process of its own: what one run of a machine may compare.

A turn takes a second or so, and in each round every contender has one, in an order drawn for that round: what else the
machine does, and what its clocks do, meets all of them alike. Figures are compared within rounds.
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
    """What one turn gave.

    Attributes:
        name: of the contender.
        round: from 0.
        slot: place within the round, from 0.
        result: of the turn.
    """

    name: str
    round: int
    slot: int
    result: Any


def interleaved(contenders: Mapping[str, Contender], rounds: int, *, first: int = 0, seed: int = 0) -> Iterator[Taken]:
    """Yields turn after turn, one process at work at a time.

    Args:
        contenders: by name; each is pickled into a process of its own and called there once, with a stack for contexts
            that last as long as the process; what it returns is called for each turn, and returns what can be pickled.
        rounds: in all.
        first: round to begin with; a run that goes on has the earlier ones.
        seed: of the order within rounds.

    Raises:
        ContenderFailed: if one raises or dies.
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
    connection.close()  # which the process takes as its end
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _serve(connection: Connection, contender: Contender) -> None:
    """A contender's process: gets ready, then takes a turn for each word from the other end until that is closed."""
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
        except Exception as error:  # noqa: BLE001 - whatever it is, the recording process tells it
            connection.send((f"{type(error).__name__}: {error}", None))
