"""Loaders: one table for each regime, since figures of different regimes do not compare."""

import functools
import math
from typing import Any

import pandas as pd

from wallclock.reports.format.plotly import COLOURS, Figure, bar, errors, escape, json_numbers, stacked_bars
from wallclock.reports.format.text import Cells, interval_text, or_nothing, rounded_percent, significant, tabulated
from wallclock.reports.stats.intervals import median_interval
from wallclock.reports.store.schema import PLACE
from wallclock.reports.views.view import View

HELD = "held batch"
DEVICE = "device"
GROUP = ("regime", "form", "batch_size", "dataset", "set_images", "device", *PLACE)
# By regime: the metric that is compared within it, its factor to the unit shown, that unit, and the table's title.
REGIMES = {
    "one image": ("image_time", 1e6, "us", "Loaders, one image at a time in one process"),
    "alone": ("images_per_s", 1.0, "images/s", "Loaders alone"),
    "first batch": ("first_batch", 1e3, "ms", "Loaders, latency of the first batch"),
    "training": ("step_time", 1e3, "step ms", "Loaders while the device trains"),
}

VIEW = View(("loaders",), tabled=("loaders",))


@VIEW.summary("loaders", "a row a pipeline and regime: images a second, latency, stall")
def loader_summary(samples: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each pipeline of each regime, form and batch size.

    Returns:
        Columns `regime`, `form`, `batch_size`, `pipeline`, `dataset`, `set_images`, `device`, those of `PLACE`, `n`,
        `value` with `low` and `high` (microseconds an image, images/s, or milliseconds of a step or of a first batch),
        `x_device` (how many times as fast `device` is), `cpu_us` (CPU time an image), `added_mb`, `workers`, `stall`
        (share of a step that waits for its batch) and `growth` (of a step against one on a held batch).
    """
    measured = samples[(samples["benchmark"] == "loaders") & (samples["status"] == "ok")]
    if measured.empty or "regime" not in measured:
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for key, group in measured.groupby(list(GROUP), dropna=False, sort=False, observed=True):
        place = dict(zip(GROUP, key, strict=True))
        if place["regime"] not in REGIMES:
            continue
        metric, factor, *_ = REGIMES[place["regime"]]
        medians = group[group["metric"] == metric].groupby("variant", observed=True)["value"].median()
        for pipeline, own in group.groupby("variant", sort=False, observed=True):
            values = own[own["metric"] == metric]["value"]
            if values.empty:
                continue
            middle, other = median_interval(values), own.groupby("metric", observed=True)["value"]
            at = {name: float(value) for name, value in other.median().items()}
            ratio = medians.get(DEVICE, math.nan) / middle.value
            rows.append(
                place
                | {"pipeline": pipeline, "n": len(values), "value": factor * middle.value}
                | {"low": factor * middle.low, "high": factor * middle.high}
                | {"x_device": ratio if place["regime"] == "alone" else 1 / ratio}
                | {"cpu_us": 1e6 * at.get("cpu_time", math.nan), "added_mb": 1e-6 * at.get("added_memory", math.nan)}
                | {"stall": at.get("stall", math.nan) if pipeline != HELD else math.nan}
                | {"growth": middle.value / medians.get(HELD, math.nan) - 1 if pipeline != HELD else math.nan}
                | {"workers": own["workers"].iloc[0] if "workers" in own else math.nan}
            )
    return pd.DataFrame(rows)


@tabulated
def loader_rows(loaders: pd.DataFrame, regime: str) -> Cells:
    """Medians with distribution-free 95% intervals; each regime stands for itself.

    x device is how many times as fast the device-resident pipeline is. CPU us is the CPU time an image of all
    processes; MB what opening the pipeline added to their memory. Growth is a step against one on a batch held in
    memory, stall the share of a step that waits for its batch.
    """
    for row in loaders[loaders["regime"] == regime].to_dict("records") if len(loaders) else ():
        cells = {"form": row["form"]} | ({} if regime == "one image" else {"batch": f"{row['batch_size']:.0f}"})
        cells |= {"pipeline": row["pipeline"], REGIMES[regime][2]: significant(row["value"], 4)}
        cells |= {"95% interval": interval_text(row["low"], row["high"]) if row["n"] > 1 else ""}
        if regime == "alone":
            cells |= {"CPU us": or_nothing(row["cpu_us"]), "MB": or_nothing(row["added_mb"], 2)}
            cells |= {"procs": or_nothing(row["workers"], 1)}
        if regime == "training":
            cells |= {"growth": rounded_percent(row["growth"], "+.1f"), "stall": rounded_percent(row["stall"], ".1f")}
        else:
            cells |= {"x device": or_nothing(row["x_device"])}
        yield cells


for _number, (_regime, (*_, _title)) in enumerate(REGIMES.items(), start=1):
    _rows = functools.update_wrapper(functools.partial(loader_rows, regime=_regime), loader_rows)
    VIEW.table(f"loaders-{_number}", title=_title, heading=_title, words=2)(_rows)


@VIEW.table(
    "failed-loaders", title="Loaders that failed, and are left out above", heading="Loaders that failed", words=3
)
def loader_failures(samples: pd.DataFrame) -> Cells:
    """Pipelines that are wrong or could not run: they are in no table."""
    failed = samples[(samples["benchmark"] == "loaders") & (samples["status"] == "failed")]
    for row in failed[["case", "variant", "error"]].drop_duplicates().to_dict("records"):
        yield {str(column): str(cell) for column, cell in row.items()}


@VIEW.figure("loaders", "Loaders alone")
def loader_rates(loaders: pd.DataFrame) -> Figure | None:
    """Median images a second over whole epochs that nobody trains on, with a 95% interval.

    Longer is better.
    """
    alone = loaders[loaders["regime"] == "alone"] if len(loaders) else loaders
    if alone.empty:
        return None
    whiskers = errors(alone["high"] - alone["value"], alone["value"] - alone["low"], thickness=1.5)
    return _bars(alone, [("", alone["value"], COLOURS[0])], "images a second", error_x=whiskers)


@VIEW.figure("stalls", "What a training step waits for")
def loader_stalls(loaders: pd.DataFrame) -> Figure | None:
    """Median time of a step, and the part of it that waits for its batch.

    The held batch has no pipeline: what other steps take beyond it is what their pipelines cost.
    """
    training = loaders[loaders["regime"] == "training"] if len(loaders) else loaders
    if training.empty:
        return None
    stalled = training["value"] * training["stall"].fillna(0.0)
    parts = [("computing", training["value"] - stalled, COLOURS[0]), ("waiting for the batch", stalled, COLOURS[1])]
    return _bars(training, parts, "milliseconds a step")


def _bars(summary: pd.DataFrame, parts: list[tuple[str, pd.Series, str]], title: str, **more: Figure) -> Figure:
    labels = [escape(f"{r['form']} · {r['batch_size']:.0f} · {r['pipeline']}") for _, r in summary.iterrows()]
    traces = [
        bar(name, json_numbers(values), labels, colour, f"%{{y}}: %{{x:.4g}} {title}<extra>{name}</extra>", **more)
        for name, values, colour in parts
    ]
    return stacked_bars(traces, labels, title, 30, showlegend=len(parts) > 1)
