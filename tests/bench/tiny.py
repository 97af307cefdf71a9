"""A recipe for tests that train; pytest finds this module by `pythonpath` in pyproject.toml."""

from dataclasses import replace

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
