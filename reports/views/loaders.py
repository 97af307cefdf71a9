"""What the samples of `wallclock run loaders` come to: one table for each regime, as figures of two do not compare."""

import math
from typing import TYPE_CHECKING, Any

from wallclock.reports.format.text import Rows, interval_text, significant
from wallclock.reports.stats.intervals import median_interval
from wallclock.reports.store.schema import PLACE

if TYPE_CHECKING:
    import pandas as pd

HELD = "held batch"
DEVICE = "device"
GROUP = ("regime", "form", "batch_size", "dataset", "set_images", "device", *PLACE)
# What is compared within a regime, and its factor to the unit shown.
KEY = {"one image": ("image_time", 1e6), "alone": ("images_per_s", 1.0), "training": ("step_time", 1e3)}
KEY |= {"first batch": ("first_batch", 1e3)}


def loader_summary(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Returns one row for each pipeline of each regime, form and batch size.

    Args:
        frame: from `reports.load`.

    Returns:
        Columns `regime`, `form`, `batch_size`, `pipeline`, `dataset`, `set_images`, `device`, those of `PLACE`, `n`,
        `value` with `low` and `high` (microseconds an image, images/s, or milliseconds of a step or of a first batch),
        `x_device` (how many times as fast `device` is), `cpu_us` (CPU time an image), `added_mb`, `workers`, `stall`
        (share of a step that waits for its batch) and `growth` (of a step against one on a held batch).
    """
    import pandas as pd

    measured = frame[(frame["benchmark"] == "loaders") & (frame["status"] == "ok")]
    if measured.empty or "regime" not in measured:
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for key, group in measured.groupby(list(GROUP), dropna=False, sort=False, observed=True):
        place = dict(zip(GROUP, key, strict=True))
        if place["regime"] not in KEY:
            continue
        metric, factor = KEY[place["regime"]]
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


def loader_tables(summary: "pd.DataFrame") -> dict[str, Rows]:
    """Returns the header and the cells of each regime's table by its title, narrow enough for a terminal.

    Args:
        summary: from `loader_summary`.
    """
    if summary.empty:
        return {}
    titled: dict[str, Rows] = {}
    for regime, title, header in (
        ("one image", "Loaders, one image at a time in one process", ["us", "95% interval"]),
        ("alone", "Loaders alone", ["images/s", "95% interval", "CPU us", "MB", "procs"]),
        ("first batch", "Loaders, latency of the first batch", ["ms", "95% interval"]),
        ("training", "Loaders while the device trains", ["step ms", "95% interval", "growth", "stall"]),
    ):
        own = summary[summary["regime"] == regime]
        if own.empty:
            continue
        rows = []
        for _, row in own.iterrows():
            interval = interval_text(row["low"], row["high"]) if row["n"] > 1 else ""
            cells = [significant(row["value"], 4), interval]
            if regime == "alone":
                workers = "" if _missing(row["workers"]) else f"{row['workers']:.0f}"
                cells += [_or_nothing(row["cpu_us"]), _or_nothing(row["added_mb"], 2), workers]
            if regime == "training":
                cells += [_percent(row["growth"]), _percent(row["stall"], sign="")]
            size = [] if regime == "one image" else [f"{row['batch_size']:.0f}"]
            times = [] if regime == "training" else [_or_nothing(row["x_device"])]
            rows.append([row["form"], *size, row["pipeline"], *cells, *times])
        first = ["form", *([] if regime == "one image" else ["batch"]), "pipeline"]
        titled[title] = [*first, *header, *([] if regime == "training" else ["x device"])], rows
    return titled


def loader_failures(frame: "pd.DataFrame") -> Rows:
    """Returns the header and the cells of the table of pipelines that are wrong or could not run, with the reason.

    Args:
        frame: from `reports.load`.
    """
    failed = frame[(frame["benchmark"] == "loaders") & (frame["status"] == "failed")]
    distinct = failed.drop_duplicates(["case", "variant", "error"])
    return ["case", "variant", "error"], [
        [str(row["case"]), str(row["variant"]), str(row["error"])] for _, row in distinct.iterrows()
    ]


def loader_labels(summary: "pd.DataFrame") -> list[str]:
    """Returns for each row a label of form, batch size and pipeline."""
    return [f"{r['form']} · {r['batch_size']:.0f} · {r['pipeline']}" for _, r in summary.iterrows()]


def _missing(value: Any) -> bool:
    return value is None or value != value


def _or_nothing(value: float, digits: int = 3) -> str:
    return "" if _missing(value) else significant(value, digits)


def _percent(share: float, sign: str = "+") -> str:
    return "" if _missing(share) else f"{100 * share:{sign}.1f}%"
