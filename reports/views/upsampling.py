"""Upsampling: the fastest and the cleanest variant at each stage, and all checkerboards."""

import math
from typing import Any

import pandas as pd

from wallclock.reports.format.text import Cells, or_nothing, percent, significant
from wallclock.reports.store.schema import PLACE
from wallclock.reports.views.kernels import kernel_summary
from wallclock.reports.views.view import View

BENCHMARK = "upsampling"
CHECKERBOARDS = ("constant_spread", "phase_share", "spectral_peak")
CLEAN = 0.01  # spread, as a share of the map's mean, below which a layer lays no grid
NCHW = "_nchw"
STAGE = ["stage", "dtype", "layout", *PLACE]

VIEW = View((BENCHMARK,), tabled=(*CHECKERBOARDS, "parameter_count"))


@VIEW.summary("upsampling", "a row a stage and way: times, memory, checkerboards")
def upsampling_summary(samples: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each variant of each stage, type and layout, with a hot cache.

    A variant that has failed its reference check has no row.

    Returns:
        Columns `stage` ("512 at 4 px": channels and edge of the input), `dtype`, `layout`, `kind`, those of `PLACE`,
        `forward_us`, `backward_us`, `both_us` (medians) with `both_low_us` and `both_high_us`, `x_nearest` (times that
        "nearest" of the same layout takes as long), `saved_mb` (kept for backward), `peak_mb` (GPU), `weights`,
        `spread` (`bench.cases.upsampling.checkerboard`: of the trained layer at the same map where there is one, else
        at the start), `fastest` (its 95% interval reaches that of the lowest median) and `clean`.
    """
    times = kernel_summary(samples, BENCHMARK)
    if times.empty:
        return pd.DataFrame()
    own = samples[samples["benchmark"] == BENCHMARK]
    rows: list[dict[str, Any]] = []
    for key, group in times.groupby(["case", "dtype", "variant", *PLACE], dropna=False, sort=False, observed=True):
        found = dict(zip(["case", "dtype", "variant", *PLACE], key, strict=True))
        case, variant = str(found.pop("case")), str(found.pop("variant"))
        this = own[(own["case"] == case) & (own["variant"] == variant) & (own["dtype"] == found["dtype"])]
        ways = {row["direction"]: row for row in group.to_dict("records")}
        if "both" not in ways:
            continue
        _, channels, edge, _ = case.rpartition(" ")[2].split("x")
        both, kind = ways["both"], variant.removesuffix(NCHW)
        rows.append(
            {"stage": f"{channels} at {edge} px", "layout": "nchw" if variant.endswith(NCHW) else "nhwc"}
            | found
            | {"kind": kind, **{f"{way}_us": row["latency_us"] for way, row in ways.items()}}
            | {"both_low_us": both["latency_low_us"], "both_high_us": both["latency_high_us"]}
            | {"saved_mb": both["saved_mb"], "peak_mb": both["peak_mb"]}
            | {"weights": _median(this, "parameter_count"), "spread": _spread(own, this, kind, int(edge))}
        )
    table = pd.DataFrame(rows)
    table["x_nearest"], table["fastest"] = math.nan, False
    for _, part in table.groupby(STAGE, dropna=False, sort=False):
        nearest = part.loc[part["kind"] == "nearest", "both_us"]
        if len(nearest):
            table.loc[part.index, "x_nearest"] = nearest.iloc[0] / part["both_us"]
        best = part.sort_values("both_us").iloc[0]
        table.loc[part.index, "fastest"] = part["both_low_us"] <= best["both_high_us"]
    table["clean"] = table["spread"] < CLEAN
    return table


def _median(samples: pd.DataFrame, metric: str) -> float:
    return float(samples.loc[samples["metric"] == metric, "value"].median())


def _spread(own: pd.DataFrame, this: pd.DataFrame, kind: str, edge: int) -> float:
    if "stage" in own:
        trained = own[(own["variant"] == kind) & (own["stage"] == edge) & (own["training_steps"] > 0)]
        if len(trained):
            return _median(trained, "constant_spread")
    return _median(this, "constant_spread")


@VIEW.table(
    "winners",
    title="Upsampling: forward and backward; which is fastest, and which lays no grid",
    heading="Upsampling: the fastest and the cleanest",
    words=3,
)
def winner_rows(upsampling: pd.DataFrame) -> Cells:
    """Forward and backward of each stage of DCGAN's generator, batch 64, in ms.

    Where the 95% intervals of several reach the lowest median's, all are named as fastest. Cleanest are those that lay
    less than 1% of a grid over a constant map, after a short training where a layer of the same map was trained, else
    at the start.
    """
    if upsampling.empty:
        return
    for _, group in upsampling.groupby(STAGE, dropna=False, sort=False):
        ranked = group.sort_values("both_us").to_dict("records")
        least = min(row["spread"] for row in ranked)
        clean = [row for row in ranked if row["clean"] or row["spread"] == least]
        yield {
            "stage": _name(ranked[0]),
            "fastest": ", ".join(row["kind"] for row in ranked if row["fastest"]),
            "cleanest, fastest first": ", ".join(row["kind"] for row in clean),
            "ms fastest": significant(ranked[0]["both_us"] / 1e3),
            "ms cleanest": significant(clean[0]["both_us"] / 1e3),
            "x fastest": significant(clean[0]["both_us"] / ranked[0]["both_us"]),
        }


def _name(row: dict[Any, Any]) -> str:
    return f"{row['stage']}\n{row['dtype']} {row['layout']}"


@VIEW.table(
    "stages", title="Upsampling: ms; MB kept for backward", heading="Upsampling: five ways at each stage", words=2
)
def stage_rows(upsampling: pd.DataFrame) -> Cells:
    """Medians in ms; x nearest is how many times as long resize and convolution takes in the same layout.

    MB kept for backward. Weights in thousands.
    """
    for row in upsampling.to_dict("records"):
        figures = {way: row.get(f"{way}_us", math.nan) / 1e3 for way in ("forward", "backward", "both")}
        figures |= {"x nearest": row["x_nearest"], "saved": row["saved_mb"]}
        yield {
            **{"stage": _name(row), "kind": str(row["kind"])},
            **{column: or_nothing(value) for column, value in figures.items()},
            "weights": "" if math.isnan(row["weights"]) else f"{row['weights'] / 1e3:,.0f}k",
        }


@VIEW.table(
    "checkerboards",
    title="Checkerboards at (0, pi), (pi, 0), (pi, pi), before and after training",
    heading="Upsampling: checkerboards",
)
def checkerboard_rows(samples: pd.DataFrame) -> Cells:
    """Of a small GAN before and after a fixed short training.

    Spread: standard deviation between the four phases of a 2x2 grid over the mean, for a constant map, in the worst
    layer. Share: variance of the images, and of the critic's gradient dD/dx at real images, that the phase explains.
    Peak: the largest power at (0, π), (π, 0) and (π, π) over its neighbouring band, of images relative to real ones, of
    the gradient as it is (noise has 1). In the pictures, spectra run from -20 dB (black) to +20 dB (white), the images'
    over that of real ones, the gradient's over its median; frequency zero is top left, the checkerboard's in the
    middle; the residue is what differs from the mean of each 2x2 pixels.
    """
    own = samples[
        (samples["benchmark"] == BENCHMARK)
        & samples["metric"].isin((*CHECKERBOARDS, "parameter_count"))
        & (samples["status"] == "ok")
    ]
    if own.empty or "image_size" not in own or own["image_size"].isna().all():
        return
    own = own[own["image_size"].notna()]
    keys = ["run_id", "case", "dataset", "variant", "training_steps"]
    several = own[["run_id", "case", "dataset"]].drop_duplicates().shape[0] > 1
    for key, group in own.groupby(keys, dropna=False, sort=False, observed=True):
        run_id, case, _, kind, steps = (str(part) for part in key)

        def of(metric: str, what: str, group: pd.DataFrame = group) -> pd.Series:
            return group.loc[(group["metric"] == metric) & (group["of"] == what), "value"]

        def peak(what: str, group: pd.DataFrame = group) -> str:
            found = group[(group["metric"] == "spectral_peak") & (group["of"] == what)]
            return "" if found.empty else significant(found.groupby("peak")["value"].median().max(), 2)

        spread = of("constant_spread", "layer")
        yield {
            "kind": f"{kind}\n{case} {run_id[-8:]}" if several else str(kind),
            "steps": "" if steps == "nan" else f"{float(steps):.0f}",
            "spread": "" if spread.empty else f"{spread.max():.3f}",
            "share": _share(of("phase_share", "images")),
            "peak x real": peak("images"),
            "dD/dx: share": _share(of("phase_share", "gradient")),
            "peak x noise": peak("gradient"),
        }


def _share(values: pd.Series) -> str:
    return "" if values.empty else percent(round(float(values.median()), 4))
