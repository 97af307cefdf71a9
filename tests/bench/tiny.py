"""What tests that train share; pytest finds this module by `pythonpath` in pyproject.toml."""

from contextlib import ExitStack
from dataclasses import replace

import torch

from wallclock.bench.measure.turns import Taken
from wallclock.models.recipes import get_recipe

# For the command line: steps that take milliseconds, and one look at each epoch of 50 of them.
TINY = (
    *("--set", 'model_arguments={"widths":[8,8,8]}', "--set", "batch_size=100", "--set", "resolutions=[]"),
    *("--set", "precision=fp32", "--set", "tta=null"),
)


def tiny_recipe(**changes):
    """Sprint, narrow enough to learn the embedded set in seconds."""
    fields = {"model_arguments": {"widths": (16, 32, 32)}, "batch_size": 100, "epochs": 2, "resolutions": ()}
    return replace(get_recipe("sprint", "cpu"), **(fields | changes))


class Stop:
    """Raises Ctrl-C's exception at the n-th line that a run tells."""

    def __init__(self, line):
        self.line, self.seen = line, 0

    def __call__(self, text):
        self.seen += 1
        if self.seen == self.line:
            raise KeyboardInterrupt


def in_this_process(contenders, rounds, *, first=0, seed=0):
    """Takes the turns that `interleaved` takes, without processes of their own, which take seconds to start."""
    with ExitStack() as stack:
        turns = {}
        for name, contender in contenders.items():
            torch.manual_seed(seed)
            turns[name] = contender(stack)
        for number in range(first, rounds):
            for slot, (name, turn) in enumerate(turns.items()):
                if number == first:  # a plain loop draws its weights in its first step
                    torch.manual_seed(seed)
                yield Taken(name, number, slot, turn())
