"""Tables: within 80 columns, honest about misses, and with names shown as they are."""

import csv
import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from wallclock.reports import Run, RunWriter, Sample, load, summarise, time_to_target
from wallclock.reports.format import text as tables
from wallclock.reports.format.labels import by_label
from wallclock.reports.views.accuracy import accuracy_rows
from wallclock.reports.views.kernels import kernel_detail_rows, kernel_rows, kernel_summary
from wallclock.reports.views.static import static_rows
from wallclock.reports.views.summaries import summary_rows

ROOT = Path(__file__).parents[3]


def printed(table: object) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_accuracy_table_says_n_hits_intervals_and_p(cifar_root: Path) -> None:
    text = printed(tables.terminal(accuracy_rows(time_to_target(load(cifar_root)))))
    for figure in ("sprint", "eager", "cifar10-jpeg", "90%", "4 of 5", "90.34%", "15.0 s", "["):
        assert figure in text


def test_summary_table_says_who_missed(cifar_root: Path) -> None:
    rows = summarise(load(cifar_root))
    text = printed(tables.terminal(tables.tabulated(summary_rows)(rows[rows["metric"] == "train_eval_s"])))
    assert "1 missed" in text and "12.00" in text and "↓" in text


def test_long_and_hostile_names_fit_and_show_as_they_are(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    with RunWriter.create(tmp_path, make_run()) as writer:
        for case in ("[bold]x[/bold]", "very-long-name-" * 9, "a|b <script>\\"):
            for batch in (1, 123456789):
                writer.add(make_sample(case=case, variant="v" * 30, value=1e-9, parameters={"batch_size": batch}))
    rows = tables.tabulated(summary_rows)(summarise(load(tmp_path)))
    text = printed(tables.terminal(rows))
    assert "[bold]x[/bold]" in text and "1.000e-09" in text
    lines = tables.markdown(rows).splitlines()
    assert "a\\|b &lt;script&gt;\\\\" in lines[-1]
    assert {line.replace("\\|", "").count("|") for line in lines} == {7}


def test_names_of_compiled_kernels_stand_on_one_line(
    tmp_path: Path, make_run: Callable[..., Run], make_sample: Callable[..., Sample]
) -> None:
    figures = {"registers": 255, "spilled_bytes": 128, "instructions": 12345, "shared_bytes": 232448, "load_bytes": 16}
    figures |= {"store_bytes": 16, "occupancy": 1.0}
    with RunWriter.create(tmp_path, make_run()) as writer:
        for case in ("image_backward_apply_kernel", "persistent_backward_kernel"):
            for target, (metric, value) in itertools.product((100, 80, 90), figures.items()):
                sample = make_sample(benchmark="static", case=case, metric=metric, value=value)
                writer.add(replace(sample, parameters={"architecture": f"sm_{target}"}, better="lower"))
    lines = printed(tables.terminal(static_rows(load(tmp_path)))).splitlines()
    assert len(lines) == 2 + 6
    named = [[name, target] for name in ("image_backward_apply", "persistent_backward") for target in (80, 90, 100)]
    assert [line.split()[:2] for line in lines[2:]] == [[name, str(target)] for name, target in named]


def test_kernels_are_told_whole_within_80_columns() -> None:
    (run,) = (ROOT / "reports" / "published").glob("*/*-kernels-d6110595")
    frame = load(run)
    frame["variant"] = frame["variant"].astype(str).replace({"compile": "triton_inplace"})  # the longest name
    summary = kernel_summary(frame)
    header, rows = kernel_detail_rows(summary)
    text = printed(tables.terminal((header, rows)))
    assert all(line.count("[") == line.count("]") for line in text.splitlines())  # no interval is broken
    whole = printed(tables.terminal(kernel_rows(summary)))
    for table in (text, whole):  # nor is a name
        assert {"batch_norm_act", "256x128x16x16", "eager_nchw", "triton_", "inplace"} <= set(table.split())
    names = {tuple(name) for name in summary[["case", "variant"]].drop_duplicates().to_numpy()}
    assert len(rows) == len(names)
    first = dict(zip(header, rows[0], strict=True))
    both = summary[(summary["case"] == summary["case"][0]) & (summary["direction"] == "both")]
    hot, cold = (both[(both["cache"] == c) & (both["variant"] == first["variant"])].iloc[0] for c in ("hot", "cold"))
    assert first["95% interval"] == f"[{hot['latency_low_us']:,.0f}, {hot['latency_high_us']:,.0f}]"
    assert first["cold"] == f"{cold['latency_us']:,.0f}" and first["GB/s"] == f"{hot['gb_per_s']:.1f}"
    assert first["error"] == f"{hot['error']:.1e}" and first["MB+"] == ""  # not recorded then


@pytest.mark.parametrize(
    ("differing", "told"),
    [
        ({"cpu": ("one CPU", "another")}, ("cpu=one CPU", "cpu=another")),
        ({"torch": ("2.11.0", "2.15.0")}, ("torch=2.11.0", "torch=2.15.0")),
        ({"source_hash": ("0123456789ab", "ba9876543210")}, ("source=01234567", "source=ba987654")),
        ({"cpu_cores": (2, 4)}, ("cpu_cores=2", "cpu_cores=4")),
        ({"gpu_power_limit_w": (350.0, 700.0)}, ("gpu_power_limit_w=350.0", "gpu_power_limit_w=700.0")),
        ({"environment": ({"threads": "1"}, {"threads": "2"})}, ("threads=1", "threads=2")),
        ({"split": ("test", "tune")}, ("split=test", "split=tune")),
        ({"data_hash": ("0123456789ab", "ba9876543210")}, ("data=01234567", "data=ba987654")),
    ],
)
def test_what_differs_is_never_one_row_and_says_in_what(
    tmp_path: Path,
    make_run: Callable[..., Run],
    make_sample: Callable[..., Sample],
    differing: dict[str, tuple[Any, Any]],
    told: tuple[str, str],
) -> None:
    ((column, values),) = differing.items()
    for value in values:
        of_run, parameters = ({}, {column: value}) if column in ("split", "data_hash") else ({column: value}, {})
        with RunWriter.create(tmp_path, make_run(host="vm", **of_run)) as writer:
            fields = {"case": "sprint", "target": 0.9, "reached": True, "seed": 0, "parameters": parameters}
            writer.add(make_sample(metric="final_accuracy", unit="fraction", better="higher", value=0.91, **fields))
            writer.add(make_sample(value=10.0, **fields))
    frame = load(tmp_path)
    _, rows = accuracy_rows(time_to_target(frame))
    assert sorted(row[0] for row in rows) == sorted(f"sprint\n{text}" for text in told)
    _, rows = tables.tabulated(summary_rows)(summarise(frame[frame["metric"] == "train_eval_s"]))
    assert sorted(row[0] for row in rows) == sorted(f"sprint\n{text}" for text in told)
    assert sorted(label for label, _ in by_label(frame)) == sorted(f"sprint · {text}" for text in told)


def test_a_case_is_named_in_the_first_of_its_rows_where_it_is_read_from_above() -> None:
    rows = (["case", "variant"], [["a", "x"], ["a", "y"], ["b", "y"], ["a", "x"]])
    assert tables.name_once(rows) == [["a", "x"], ["", "y"], ["b", "y"], ["a", "x"]]
    assert tables.markdown(rows).splitlines()[3] == "|  | y |"
    others = (["kernel", "sm"], [["a", "80"], ["a", "90"]])
    assert tables.name_once(others) == others[1]


def test_no_scores_make_an_empty_table(cifar_root: Path) -> None:
    assert accuracy_rows(time_to_target(load(cifar_root).query("metric == 'train_loss'")))[1] == []


def test_csv_holds_figures_in_full(cifar_root: Path) -> None:
    summary = time_to_target(load(cifar_root))
    (row,) = csv.DictReader(io.StringIO(summary.to_csv(index=False)))
    assert float(row["p_value"]) == summary["p_value"][0]
    assert row["hits"] == "4"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (0.123456, "0.123"), (12.0, "12.0"), (0.0, "0"), (3.2e-7, "3.20e-07"), (5e9, "5.00e+09")]
    + [(math.inf, "∞"), (math.nan, "unknown"), (-0.5, "-0.500")],
)
def test_significant_digits(value: float, text: str) -> None:
    assert tables.significant(value) == text


