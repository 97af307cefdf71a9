"""One self-contained HTML page from a set of runs: works offline and from a mail attachment, in dark and light."""

import base64
import gzip
import io
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wallclock.reports.format.text import (
    CLOCK,
    CYCLEGAN_LOSSES,
    NAMES,
    SUMMARY_NAMES,
    choice_rows,
    distinctions,
    interval_text,
    operator_rows,
    percent,
    percent_interval,
    present,
    significant,
)
from wallclock.reports.page import cost_plots, plots
from wallclock.reports.store.write import StoreError
from wallclock.reports.views.ablation import ablation_rows, flop_rows
from wallclock.reports.views.accuracy import leaderboard_rows
from wallclock.reports.views.calibration import calibration_rows
from wallclock.reports.views.comparison import comparison_rows
from wallclock.reports.views.history import history_rows, history_summary
from wallclock.reports.views.kernels import failed_rows, kernel_cells, static_rows
from wallclock.reports.views.loaders import loader_failures, loader_tables
from wallclock.reports.views.machines import SOFTWARE, place_rows
from wallclock.reports.views.scaling import scaling_rows
from wallclock.reports.views.summaries import other_metrics, summaries
from wallclock.reports.views.upsampling import checkerboard_rows, stage_rows, winner_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from markupsafe import Markup

    from wallclock.reports.store.pictures import Picture

# Above this many samples the page points at the Parquet instead of carrying them: it stays under 3 MB.
MOST_SAMPLES = 20_000
# All pictures together; where they are more, they are compressed, and then fewer: the page stays under 3 MB.
PICTURE_BYTES, QUALITIES = 400_000, (90, 80, 65)
PICTURE_WIDTH, WIDE_WIDTH = 520, 1060  # pixels that a small picture is enlarged to at most: half a row, a whole one
_WHERE = ("variant", "dataset", "device", "gpu_name", "cpu", "host")


def build_page(
    samples: "pd.DataFrame",
    runs: "pd.DataFrame",
    out: Path,
    pictures: "Sequence[Picture]" = (),
    *,
    summed: "dict[str, pd.DataFrame] | None" = None,
) -> Path:
    """Writes the report page.

    Args:
        samples: from `reports.load`; what it skipped (`attrs["skipped"]`) is listed on the page.
        runs: from `reports.load_runs`, of the same paths.
        out: the file to write; its directory is made.
        pictures: from `reports.load_pictures`, of the same paths.
        summed: from `reports.views.summaries`, of the same frames, where they are at hand; made here by default.

    Returns:
        `out`.

    Raises:
        StoreError: if it cannot be written.
    """
    import jinja2

    packer = ThreadPoolExecutor(1)  # zlib leaves the interpreter to the figures meanwhile
    plotly = packer.submit(lambda: _packed(_plotly_script()))
    of = summaries(samples, runs) if summed is None else summed
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    html = environment.get_template("page.html.j2").render(
        css=_template("page.css"),
        script=_template("page.js"),
        figures=_figures(samples, runs, of),
        comparisons=comparison_rows(of["comparisons"]),
        calibration=calibration_rows(of["calibration"]),
        flops=flop_rows(samples, of["levers"]),
        scaling=scaling_rows(samples),
        history=history_rows(history_summary(samples, runs)),
        verdicts=_verdicts(of["time_to_target"]),
        leaders=leaderboard_rows(of["time_to_target"]),
        operators=operator_rows(samples),
        kernels=kernel_cells(of["kernels"]),
        failed=failed_rows(samples),
        choices=choice_rows(samples),
        compiled=static_rows(samples),
        levers=ablation_rows(of["levers"]),
        galleries=_galleries(pictures),
        winners=winner_rows(of["upsampling"]),
        stages=stage_rows(of["upsampling"]),
        checkerboards=checkerboard_rows(samples),
        loaders=loader_tables(of["loaders"]),
        failed_loaders=loader_failures(samples),
        summary=_summary(other_metrics(of["summary"])),
        places=place_rows(samples, runs),
        runs=_runs(runs),
        skipped=list(samples.attrs.get("skipped", ())),
        n_samples=len(samples),
        samples_csv=_packed(_csv(samples)) if 0 < len(samples) <= MOST_SAMPLES else None,
        plotly=plotly.result(),
        made_utc=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}; choose another file") from None
    return out


