"""The page in a browser: drawn without a complaint, used by mouse and keyboard, readable by all, and quick."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wallclock.bench.measure.timing import now_s
from wallclock.reports import Run, RunWriter, Sample, build_page, load, load_pictures, load_runs
from wallclock.reports.store.layout import SAMPLE_TABLE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PUBLISHED = Path(__file__).parents[3] / "reports" / "published"
SMALLEST = "2026-11-26-h200"
DRAWN = 'html[data-ready="yes"]'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the machine."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Shown:
    """A page in the browser, and all that it asked for and said."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(DRAWN, state="attached")

    def check_quiet(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("file:", "blob:", "data:"))] == []


@pytest.fixture
def cifar_page(cifar_root: Path, tmp_path: Path) -> Path:
    return build_page(load(cifar_root), load_runs(cifar_root), tmp_path / "page.html")


def published_page(name: str, out: Path) -> Path:
    paths = PUBLISHED / name
    return build_page(load(paths), load_runs(paths), out, load_pictures(paths))


def test_every_figure_is_drawn(browser: Any, cifar_page: Path) -> None:
    shown = Shown(browser, cifar_page)
    drawn = shown.page.eval_on_selector_all(
        ".plot:has(svg.main-svg)", "plots => plots.map((plot) => plot.dataset.figure)"
    )
    assert drawn == ["accuracy", "target", "points", "phases", "loss"]
    assert shown.page.locator("g.trace.scatter").count() >= 3 and shown.page.locator("g.trace.bars").count()
    shown.check_quiet()


