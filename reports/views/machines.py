"""Machines and software of the runs: versions, and the GPU's clocks, temperature and power."""

from typing import Any

import pandas as pd

from wallclock.reports.format.text import Cells, present, stack_lines
from wallclock.reports.store.schema import SLOWED
from wallclock.reports.views.view import View

MACHINE = ("gpu_name", "gpu_driver", "gpu_power_limit_w", "gpu_clocks_locked", "cpu", "cpu_cores", "host")
SOFTWARE = ("python", "torch", "triton", "cuda")
READINGS = {"sm_clock_mhz": "MHz", "temperature_c": "C", "power_w": "W"}

VIEW = View()


@VIEW.table("places", title="Where and with what", heading="Where and with what", words=4)
def place_rows(samples: pd.DataFrame, runs: pd.DataFrame) -> Cells:
    """A row for each machine with each set of versions.

    Clocks, temperature and power are those of a GPU, read beside the samples; that it was slowed down by heat or its
    supply, and not by the power cap of any heavy load, would stand there too.
    """
    for _, group in runs.groupby([*MACHINE, *SOFTWARE], dropna=False, sort=False):
        one, notes = group.iloc[0], [note for notes in group["notes"] for note in notes if note.startswith(SLOWED)]
        own = samples[samples["run_id"].isin(group["run_id"])]
        ended = group["run_status"].value_counts(sort=False)
        commits = dict.fromkeys(
            f"{sha[:10]}{' with changes' if dirty else ''}"
            for sha, dirty in zip(group["git_sha"], group["git_dirty"], strict=True)
            if present(sha)
        )
        read = (_range(own[column], unit) for column, unit in READINGS.items())
        yield {
            "machine": stack_lines(*_gpu(one), f"{one['cpu']}, {one['cpu_cores']} cores"),
            "software": stack_lines(*(f"{name} {one[name]}" for name in SOFTWARE if present(one[name]))),
            "while measured": stack_lines(*read, *dict.fromkeys(notes)),
            "runs": stack_lines(
                ", ".join(f"{count} {status}" for status, count in ended.items()),
                " to ".join(dict.fromkeys((min(group["started_utc"])[:10], max(group["started_utc"])[:10]))),
                *(f"commit {commit}" for commit in commits),
            ),
        }


def _gpu(run: "pd.Series[Any]") -> list[str]:
    if not present(run["gpu_name"]):
        return []
    told = [str(run["gpu_name"])]
    told += [f"driver {run['gpu_driver']}"] if present(run["gpu_driver"]) else []
    told += [f"limit {run['gpu_power_limit_w']:,.0f} W"] if present(run["gpu_power_limit_w"]) else []
    locked = present(run["gpu_clocks_locked"]) and bool(run["gpu_clocks_locked"])
    return [*told, "clocks locked" if locked else "clocks not known to be locked"]


def _range(readings: "pd.Series[float]", unit: str) -> str:
    known = readings.dropna()
    ends = dict.fromkeys(f"{end:,.0f}" for end in (known.min(), known.max())) if len(known) else ()
    return f"{' to '.join(ends)} {unit}" if ends else ""
