"""Telemetry against a stand-in for NVML, and against the driver where there is one."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wallclock.bench.measure.environment import provenance
from wallclock.bench.measure.telemetry import ClockWatch, Telemetry

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch finds none")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="asks what a machine without a GPU answers")


@without_gpu
def test_telemetry_without_nvml_reads_nothing_and_says_why() -> None:
    with Telemetry() as telemetry:
        assert telemetry.unavailable
        assert telemetry.read() == {"sm_clock_mhz": None, "temperature_c": None, "power_w": None}
        assert (telemetry.power_limit_w(), telemetry.clocks_locked(), telemetry.driver()) == (None, None, None)


def test_telemetry_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # what Python itself keeps for a module that cannot be imported
    with Telemetry() as telemetry:
        assert telemetry.unavailable == "nvidia-ml-py is not installed"
        assert telemetry.read()["power_w"] is None


class NvmlError(Exception):
    """What the stand-in raises."""


class FakeNvml:
    """Answers as NVML does, in its units; a name in `broken` is not supported."""

    NVMLError = NvmlError

    def __init__(self, answers: dict[str, Any], broken: frozenset[str] = frozenset()) -> None:
        self.answers, self.broken, self.calls = answers, broken, list[tuple[Any, ...]]()

    def __getattr__(self, name: str) -> Any:
        def query(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            if name in self.broken:
                raise NvmlError("not supported")
            return self.answers.get(name)

        return query


ANSWERS = {
    "nvmlDeviceGetHandleByIndex": "by index",
    "nvmlDeviceGetHandleByUUID": "by uuid",
    "nvmlDeviceGetClockInfo": 1755,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetPowerUsage": 412_500,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetApplicationsClock": 1275,
    "nvmlDeviceGetDefaultApplicationsClock": 1275,
    "nvmlDeviceGetMaxClockInfo": 1410,
    "nvmlSystemGetDriverVersion": b"580.1",
}


def telemetry_of(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> Telemetry:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return Telemetry()


def test_readings_are_in_the_units_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(ANSWERS)
    with telemetry_of(monkeypatch, nvml) as telemetry:
        assert telemetry.read() == {"sm_clock_mhz": 1755.0, "temperature_c": 61.0, "power_w": 412.5}
        assert telemetry.power_limit_w() == 700.0
        assert telemetry.driver() == "580.1"
        assert [call[2:] for call in nvml.calls if call[0] == "nvmlDeviceGetClockInfo"] == [(1,)]  # NVML_CLOCK_SM
    assert [call[0] for call in nvml.calls].count("nvmlShutdown") == 1
    assert telemetry.read()["power_w"] is None


def test_a_reading_that_the_gpu_does_not_give_is_none_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    with telemetry_of(monkeypatch, FakeNvml(ANSWERS, frozenset({"nvmlDeviceGetPowerUsage"}))) as telemetry:
        assert telemetry.read() == {"sm_clock_mhz": 1755.0, "temperature_c": 61.0, "power_w": None}


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
@without_gpu
def test_an_nvml_that_does_not_start_is_no_failure(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    with telemetry_of(monkeypatch, FakeNvml(ANSWERS, frozenset({broken}))) as telemetry:
        assert telemetry.unavailable == "not supported"
        assert telemetry.read()["sm_clock_mhz"] is None


@pytest.mark.parametrize(
    ("application_mhz", "default_mhz", "locked"), [(1275, 1275, None), (1410, 1275, True), (900, 1275, True)]
)
def test_a_default_below_the_maximum_is_no_lock(
    monkeypatch: pytest.MonkeyPatch, application_mhz: int, default_mhz: int, locked: bool | None
) -> None:
    clocks = {
        "nvmlDeviceGetApplicationsClock": application_mhz,
        "nvmlDeviceGetDefaultApplicationsClock": default_mhz,
    }
    with telemetry_of(monkeypatch, FakeNvml(ANSWERS | clocks)) as telemetry:
        assert telemetry.clocks_locked() is locked
    with telemetry_of(monkeypatch, FakeNvml(ANSWERS, frozenset(clocks))) as telemetry:
        assert telemetry.clocks_locked() is None


def test_the_gpu_is_the_one_that_torch_sees_not_nvmls_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"abc-{index}"))
    nvml = FakeNvml(ANSWERS)
    with telemetry_of(monkeypatch, nvml) as telemetry:
        telemetry.read()
    assert ("nvmlDeviceGetHandleByUUID", "GPU-abc-0") in nvml.calls
    assert ("nvmlDeviceGetPowerUsage", "by uuid") in nvml.calls


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x0, ()),
        (0x1 | 0x4 | 0x10, ()),
        (0x40, ("hw_thermal_slowdown",)),
        (0x8 | 0x80, ("hw_slowdown", "hw_power_brake")),
    ],
)
def test_idling_and_the_power_cap_are_no_throttling(
    monkeypatch: pytest.MonkeyPatch, mask: int, reasons: tuple[str, ...]
) -> None:
    answers = ANSWERS | {"nvmlDeviceGetCurrentClocksThrottleReasons": mask}
    with telemetry_of(monkeypatch, FakeNvml(answers)) as telemetry:
        assert telemetry.throttled() == reasons
        assert telemetry.energy_j() is None
    energy = ANSWERS | {"nvmlDeviceGetTotalEnergyConsumption": 1500}
    with telemetry_of(monkeypatch, FakeNvml(energy)) as telemetry:
        assert telemetry.energy_j() == 1.5


def test_a_slowed_gpu_is_told_of_once_for_each_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, remarks = dict(ANSWERS), list[str]()
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(answers))
    with Telemetry.of(torch.device("cuda", 0), remarks.append) as telemetry:
        telemetry.read()
        assert remarks == []
        for mask in (0x4, 0x40, 0x40, 0x40 | 0x80):  # the power cap of any heavy load is none
            answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = mask
            telemetry.read()
    assert remarks == [
        "the GPU was slowed down: hw_thermal_slowdown, first seen at 1755 MHz and 61 C",
        "the GPU was slowed down: hw_power_brake, first seen at 1755 MHz and 61 C",
    ]


def test_a_run_on_the_cpu_asks_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml := FakeNvml(ANSWERS))
    with Telemetry.of(torch.device("cpu"), print) as telemetry:
        assert telemetry.read()["sm_clock_mhz"] is None
    assert nvml.calls == []


def wait_for(watch: ClockWatch, readings: int) -> None:
    for _ in range(1000):
        if len(watch._readings) >= readings:
            return
        time.sleep(0.01)
    raise AssertionError(f"{len(watch._readings)} readings in 10 s")


def test_a_watch_reads_while_its_block_runs_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = dict(ANSWERS)
    with telemetry_of(monkeypatch, FakeNvml(answers)) as telemetry:
        with ClockWatch(telemetry) as watch:
            wait_for(watch, 2)
            answers["nvmlDeviceGetCurrentClocksThrottleReasons"] = 0x20
            wait_for(watch, len(watch._readings) + 2)
        count = len(watch._readings)
        expected = {"sm_clock_mhz": 1755.0, "temperature_c": 61.0, "power_w": 412.5}
        assert watch.fields() == expected | {"parameters": {"throttled": "sw_thermal_slowdown"}}
        time.sleep(0.25)
        assert len(watch._readings) == count >= 4


@without_gpu
def test_without_nvml_nothing_is_watched() -> None:
    with Telemetry() as telemetry, ClockWatch(telemetry) as watch:
        time.sleep(0.15)
    assert watch.fields() == {}


@pytest.mark.gpu
@needs_gpu
def test_gpu_provenance_and_telemetry_name_the_same_gpu() -> None:
    import pynvml

    fields = provenance("cuda")
    with Telemetry() as telemetry:
        assert telemetry.unavailable == ""
        assert fields["gpu_name"] == pynvml.nvmlDeviceGetName(telemetry._handle)
        power_w, limit_w = telemetry.read()["power_w"], telemetry.power_limit_w()
    assert power_w is not None and limit_w is not None and 5 < power_w < 1.5 * limit_w
    assert fields["gpu_driver"]
