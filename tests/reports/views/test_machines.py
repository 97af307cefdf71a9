"""Machines, versions, and how the GPU was doing."""

from wallclock import reports
from wallclock.reports.store.schema import SLOWED
from wallclock.reports.store.write import RunWriter
from wallclock.reports.views.machines import place_rows

H200 = {
    "gpu_name": "NVIDIA H200",
    "gpu_driver": "580.1",
    "gpu_power_limit_w": 700.0,
    "cpu": "Xeon",
    "cpu_cores": 16,
    "torch": "2.11.0",
}


def rows_of(tmp_path, make_run, make_sample, *kinds):
    for number, (fields, clocks, notes) in enumerate(kinds):
        run = make_run(run_id=f"run-{number}", started_utc=f"2026-11-2{number}T10:00:00Z", **fields)
        with RunWriter.create(tmp_path, run) as writer:
            for clock in clocks:
                power = None if clock is None else 412.5
                writer.add(make_sample(sm_clock_mhz=clock, temperature_c=60.0, power_w=power))
            for note in notes:
                writer.note(note)
    return place_rows(reports.load(tmp_path), reports.load_runs(tmp_path))


def test_runs_of_one_machine_are_one_row_with_the_range_of_its_clocks(tmp_path, make_run, make_sample):
    header, rows = rows_of(
        tmp_path,
        make_run,
        make_sample,
        (H200 | {"git_sha": "a" * 40, "git_dirty": True}, (1980.0, 1755.0), ("something else",)),
        (H200 | {"git_sha": "b" * 40, "git_dirty": False}, (1980.0,), ()),
    )
    assert header == ["machine", "software", "while measured", "runs"]
    assert rows == [
        [
            "NVIDIA H200\ndriver 580.1\nlimit 700 W\nclocks not known to be locked\nXeon, 16 cores",
            "torch 2.11.0",
            "1,755 to 1,980 MHz\n60 C\n412 W",
            "2 done\n2026-11-20 to 2026-11-21\ncommit aaaaaaaaaa with changes\ncommit bbbbbbbbbb",
        ]
    ]


def test_a_gpu_that_was_slowed_down_is_not_passed_over(tmp_path, make_run, make_sample):
    told = f"{SLOWED}: hw_thermal_slowdown, first seen at 1200 MHz and 90 C"
    _, ((*_, measured, _),) = rows_of(tmp_path, make_run, make_sample, (H200, (1200.0,), (told, "another remark")))
    assert measured == f"1,200 MHz\n60 C\n412 W\n{told}"


def test_locked_clocks_are_told(tmp_path, make_run, make_sample):
    _, ((machine, *_),) = rows_of(tmp_path, make_run, make_sample, (H200 | {"gpu_clocks_locked": True}, (1755.0,), ()))
    assert "\nclocks locked\n" in machine


def test_a_cpu_has_no_clocks_and_other_versions_are_another_row(tmp_path, make_run, make_sample):
    cpu = {"cpu": "EPYC", "cpu_cores": 2}
    _, rows = rows_of(
        tmp_path, make_run, make_sample, (cpu | {"torch": "2.11"}, (None,), ()), (cpu | {"torch": "2.15"}, (None,), ())
    )
    assert [row[:2] for row in rows] == [["EPYC, 2 cores", "torch 2.11"], ["EPYC, 2 cores", "torch 2.15"]]
    assert all("MHz" not in row[2] for row in rows)