@pytest.mark.parametrize(
    "name",
    [path.name for path in sorted(PUBLISHED.iterdir()) if path.is_dir()],
)
@pytest.mark.slow  # axe takes 30 s for 800 rows
def test_published_pages_are_readable_by_all_and_small(browser: Any, tmp_path: Path, name: str) -> None:
    """axe-core finds no serious fault: names of controls, order of headings, landmarks, and contrast, dark as well."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = published_page(name, tmp_path / "page.html")
    assert page.stat().st_size < 3_000_000
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        shown = Shown(browser, page, color_scheme=scheme)
        shown.check_quiet()
        faults = axe.Axe().run(shown.page, options={"resultTypes": ["violations"], **rules}).response["violations"]
        told = [(scheme, fault["id"], fault["nodes"][0]["html"]) for fault in faults if fault["impact"] != "minor"]
        assert told == []
        shown.page.close()


def test_tables_sort_and_filter_and_rows_can_be_linked_to(browser: Any, tmp_path: Path) -> None:
    page = published_page("2026-11-26-h200", tmp_path / "page.html")
    shown = Shown(browser, page).page
    rows = shown.locator("#kernels-table tbody tr")
    before = rows.count()
    shown.fill('[data-filter="kernels-table"]', "augment triton")
    visible = [row for row in rows.all() if row.is_visible()]
    assert 0 < len(visible) < before
    assert all("augment" in row.inner_text() and "triton" in row.inner_text() for row in visible)
    shown.fill('[data-filter="kernels-table"]', "")
    head = shown.locator("#kernels-table thead th", has_text="us").first
    place = head.evaluate("head => head.cellIndex")
    for order in ("ascending", "descending"):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == order
        column = shown.eval_on_selector_all(
            "#kernels-table tbody tr", f"rows => rows.map((row) => Number(row.cells[{place}].dataset.value || 'NaN'))"
        )
        known = [value for value in column if value == value]
        assert len(known) > 3 and known == sorted(known, reverse=order == "descending")
    link = shown.locator("#kernels-table tbody tr a.link").nth(3)
    address, row = link.get_attribute("href"), link.locator("xpath=ancestor::tr").get_attribute("id")
    again = Shown(browser, page).page
    again.goto(page.as_uri() + address)
    again.reload()
    again.wait_for_selector(DRAWN, state="attached")
    assert again.eval_on_selector("tr.linked", "row => row.id") == row
    assert again.locator("tr.linked").is_visible()
    assert (
        len(set(again.eval_on_selector_all("tr[id]", "rows => rows.map((row) => row.id)")))
        == again.locator("tr[id]").count()
    )


@pytest.mark.parametrize("name", [SMALLEST, "2026-11-26-xeon-2-cores"])  # the widest table, and the most pictures
def test_nothing_is_wider_than_the_paper_and_few_pictures_fill_a_page(browser: Any, tmp_path: Path, name: str) -> None:
    paper = Shown(browser, published_page(name, tmp_path / "page.html")).page
    paper.set_viewport_size({"width": 718, "height": 1047})  # A4 at 96 dots an inch, less margins of a centimetre
    across = "(thing.closest('#kernels-table') ? 1047 : 718)"  # which lies on its side
    paper.emulate_media(media="print")
    right = "Math.ceil(thing.getBoundingClientRect().right)"
    wide = paper.eval_on_selector_all(
        "main table, main table :is(th, td), main img, .card",
        f"all => all.filter((thing) => {right} > {across}).map((thing) => [thing.closest('table')?.id, {right}])",
    )
    assert wide == []
    # Chromium repeats the words of a header on each page of a table, and leaves its controls blank.
    boxes = paper.eval_on_selector_all("th button", "all => all.map((thing) => getComputedStyle(thing).display)")
    assert boxes and set(boxes) == {"contents"}
    widths = paper.eval_on_selector_all(".picture:not(.wide) img", "all => all.map((thing) => thing.clientWidth)")
    assert all(width <= 240 for width in widths) and bool(widths) == (name != SMALLEST)


def test_the_axis_switches_to_epochs_and_the_samples_download(browser: Any, cifar_page: Path, tmp_path: Path) -> None:
    import pandas as pd

    shown = Shown(browser, cifar_page)
    shown.page.click('[data-axis="epoch"]')
    assert shown.page.get_attribute('[data-axis="epoch"]', "aria-pressed") == "true"
    figure = "document.querySelector('[data-figure=accuracy]')"
    assert shown.page.evaluate(f"{figure}.layout.xaxis.title.text") == "epoch"
    assert shown.page.evaluate(f"{figure}.data.map((trace) => trace.x)") == [[1, 2]] * 5
    with shown.page.expect_download() as download:
        shown.page.click("#download")
    download.value.save_as(tmp_path / "samples.csv")
    assert len(pd.read_csv(tmp_path / "samples.csv")) > 40
    shown.check_quiet()


def test_a_branch_called_script_is_text(
    browser: Any, tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    name = "<script>document.title = 'taken'</script>"
    with RunWriter.create(tmp_path / "runs", make_run(host=name, command=name)) as writer:
        for seed in range(3):
            scored = {"target": 0.5, "reached": True, "censored": False, "seed": seed, "epoch": 1, "step": 1}
            for metric in ("accuracy", "elapsed_train_eval_s", "final_accuracy", "train_eval_s"):
                writer.add(make_sample(metric=metric, value=0.9, case=name, variant=name, arm=name, **scored))
    shown = Shown(browser, build_page(load(tmp_path), load_runs(tmp_path), tmp_path / "page.html"))
    assert "taken" not in shown.page.title() and name in shown.page.inner_text("main")
    shown.check_quiet()


def test_a_page_without_a_figure_gets_ready_too(
    browser: Any, tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        writer.add(make_sample(metric="latency_s", value=0.5))
    page = build_page(load(tmp_path), load_runs(tmp_path), tmp_path / "page.html")
    assert 'class="plot"' not in page.read_text()
    Shown(browser, page).check_quiet()


@pytest.mark.slow
@pytest.mark.timed
def test_a_page_of_100_000_samples_is_built_in_10_s_and_painted_in_1_s(
    browser: Any, tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample], slowness: float
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with RunWriter.create(tmp_path / "runs", make_run()) as writer:
        for case in range(50):
            for index in range(20):
                named = {"case": f"c{case}", "variant": f"v{case % 4}", "index": index, "seed": 0}
                writer.add(make_sample(metric="latency_s", value=case + index / 100, **named))
            for step in range(20):
                curve = {"case": f"c{case}", "seed": 0, "epoch": step, "step": step, "parameters": {"batch": case % 5}}
                writer.add(make_sample(metric="accuracy", unit="fraction", better="higher", value=step / 40, **curve))
                writer.add(make_sample(metric="elapsed_train_eval_s", value=float(step), **curve))
                writer.add(make_sample(metric="train_loss", unit="nats", value=1 / (1 + step), **curve))
    table = pq.read_table(writer.path / SAMPLE_TABLE)
    pq.write_table(pa.concat_tables([table] * 25), writer.path / SAMPLE_TABLE)
    begun_s = now_s()
    samples = load(tmp_path / "runs")
    page = build_page(samples, load_runs(tmp_path / "runs"), tmp_path / "page.html")
    built_s = now_s() - begun_s
    assert len(samples) == 100_000 and built_s < 10 * slowness
    assert page.stat().st_size < 3_000_000
    painted_ms = []
    for _ in range(3):
        shown = Shown(browser, page)
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        painted_ms.append(shown.page.evaluate(paint))
        shown.check_quiet()
        shown.page.close()
    print(f"100,000 samples: built in {built_s:.2f} s, painted after {min(painted_ms):.0f} ms")
    assert min(painted_ms) < 1000 * slowness
