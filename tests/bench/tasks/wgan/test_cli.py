"""`wallclock run wgan` and `wallclock data convert` as a user types them."""

import io
import json

import lmdb
import numpy as np
import pytest
from PIL import Image

SMALL = ("image_size=16", "generator_channels=4", "critic_channels=4", "batch_size=16", "critic_steps.long=2")
TINY = tuple(part for change in SMALL for part in ("--set", change))


def test_a_run_prints_rates_and_its_page_shows_samples_and_curves(wallclock, tmp_path):
    runs, page = tmp_path / "runs", tmp_path / "page.html"
    code, out, err = wallclock(
        "run", "wgan", "--recipe", "paper", *TINY, "--generator-iterations", 4, "--look-every", 2, "--out", runs
    )
    assert code == 0 and "critic_iterations" in out and f"records: {runs}" in out
    assert "after 4 generator and 8 critic steps: distance to" in err
    code, out, _ = wallclock("report", runs, "--html", page, "--json")
    document = json.loads(out)
    metrics = {row["metric"] for row in document["summary"]}
    assert {"critic_iterations_per_s", "generator_iterations_per_s", "images_per_s"} <= metrics
    assert not {"critic_loss", "em_train"} & metrics  # curves
    html = page.read_text()
    assert html.count('<img src="data:image/png;base64,') == 3
    for words in ("Samples of paper at fixed noise", "WGAN: estimated distance", "WGAN: losses"):
        assert words in html


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "leson"], "no recipe 'leson'; did you mean 'lesson'? recipes: lesson, paper, gp"),
        (["--set", "image_size=48"], "image_size is 48; expected 16, 32, 64, 128"),
        (["--set", "implementations.cuda_graph=true", "--device", "cpu"], "CUDA graphs need a GPU"),
        (["--data", "nowhere"], "no such path: nowhere"),
        (["--class", "cat"], "has no class 'cat'"),
        (["--resume", "nowhere"], "holds no run"),
        (["--look-every", "0"], "expected at least 0 (for all), 1 and 1"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(wallclock, tmp_path, arguments, says):
    small = () if "image_size=48" in arguments else TINY
    code, out, err = wallclock("run", "wgan", *small, *arguments, "--out", tmp_path / "runs")
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_export_of_lsun_is_converted_and_trained_on(wallclock, tmp_path):
    with (
        lmdb.open(str(tmp_path / "lsun"), map_size=4 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number in range(70):
            buffer = io.BytesIO()
            pixels = np.full((20, 30, 3), 3 * number, np.uint8)
            Image.fromarray(pixels).save(buffer, format="JPEG")
            transaction.put(f"{number:04}".encode(), buffer.getvalue())
    code, out, _ = wallclock("data", "convert", tmp_path / "lsun", "--to", tmp_path / "to", "--size", 16)
    assert code == 0 and f"use it with --data {tmp_path / 'to'}" in out
    code, out, err = wallclock(
        "run",
        "wgan",
        *TINY,
        "--data",
        tmp_path / "to",
        "--generator-iterations",
        1,
        "--out",
        tmp_path / "runs",
        "--json",
    )
    assert code == 0, err
    assert {row["dataset"] for row in json.loads(out)["summary"]} == {"lsun:1"}


def test_recipes_are_listed(wallclock):
    code, out, _ = wallclock("list", "--json")
    document = json.loads(out)
    assert code == 0 and list(document["wgan_recipes"]) == ["lesson", "paper", "gp"]
    assert {"wgan lesson"} <= set(document["quick"])
    assert {"wgan lesson throughput", "wgan lesson levers"} <= set(document["suite"])
