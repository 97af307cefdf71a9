"""Builds one self-contained HTML page from a set of runs, which works offline and by mail, in dark and light."""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wallclock.reports.format.labels import distinctions
from wallclock.reports.format.text import interval_text, present, significant
from wallclock.reports.page.cards import score_cards
from wallclock.reports.page.galleries import galleries
from wallclock.reports.store.layout import StoreError
from wallclock.reports.views.machines import SOFTWARE
from wallclock.reports.views.registry import VIEWS
from wallclock.reports.views.summaries import SUMMARY_NAMES, other_metrics
from wallclock.reports.views.view import Records, in_order

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from wallclock.reports.store.pictures import Picture

# Above this many samples the page refers to the Parquet files and leaves them out, to stay under 3 MB.
MOST_SAMPLES = 20_000
# Order of figures, and of tables, by name; one that is not listed comes before the last.
FIGURES = (
    *("ratios", "trends", "variants", "waterfall", "accuracy", "target", "points", "flops-seconds", "roofline"),
    *("speedups", "phases", "loaders", "stalls", "loss", "distance", "wgan-loss", "cycles", "cyclegan-loss"),
)
TABLES = (
    *("leaders", "kernels", "operators", "winners", "stages", "checkerboards"),
    *("loaders-1", "loaders-2", "loaders-3", "loaders-4", "failed-loaders", "failed-kernels", "choices", "compiled"),
    *("comparisons", "calibration", "history", "flops", "scaling", "levers", "places"),
)


def build_page(samples: "pd.DataFrame", runs: "pd.DataFrame", out: Path, pictures: "Sequence[Picture]" = ()) -> Path:
    """Writes the report page to `out`, whose directory is made, and returns that path.

    All come from the same paths: samples from `reports.load`, runs from `load_runs`, pictures from `load_pictures`.
    Files that `reports.load` skipped (`samples.attrs["skipped"]`) are listed on the page.

    Raises:
        StoreError: if the file cannot be written.
    """
    return write_page(Records(samples, runs, VIEWS), out, pictures)


def write_page(records: Records, out: Path, pictures: "Sequence[Picture]") -> Path:
    """Writes the report page from records; see `build_page`."""
    import jinja2

    packer = ThreadPoolExecutor(1)  # zlib leaves the interpreter to the figures meanwhile
    plotly = packer.submit(lambda: _packed(_plotly_script()))
    samples = records.samples
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    html = environment.get_template("page.html.j2").render(
        css=_template("page.css"),
        script=_template("page.js"),
        cards=score_cards(records.frame("time_to_target")),
        figures=_figures(records),
        tables=_tables(records),
        galleries=galleries(pictures),
        summary=_summary(records.make(other_metrics)),
        runs=_runs(records.runs),
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
    """Returns a cell's escaped text with break points after the _, + and = in its words, used on paper alone."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=\w)[_+=](?=\w)", r"\g<0><wbr>", str(escape(value))))


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _plotly_script() -> bytes:
    """Returns plotly.js from the installed package, found without `import plotly`, which takes 0.4 s."""
    spec = find_spec("plotly")
    assert spec is not None and spec.origin is not None, "plotly is a dependency"
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()


def _packed(content: bytes) -> str:
    # Level 4 packs plotly.js into 2.04 MB in 0.07 s; level 6 into 1.96 MB in 0.13 s.
    return base64.b64encode(gzip.compress(content, 4, mtime=0)).decode()


def _csv(samples: "pd.DataFrame") -> bytes:
    return samples.dropna(axis="columns", how="all").to_csv(index=False, float_format="%.10g").encode()


def _figures(records: Records) -> dict[str, dict[str, Any]]:
    """Returns the figures that the records have data for, each with its title and caption."""
    made = {}
    for figure in in_order((figure for view in records.shown for figure in view.figures), FIGURES):
        if (drawn := records.make(figure.make)) is not None:
            drawn = json.loads(json.dumps(drawn, allow_nan=False, default=float))
            caption = drawn.pop("caption", figure.caption)
            made[figure.name] = {"title": figure.heading, "figure": drawn, "caption": caption}
    return made


def _tables(records: Records) -> dict[str, dict[str, Any]]:
    """Returns the page's non-empty tables, with header and cells."""
    headed = (table for view in records.shown for table in view.tables if table.heading)
    made = ((table, *records.make(table.make)) for table in in_order(headed, TABLES))
    return {table.name: {"table": table, "header": header, "rows": rows} for table, header, rows in made if rows}


def _summary(rows: "pd.DataFrame") -> list[dict[Any, Any]]:
    """Returns the rows of the table of all measurements, with formatted text for some of their figures."""
    distinguished = distinctions(rows.loc[:, :"better"], SUMMARY_NAMES)
    return [
        row
        | {"variant": row.get("variant") or "", "parameters": ", ".join(told)}
        | {"median": row["median"] if row["n"] else None}
        | {"median_text": significant(row["median"], 4) if row["n"] else "none"}
        | {"interval": interval_text(row["ci_low"], row["ci_high"]) if row["n"] > 1 else ""}
        for row, told in zip(rows.to_dict("records"), distinguished, strict=True)
    ]


def _runs(runs: "pd.DataFrame") -> list[dict[str, Any]]:
    """Returns a table row for each run, with the remaining fields under "rest", which the page folds away."""
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