def test_intervals_without_ends_are_left_out() -> None:
    assert tables.interval_text(None, 1.0) == tables.interval_text(math.nan, 1.0) == ""
    assert tables.interval_text(-math.inf, math.inf) == tables.percent_interval(-math.inf, math.inf) == ""
    assert tables.interval_text(8.0, math.inf, " s") == "[8.000, ∞] s"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("critic_iterations_per_s ↑", 15, ["critic_", "iterations_per_", "s ↑"]),
        ("lesson channels_last+keep_heap", 14, ["lesson channels_last+", "keep_heap"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("[0.3274,  0.3547]", 30, ["[0.3274,  0.3547]"]),
        ("___", 1, ["_", "_", "_"]),
    ],
)
def test_words_that_do_not_fit_break_where_names_do(text: str, width: int, lines: list[str]) -> None:
    assert tables.break_words(text, width).splitlines() == lines


def test_a_long_name_is_broken_in_the_table_and_whole_where_there_is_room() -> None:
    rows = (["case", "metric", "median"], [["channels_last+keep_heap", "generator_iterations_per_s", "1.0"]])
    for width, whole in ((40, False), (120, True)):
        console = Console(width=width, file=io.StringIO())
        console.print(tables.terminal(rows))
        text = console.file.getvalue()
        assert ("generator_iterations_per_s" in text) == whole
        assert max(map(len, text.splitlines())) <= width
        cells = [line.split() for line in text.splitlines()[2:]]
        assert whole or cells == [["channels_last+", "generator_", "1.0"], ["keep_heap", "iterations_"], ["per_s"]]
