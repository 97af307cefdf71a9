"""Kernels compiled for GPUs that this machine need not have."""

import pandas as pd

from wallclock.reports.format.text import Cells
from wallclock.reports.views.view import View

FIGURES = {  # metrics by column
    **{"regs": "registers", "spill": "spilled_bytes", "instr": "instructions"},
    **{"shared": "shared_bytes", "load": "load_bytes", "store": "store_bytes"},
}
VIEW = View(("static",), tabled=("static",))


@VIEW.table(
    "compiled",
    title="Compiled kernels: the worst of n forms, in bytes, and bytes a thread",
    heading="Compiled kernels",
    words=2,
)
def static_rows(samples: pd.DataFrame) -> Cells:
    """The worst of the n forms of a kernel for a GPU of compute capability sm.

    Registers of a thread, bytes spilled, instructions of its code, shared memory of a program, bytes of a thread's
    widest load and store, share of a multiprocessor's warps that fit.
    """
    static = samples[samples["benchmark"] == "static"]
    if static.empty:  # without rows there is no column "architecture"
        return
    static = static.assign(
        case=static["case"].str.removesuffix("_kernel"),
        architecture=static["architecture"].str.removeprefix("sm_").astype(int),
    )
    for (kernel, sm, _), group in static.groupby(["case", "architecture", "run_id"], observed=True):
        worst = {
            name: (values.min() if better == "higher" else values.max())
            for (name, better), values in group.groupby(["metric", "better"], observed=True)["value"]
        }
        yield {
            **{"kernel": str(kernel), "sm": str(sm), "n": str((group["metric"] == "registers").sum())},
            **{column: f"{worst[name]:.0f}" if name in worst else "" for column, name in FIGURES.items()},
            "warps": f"{100 * worst['occupancy']:.0f}%",
        }
