"""Contenders for the tests of interleaving: a process that is spawned has to find them by an importable name."""

import os
import signal
from contextlib import ExitStack


class Counting:
    """Each turn returns its name, its process and how many turns it has had."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def __call__(self, stack: ExitStack):
        stack.callback(lambda: self._write("closed"))
        turns = []

        def turn():
            turns.append(None)
            self._write(f"turn {len(turns)}")
            return self.name, os.getpid(), len(turns)

        return turn

    def _write(self, text):
        with open(self.log, "a") as file:
            file.write(f"{self.name} {text}\n")


class Raising:
    """Raises in its second turn, or at once."""

    def __init__(self, at):
        self.at = at

    def __call__(self, stack: ExitStack):
        if self.at == 0:
            raise ValueError("cannot get ready")
        turns = []

        def turn():
            turns.append(None)
            if len(turns) == self.at:
                raise ValueError("cannot go on")

        return turn


class Dying:
    """Is killed in its first turn, as by a machine out of memory."""

    def __call__(self, stack: ExitStack):
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
