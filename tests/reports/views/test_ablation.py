"""What the turns of an ablation come to: ratios within rounds, planted ones among them."""

import math

import numpy as np
import pandas as pd
import pytest

from wallclock import reports
from wallclock.reports.store.schema import Run, Sample
from wallclock.reports.store.write import RunWriter, utc_now
from wallclock.reports.views.ablation import ALONE, ablation_rows, ablation_summary, variant_rates, waterfall
from wallclock.reports.views.curves import loss_curves
from wallclock.reports.views.wgan import DISTANCES, LOSSES

ABLATION = "wgan ablation"
TRUE = {"baseline": 1.0, "all levers": 1.5, "all levers, bf16": 2.5, "without products": 1.2}


@pytest.fixture
def turns(tmp_path):
    """Twelve rounds of planted rates on a machine whose speed swings by a factor of four from round to round."""
    random = np.random.default_rng(0)
    run = Run(run_id="ablation", started_utc=utc_now(), command="test", request={"benchmark": ABLATION})
    with RunWriter.create(tmp_path, run) as writer:
        for number in range(13):
            machine = random.uniform(0.5, 2.0)
            for slot, (variant, rate) in enumerate(TRUE.items()):
                value = rate * machine * random.uniform(0.98, 1.02)
                at = {"round": number, "slot": slot, "phase": "steady" if number else "warm-up", "variant": variant}
                parameters = {"levers": variant, "changes_mathematics": "bf16" in variant}
                for metric, unit, figure in (
                    ("critic_iterations_per_s", "it/s", value),
                    ("images_per_s", "images/s", 64 * value),
                    ("critic_step_s", "s", 0.9 / value),
                    ("generator_step_s", "s", 0.5 / value),
                    ("cycle_cpu_s", "s", 9.0 / rate),
                ):
                    figure = 0.01 if number == 0 else figure  # warm-up, which is not to be seen
                    writer.add(
                        Sample(
                            benchmark=ABLATION, case="lesson", metric=metric, unit=unit, better="higher", value=figure,
                            parameters=parameters, **at,
                        )
                    )  # fmt: skip
    return reports.load(tmp_path)


def test_ratios_within_rounds_find_what_the_machines_swings_hide(turns):
    summary = ablation_summary(turns).set_index("variant")
    assert summary["rounds"].tolist() == [12] * 4
    for variant, rate in TRUE.items():
        row = summary.loc[variant]
        assert row["over_baseline"] == pytest.approx(rate, rel=0.03)
        assert row["cpu_over_baseline"] == pytest.approx(rate)
        if variant != "baseline":
            assert row["over_baseline_low"] <= rate <= row["over_baseline_high"]
            assert row["over_baseline_high"] / row["over_baseline_low"] < 1.1
        assert row["it_per_s_low"] < row["it_per_s"] < row["it_per_s_high"]
    assert summary.loc["without products", "lost"] == pytest.approx(1.5 / 1.2, rel=0.03)
    assert math.isnan(summary.loc["all levers", "lost"])
    assert summary["changes_mathematics"].to_dict() == {v: "bf16" in v for v in TRUE}


def test_the_table_says_what_a_lever_gives_and_marks_other_mathematics(turns):
    header, rows = ablation_rows(ablation_summary(turns))
    cells = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert set(cells) == {"baseline", "all levers", "all levers, bf16 *", "without products"}
    assert cells["without products"]["lever gives"].startswith(("+24", "+25", "+26"))
    assert cells["baseline"]["x baseline"] == "1.00" and cells["all levers"]["lever gives"] == ""
    assert ablation_rows(ablation_summary(turns[turns["phase"] == "warm-up"])) == ([], [])


def test_levers_of_two_runs_say_which_run_they_are_of(turns):
    summary = ablation_summary(turns)
    assert {row[0] for row in ablation_rows(summary)[1]} == {"wgan lesson"}
    both = pd.concat([summary, summary.assign(run_id="20261130T151418Z-ablation-2238bbae")], ignore_index=True)
    named = [row[0] for row in ablation_rows(both)[1]]
    assert named == ["wgan lesson\nrun ablation"] * 4 + ["wgan lesson\nrun 2238bbae"] * 4
    assert ablation_rows(pd.concat([summary, both[4:].assign(case="paper")]))[1][4][0] == "wgan paper"