def _breakable(value: object) -> "Markup":
    """Returns a cell's text, escaped, that paper may break after the _, + and = in its words; a screen does not."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=\w)[_+=](?=\w)", r"\g<0><wbr>", str(escape(value))))


def _template(name: str) -> str:
    return (resources.files("wallclock.reports.page") / "templates" / name).read_text(encoding="utf-8")


def _plotly_script() -> bytes:
    """Returns plotly.js from the installed package, found without `import plotly`, which takes 0.4 s."""
    spec = find_spec("plotly")
    assert spec is not None and spec.origin is not None, "plotly is a dependency"
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()


def _packed(content: bytes) -> str:
    # Level 4 packs plotly.js into 2.04 MB in 0.07 s; level 6 into 1.96 MB in 0.13 s.
    return base64.b64encode(gzip.compress(content, 4, mtime=0)).decode()


def _csv(samples: "pd.DataFrame") -> bytes:
    filled = samples.dropna(axis="columns", how="all")
    return filled.to_csv(index=False, float_format="%.10g").encode()


def _figures(samples: "pd.DataFrame", runs: "pd.DataFrame", of: "dict[str, pd.DataFrame]") -> dict[str, dict[str, Any]]:
    """Returns the figures there is data for, each with what a reader has to know beside it."""
    overheads = samples.loc[samples["metric"] == "phase_overhead", "value"].dropna()
    overhead = (
        f"Measured in a pass of its own; the timers cost {100 * overheads.median():+.1f}% a step, which the bars hold."
        if len(overheads)
        else "Measured in a pass of its own; the timers' overhead was not recorded."
    )
    made = {
        "ratios": (
            "Head against base",
            plots.ratios(of["comparisons"]),
            "The unit is the round: each side once, in fresh processes, in a drawn order. An interval that touches the "
            "band is no proof of a change beyond the tolerance.",
        ),
        "trends": (
            "History",
            plots.trends(samples, runs),
            "One line a series of one machine and setting, relative to its first run; diamonds are where it changed.",
        ),
        "variants": (
            "Variants against the first",
            plots.variant_rates(of["levers"]),
            "Rates within the same rounds over those of the recipe as it is, or of the plain loop: median with its 95% "
            "bootstrap interval.",
        ),
        "waterfall": (
            "From the plain loop to all levers",
            plots.waterfall(of["levers"]),
            "What leaving each lever out costs, as factors of the rate; together is what they do to each other.",
        ),
        "accuracy": (
            "Accuracy over time",
            plots.accuracy_over_time(samples),
            "One line a seed, at each evaluation; shaded is what lies between the lowest and the highest of three or "
            "more. The clock stands still during all evaluations but the last.",
        ),
        "target": (
            "Time to target",
            plots.time_to_target_dots(samples),
            "A dot is a seed; a cross is one that missed: its time is only a lower bound, and it counts. The diamond "
            "is the expected time when a miss is followed by another run (all time spent over hits), with its 95% "
            "bootstrap interval.",
        ),
        "points": (
            "What each point of accuracy costs",
            cost_plots.accuracy_points(samples),
            "Seconds of the train_eval clock from one whole percent to the next, when each was first reached, on "
            "straight lines between evaluations; median of the seeds.",
        ),
        "flops-seconds": (
            "Operations and the time they take",
            cost_plots.flops_against_seconds(of["levers"]),
            "A step of each variant: what lies to the left and above takes fewer operations and more time.",
        ),
        "roofline": (
            "Kernels against the speed of a copy",
            cost_plots.roofline(of["kernels"]),
            "Each variant's time over the bytes that it should move; the line is what a copy takes for as many, "
            "measured in the same run. What lies below it finds its bytes in a cache. A whisker reaches to the bytes "
            "counted at its operators.",
        ),
        "speedups": (
            "Kernels: times as fast as eager",
            cost_plots.speedup_map(of["kernels"]),
            "Hot cache, forward and backward where there is one. Blue is faster than eager PyTorch, orange slower.",
        ),
        "phases": ("Where a step's time goes", plots.phase_breakdown(samples), overhead),
        "loaders": (
            "Loaders alone",
            plots.loader_rates(samples),
            "Median images a second over whole epochs that nobody trains on, with a 95% interval. Longer is better.",
        ),
        "stalls": (
            "What a training step waits for",
            plots.loader_stalls(samples),
            "Median time of a step, and the part of it that waits for its batch. The held batch has no pipeline: what "
            "other steps take beyond it is what their pipelines cost.",
        ),
        "loss": ("Training loss", plots.training_loss(samples), "One line a seed; long lines show means of stretches."),
    }
    made |= {
        "distance": (
            "WGAN: estimated distance",
            plots.loss_curves(samples, "wgan", ("em_train", "em_held_out"), "estimate, D(fake) - D(x)", "critic steps"),
            "The critic's estimate of the earth mover's distance, up to its slope. A distance to held-out images that "
            "stays above that to training images shows learning by heart.",
        ),
        "wgan-loss": (
            "WGAN: losses",
            plots.loss_curves(samples, "wgan", ("critic_loss", "generator_loss"), "loss", "critic steps"),
            "The critic's is D(real) - D(fake), averaged over the steps before each generator step; the generator's is "
            "D(fake).",
        ),
        "cycles": (
            "CycleGAN: there and back",
            plots.loss_curves(
                samples, "cyclegan", ("cycle_error", "cycle_error_with_noise"), "mean absolute error", "iterations"
            ),
            "Test images against their translation there and back, in a range of 2. Far more error with noise on the "
            "translation says that the way back reads what the translation hides, not what it shows.",
        ),
        "cyclegan-loss": (
            "CycleGAN: losses",
            plots.loss_curves(samples, "cyclegan", CYCLEGAN_LOSSES, "loss, as it is weighted", "iterations"),
            "Of the generators together, and of each discriminator.",
        ),
    }
    return {
        name: {"title": title, "figure": json.loads(_json(figure)), "caption": caption}
        for name, (title, figure, caption) in made.items()
        if figure is not None
    }


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=float)


def _verdicts(scores: "pd.DataFrame") -> list[dict[str, Any]]:
    """Returns a card for each recipe and target, in words and figures that the statistics back."""
    cards = []
    distinguished = distinctions(scores.loc[:, :"target"], [*NAMES, "target"])
    for row, told in zip(scores.to_dict("records"), distinguished, strict=True):
        target, n, hits = row["target"], row["n"], row["hits"]
        p, time = row["p_value"], row.get(CLOCK, math.inf)
        if not hits:
            kind, word = "bad", "target missed"
        elif p < 0.05:
            kind, word = "good", "mean at or above target"
        else:
            kind, word = "open", "not shown"
        reasons = {
            "bad": f"No run of {n} reached {percent(target)}: the time to target is unknown.",
            "good": f"The runs show that the mean accuracy is at least {percent(target)} (p = {significant(p)}).",
            "open": f"{n} run{'s do' if n > 1 else ' does'} not show a mean accuracy of at least {percent(target)} "
            + (f"(p = {significant(p)})." if p == p else "(a test needs two different results)."),
        }
        details = [
            (
                "Reached",
                f"{hits} of {n}"
                + (f"\n{row['diverged']} diverged (0%)" if row["diverged"] else "")
                + (f"\n{row['repeats']} repeated" if row["repeats"] else ""),
            ),
            ("P(reach)", f"{100 * row['hit_share']:.0f}%\n{percent_interval(row['hit_low'], row['hit_high'], 0)}"),
            (
                "Mean accuracy",
                f"{100 * row['mean_accuracy']:.2f}%\n{percent_interval(row['accuracy_low'], row['accuracy_high'])}",
            ),
            ("p (mean ≥ target)", significant(p, 2)),
        ]
        cards.append(
            {
                "name": row["case"] or row["benchmark"],
                "where": " · ".join([*(str(row[k]) for k in _WHERE if present(row.get(k))), *told]),
                "target": percent(target),
                "kind": kind,
                "word": word,
                "reason": reasons[kind],
                "time": f"{significant(time)} s" if time < math.inf else "unknown",
                "interval": interval_text(row.get(f"{CLOCK}_low"), row.get(f"{CLOCK}_high"), " s"),
                "details": details,
            }
        )
    return cards


def _galleries(pictures: "Sequence[Picture]") -> dict[str, list[dict[str, Any]]]:
    """Returns the pictures under their titles, small ones enlarged by a whole number so that each pixel is a square."""
    galleries: dict[str, list[dict[str, Any]]] = {}
    for picture, (kind, content) in zip(*_fitting(pictures), strict=True):
        wide = picture.width > 1.6 * picture.height
        times = max(1, (WIDE_WIDTH if wide else PICTURE_WIDTH) // max(1, picture.width))
        note = "" if kind == "png" else f" Compressed here; whole in pictures/{picture.name}.png of the run."
        shown = {"caption": picture.caption + note, "width": times * picture.width, "wide": wide}
        shown["source"] = f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if content else ""
        galleries.setdefault(picture.title, []).append(shown)
    return galleries


def _fitting(pictures: "Sequence[Picture]") -> "tuple[list[Picture], list[tuple[str, bytes]]]":
    """Returns pictures and their files such that these fit: as they are, or compressed, or the first and last of many.

    Small ones stay as they are, since a checkerboard does not survive compression; the largest are compressed first.
    """
    kept, files = list(pictures), [("png", picture.png) for picture in pictures]

    def size() -> int:
        return sum(len(content) for _, content in files)

    for quality in QUALITIES:
        for place in sorted(range(len(kept)), key=lambda place: -len(kept[place].png)):
            if size() <= PICTURE_BYTES:
                return kept, files
            if kept[place].png:
                files[place] = ("webp", _compressed(kept[place].png, quality))
    while size() > PICTURE_BYTES and len(kept) > 2:
        middle = [place for place in range(1, len(kept) - 1) if place % 2]
        kept, files = ([of[place] for place in range(len(of)) if place not in middle] for of in (kept, files))  # type: ignore[assignment]
    return kept, files


def _compressed(png: bytes, quality: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(out, "WEBP", quality=quality)
    return out.getvalue()


def _summary(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    distinguished = distinctions(rows.loc[:, :"better"], SUMMARY_NAMES)
    return [
        {
            "benchmark": row["benchmark"],
            "case": row["case"],
            "variant": row.get("variant") or "",
            "parameters": ", ".join(told),
            "metric": row["metric"],
            "n": row["n"],
            "failed": row["failed"],
            "censored": row["censored"],
            "median": row["median"] if row["n"] else None,
            "median_text": significant(row["median"], 4) if row["n"] else "none",
            "interval": interval_text(row["ci_low"], row["ci_high"]) if row["n"] > 1 else "",
            "unit": row["unit"],
            "better": row["better"],
        }
        for row, told in zip(rows.to_dict("records"), distinguished, strict=True)
    ]


def _runs(runs: "pd.DataFrame") -> list[dict[str, Any]]:
    """Returns what is to be known about each run: a line for the table, and all else folded away."""
    first = ("run_id", "run_status", "started_utc", "host")
    table = []
    for row in runs.to_dict("records"):
        software = [f"{k} {row[k]}" for k in SOFTWARE if present(row.get(k))]
        sha = str(row["git_sha"])[:10] if present(row.get("git_sha")) else "not from a checkout"
        rest = {k: v for k, v in row.items() if k not in first and present(v) and v not in ({}, (), [])}
        table.append(
            {
                **{k: row.get(k, "") for k in first},
                "device": row["gpu_name"] if present(row.get("gpu_name")) else row["cpu"],
                "software": ", ".join(software),
                "source": sha + (" with changes" if row.get("git_dirty") is True else ""),
                "rest": {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in rest.items()},
            }
        )
    return table
