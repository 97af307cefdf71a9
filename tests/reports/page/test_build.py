"""The page: valid figures with the recorded values, everything escaped, nothing fetched, under 3 MB."""

import base64
import gzip
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wallclock.reports import Run, RunWriter, Sample, StoreError, build_page, load, load_pictures, load_runs
from wallclock.reports.page import build as page
from wallclock.reports.store.pictures import write_picture


class Elements(HTMLParser):
    """The tags of a page, its script contents by id, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1]
        if self.cdata_elem == "script":
            name = attributes.get("id") or ""
            self.scripts[name] = self.scripts.get(name, "") + data
        elif self.cdata_elem is None:
            self.text += data


def built(root: Path, out: Path) -> Elements:
    build_page(load(root, on_damage="skip"), load_runs(root, on_damage="skip"), out)
    assert out.stat().st_size < 3_000_000
    return Elements(out.read_text(encoding="utf-8"))


def unpacked(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))


def test_the_page_says_what_the_records_say(cifar_root: Path, tmp_path: Path) -> None:
    found = built(cifar_root, tmp_path / "new" / "page.html")
    text = " ".join(found.text.split())
    for words in (
        "sprint to 90%",
        "15.0 s",
        "4 of 5",
        "80% [38, 96]",
        "90.34%",
        "not shown",
        "1 missed",
        "done",
        "here",
    ):
        assert words in text
    assert unpacked(found.scripts["plotly-js"]).startswith(b"/**\n* plotly.js v")
    frame = pd.read_csv(io.BytesIO(unpacked(found.scripts["samples-csv"])))
    assert len(frame) == len(load(cifar_root))
    assert frame["value"].sum() == pytest.approx(load(cifar_root)["value"].sum())


def test_the_page_fetches_nothing(cifar_root: Path, tmp_path: Path) -> None:
    for tag, attributes in built(cifar_root, tmp_path / "page.html").tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag


HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>\'"&{{ 7*7 }} — ü 🚀'


def test_names_are_text_wherever_they_come_from(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    run = make_run(host=HOSTILE, command=HOSTILE, recipe={HOSTILE: HOSTILE}, cpu=HOSTILE, environment={"k": HOSTILE})
    with RunWriter.create(tmp_path / "runs", run) as writer:
        writer.note(HOSTILE)
        scored = {"target": 0.5, "reached": True, "censored": False, "seed": 0}
        named = {"case": HOSTILE, "variant": HOSTILE, "parameters": {"dataset": HOSTILE, HOSTILE: HOSTILE}}
        for metric in ("accuracy", "final_accuracy", "train_loss", "train_eval_s", HOSTILE):
            writer.add(make_sample(metric=metric, unit=HOSTILE, value=0.9, epoch=1, step=1, **scored, **named))
    found = built(tmp_path / "runs", tmp_path / "page.html")
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in found.tags) == 4  # samples, figures, plotly, page.js
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert HOSTILE in found.text
    traces = json.loads(found.scripts["figure-data"])["accuracy"]["figure"]["data"]
    assert "&lt;img" in traces[0]["name"] and "<img" not in traces[0]["name"]  # Plotly reads HTML in names


def test_compiled_kernels_have_their_table(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        for form, registers in enumerate((40, 90)):
            for architecture in ("sm_90", "sm_100"):
                same = {"benchmark": "static", "case": "apply_kernel"}
                same["parameters"] = {"architecture": architecture, "constants": str(form)}
                writer.add(make_sample(metric="registers", unit="count", value=registers, **same))
                for metric in ("spilled_bytes", "shared_bytes"):
                    writer.add(make_sample(metric=metric, unit="B", value=0, **same))
                for metric in ("load_bytes", "store_bytes"):
                    writer.add(make_sample(metric=metric, unit="B", better="higher", value=16 - 8 * form, **same))
                writer.add(make_sample(metric="occupancy", unit="fraction", better="higher", value=0.5, **same))
    found = built(tmp_path / "runs", tmp_path / "page.html")
    assert re.search(r"apply\s*90\s*2\s*90\s*0\s*0\s*8\s*8\s*50%\s*apply\s*100", found.text)
    assert "All measurements" not in found.text


def test_pictures_stand_under_their_titles_within_the_page(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        writer.add(make_sample())
        pixels = np.arange(20 * 100 * 3, dtype=np.uint8).reshape(20, 100, 3)
        for name, title, shape in (("1", "Grids", pixels), ("2", HOSTILE, pixels), ("3", "Grids", pixels[:, :20])):
            write_picture(writer.path, name, shape, title=title, caption=HOSTILE + name)
    pictures = load_pictures(tmp_path / "runs")
    build_page(load(tmp_path / "runs"), load_runs(tmp_path / "runs"), tmp_path / "page.html", pictures)
    found = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    shown = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [a["alt"] for a in shown] == [HOSTILE + name for name in "132"]
    assert [base64.b64decode((a["src"] or "").removeprefix("data:image/png;base64,")) for a in shown] == [
        pictures[place].png for place in (0, 2, 1)
    ]
    assert [a["width"] for a in shown] == ["1000", "520", "1000"]  # a wide one has a row of its own
    assert found.text.count("Grids") == 1 and HOSTILE in found.text
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]


def test_damage_is_told_at_the_top(cifar_root: Path, tmp_path: Path, make_run: Callable[..., Run]) -> None:
    with RunWriter.create(cifar_root, make_run()) as writer:
        pass
    (writer.path / "samples.parquet").write_bytes(b"PAR1 no more")
    text = " ".join(built(cifar_root, tmp_path / "page.html").text.split())
    assert "1 run could not be read and is missing below" in text
    assert str(writer.path / "samples.parquet") in text


def test_every_status_is_shown(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    for status in ("done", "stopped", "interrupted", "diverged", "failed"):
        RunWriter.create(tmp_path / "runs", make_run()).finish(status)  # type: ignore[arg-type]
    RunWriter.create(tmp_path / "runs", make_run())._close()
    found = built(tmp_path / "runs", tmp_path / "page.html")
    badges = {a["class"] for _, a in found.tags if (a.get("class") or "").startswith("badge ")}
    assert badges == {f"badge {s}" for s in ("done", "stopped", "interrupted", "diverged", "failed", "unfinished")}
    assert "No samples were recorded" in found.text


def test_many_samples_stay_in_the_parquet(cifar_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_SAMPLES", 10)
    found = built(cifar_root, tmp_path / "page.html")
    assert "samples-csv" not in found.scripts
    assert re.search(r"samples are too many for this page; they are in\s+samples\.parquet", found.text)


def test_a_page_that_cannot_be_written_is_told(cifar_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write .*; choose another file"):
        build_page(load(cifar_root), load_runs(cifar_root), tmp_path / "file" / "page.html")