def test_amdahl_predicts_from_the_kernel_alone_in_the_same_rounds(turns):
    """A part of 3 in 10 that a kernel makes three times as fast: 10 / 8, however fast the machine is in a round."""
    import pandas as pd

    rates = turns[turns["metric"].eq("critic_iterations_per_s") & turns["variant"].eq("without products")]
    parts = zip(ALONE, (0.1, 0.3), strict=True)
    alone = [rates.assign(metric=name, value=part / rates["value"]) for name, part in parts]
    frame = pd.concat([turns, *alone], ignore_index=True)
    row = ablation_summary(frame).set_index("variant").loc["without products"]
    assert row["kernel_speedup"] == pytest.approx(3) and row["predicted"] == pytest.approx(1 / 0.8)
    header, rows = ablation_rows(ablation_summary(frame))
    cells = {cell[1]: dict(zip(header, cell, strict=True)) for cell in rows}
    assert cells["without products"]["by Amdahl"] == "+25.0%\nalone 3.00x" and cells["baseline"]["by Amdahl"] == ""
    (trace,) = waterfall(ablation_summary(frame))["data"]
    assert trace["text"][1].endswith("Amdahl x1.25") and "Amdahl" not in trace["text"][2]


def test_every_variant_is_drawn_against_the_first(turns):
    summary = ablation_summary(turns)
    (dots,) = variant_rates(summary)["data"]
    compared = summary.set_index("variant").drop(index="baseline")
    assert [label.replace("<br>", " ") for label in dots["y"]] == [f"lesson · {name}" for name in compared.index]
    assert dots["x"] == pytest.approx(compared["over_baseline"].tolist())
    ends = [x + beyond for x, beyond in zip(dots["x"], dots["error_x"]["array"], strict=True)]
    assert ends == pytest.approx(compared["over_baseline_high"].tolist())
    assert variant_rates(summary[summary["variant"] == "baseline"]) is None
    assert variant_rates(ablation_summary(turns[turns["phase"] == "warm-up"])) is None


def test_a_turn_taken_again_counts_once(turns):
    import pandas as pd

    again = turns[(turns["round"] == 5)].assign(value=lambda f: f["value"] * 1.0)
    stale = turns[(turns["round"] == 5)].assign(value=1e6)
    both = pd.concat([turns[turns["round"] != 5], stale, again], ignore_index=True)
    expected, got = ablation_summary(turns), ablation_summary(both)
    assert got["it_per_s"].tolist() == pytest.approx(expected["it_per_s"].tolist())


def test_curves_show_each_metric_over_critic_steps(tmp_path):
    run = Run(run_id="training", started_utc=utc_now(), command="test", request={"benchmark": "wgan"})
    with RunWriter.create(tmp_path, run) as writer:
        for step in (0, 50, 50, 100):
            for metric, value in (("em_train", 2.0 - step / 100), ("em_held_out", 2.5 - step / 100)):
                writer.add(
                    Sample(
                        benchmark="wgan", case="lesson", metric=metric, unit="score", better="lower", value=value,
                        step=step, seed=0,
                    )
                )  # fmt: skip
    frame = reports.load(tmp_path)
    figure = loss_curves(frame, "wgan", DISTANCES, "estimate", "critic steps")
    assert [trace["x"] for trace in figure["data"]] == [[0, 50, 100]] * 2
    assert [trace["y"][-1] for trace in figure["data"]] == [1.0, 1.5]
    assert loss_curves(frame, "wgan", LOSSES, "loss", "critic steps") is None
    page = reports.build_page(frame, reports.load_runs(tmp_path), tmp_path / "page.html").read_text()
    assert "WGAN: estimated distance" in page and "WGAN: losses" not in page
