"""Kernels compiled for GPUs that this machine need not have."""

import pandas as pd

from wallclock.reports.format.text import Rows
from wallclock.reports.views.view import View

VIEW = View(("static",), tabled=("static",))


@VIEW.table(
    "compiled",
    title="Compiled kernels: the worst of n forms, in bytes, and bytes a thread",
    heading="Compiled kernels",
    words=2,
)
def static_rows(samples: pd.DataFrame) -> Rows:
    """The worst of the n forms of a kernel for a GPU of compute capability sm.

    Registers of a thread, bytes spilled, instructions of its code, shared memory of a program, bytes of a thread's
    widest load and store, share of a multiprocessor's warps that fit.
    """
    header = ["kernel", "sm", "n", "regs", "spill", "instr", "shared", "load", "store", "warps"]
    static = samples[samples["benchmark"] == "static"]
    rows: list[list[str]] = []
    if static.empty:  # without rows there is no column "architecture"
        return header, rows
    for key, group in static.groupby(["case", "architecture", "run_id"], sort=False, observed=True):
        worst = {
            name: (values.min() if better == "higher" else values.max())
            for (name, better), values in group.groupby(["metric", "better"], observed=True)["value"]
        }
        names = ("registers", "spilled_bytes", "instructions", "shared_bytes", "load_bytes", "store_bytes")
        figures = [f"{worst[name]:.0f}" if name in worst else "" for name in names]
        forms = str((group["metric"] == "registers").sum())
        rows.append(
            [
                str(key[0]).removesuffix("_kernel"),
                str(key[1]).removeprefix("sm_"),
                forms,
                *figures,
                f"{100 * worst['occupancy']:.0f}%",
            ]
        )
    rows.sort(key=lambda row: (row[0], int(row[1])))
    return header, rows
