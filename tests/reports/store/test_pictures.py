"""Pictures come back as they were written, and damage is told or left out."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wallclock.reports import RunWriter, StoreError, build_page, load, load_runs
from wallclock.reports.store.pictures import load_pictures, write_picture

PIXELS = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)


@pytest.fixture
def run(tmp_path: Path, make_run) -> Path:
    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        pass
    return writer.path


def test_a_picture_comes_back_with_its_words(run: Path) -> None:
    write_picture(run, "b", PIXELS[..., 0], title="π", caption="grey <b>")
    write_picture(run, "a", PIXELS, title="first", caption="colour")
    write_picture(run, "a", PIXELS, title="first", caption="again")
    first, second = load_pictures(run.parent)
    assert (first.run_id, first.name, first.title, first.caption) == (run.name, "a", "first", "again")
    assert (first.width, first.height) == (5, 6)
    assert (second.name, second.title, second.caption) == ("b", "π", "grey <b>")
    for picture, pixels in ((first, PIXELS), (second, PIXELS[..., 0])):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.png))), pixels)
    assert not list(run.glob("pictures/.*"))


def test_a_run_without_pictures_has_none(run: Path) -> None:
    assert load_pictures(run) == []


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damage_is_told_or_left_out(run: Path, damage: str) -> None:
    write_picture(run, "a", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8), title="", caption="")
    broken = write_picture(run, "b", PIXELS, title="", caption="")
    broken.write_bytes(broken.read_bytes()[:-40] if damage == "cut" else b"no picture")
    with pytest.raises(StoreError, match=r"b\.png is damaged; restore it"):
        load_pictures(run)
    whole, damaged = load_pictures(run, on_damage="skip")
    assert whole.name == "a" and whole.png and damaged.name == "b" and not damaged.png
    assert "b.png is damaged" in damaged.caption
    page = build_page(load(run), load_runs(run), run / "page.html", [whole, damaged]).read_text()
    assert page.count("<img") == 1 and "b.png is damaged" in page


def test_a_full_or_missing_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write .*No such file or directory; make room"):
        write_picture(tmp_path / "gone", "a", PIXELS, title="", caption="")


def test_a_copy_counts_once(run: Path, tmp_path: Path) -> None:
    write_picture(run, "a", PIXELS, title="", caption="")
    shutil.copytree(run, tmp_path / "copies" / run.name)
    assert len(load_pictures([run, tmp_path / "copies"])) == 1
