"""A clock of the tests' own: a machine that others use is not so steady."""

import itertools
from collections.abc import Callable

import pytest


class FakeClock:
    """Stands where `timing.now_s` reads, and moves only when a test says so."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def advance(self, seconds: float) -> None:
        self.at_s += seconds

    def taking(self, *seconds: float) -> Callable[[], None]:
        """Returns a call that takes these times in turn, again and again."""
        turns = itertools.cycle(seconds)
        return lambda: self.advance(next(turns))

    def settling(self, *seconds: float) -> Callable[[], None]:
        """Returns a call that takes each of these times once, and the last one from then on."""
        turns = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        return lambda: self.advance(next(turns))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    monkeypatch.setattr("wallclock.bench.measure.timing.now_s", lambda: made.at_s)
    return made
