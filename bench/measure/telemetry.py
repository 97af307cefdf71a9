"""A GPU's clock, temperature and power through NVML, read once or repeatedly while a block runs."""

import statistics
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from wallclock.reports.store.schema import SLOWED

if TYPE_CHECKING:
    import torch

# NVML's names and bits of the reasons why a GPU runs slower than its load alone would make it.
REASONS = {"hw_slowdown": 0x8, "sw_thermal_slowdown": 0x20, "hw_thermal_slowdown": 0x40, "hw_power_brake": 0x80}
PERIOD_S = 0.1  # seconds between two readings of a `ClockWatch`


def _nvml_handle(nvml: Any, index: int) -> Any:
    """Returns NVML's handle of torch's GPU `index`: NVML ignores CUDA_VISIBLE_DEVICES and counts in its own order."""
    import torch

    if not torch.cuda.is_available():
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


class Telemetry(AbstractContextManager["Telemetry"]):
    """GPU clock, temperature and power through NVML; every reading is None on a machine without NVML.

    Args:
        index: torch's number of the GPU; None for a run on the CPU, which reads no GPU.
        remark: called with a note for the record when a reading finds the GPU slowed down, once for each reason.

    Attributes:
        unavailable: reason why nothing can be read; empty if readings work.
    """

    def __init__(self, index: int | None = 0, *, remark: Callable[[str], None] | None = None) -> None:
        self._nvml: Any = None
        self._remark, self._told = remark, set[str]()
        self.unavailable = ""
        if index is None:
            self.unavailable = "not asked"
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = _nvml_handle(pynvml, index)
            self._nvml = pynvml
        except ImportError:
            self.unavailable = "nvidia-ml-py is not installed"
        except pynvml.NVMLError as error:
            self.unavailable = str(error)

    @classmethod
    def of(cls, device: "torch.device", remark: Callable[[str], None]) -> "Telemetry":
        """Returns the telemetry of the device that a run is measured on; `remark` is usually `RunWriter.note`."""
        return cls(device.index or 0 if device.type == "cuda" else None, remark=remark)

    def _query(self, function: str, *arguments: int) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError:  # a query that this GPU or its driver does not support
            return None

    def read(self) -> dict[str, float | None]:
        """Returns one reading of `sm_clock_mhz`, `temperature_c` and `power_w`."""
        clock, temperature = self._query("nvmlDeviceGetClockInfo", 1), self._query("nvmlDeviceGetTemperature", 0)
        milliwatts = self._query("nvmlDeviceGetPowerUsage")
        if self._remark is not None:
            for reason in (name for name in self.throttled() if name not in self._told):
                self._told.add(reason)
                self._remark(f"{SLOWED}: {reason}, first seen at {clock} MHz and {temperature} C")
        return {
            "sm_clock_mhz": None if clock is None else float(clock),
            "temperature_c": None if temperature is None else float(temperature),
            "power_w": None if milliwatts is None else milliwatts / 1e3,
        }

    def throttled(self) -> tuple[str, ...]:
        """Returns why the GPU is slowed down now, as names in `REASONS`, which omit the power cap of any heavy load."""
        mask = self._query("nvmlDeviceGetCurrentClocksThrottleReasons")
        return tuple(name for name, bit in REASONS.items() if mask is not None and mask & bit)

    def energy_j(self) -> float | None:
        """Returns the joules that the GPU has used since its driver was loaded; take differences of two readings."""
        millijoules = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def power_limit_w(self) -> float | None:
        """Returns the enforced power limit, in watts."""
        milliwatts = self._query("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else milliwatts / 1e3

    def clocks_locked(self) -> bool | None:
        """Returns True if application clocks are set, else None, since no driver reports clocks locked by `-lgc`."""
        wanted = self._query("nvmlDeviceGetApplicationsClock", 1)
        usual = self._query("nvmlDeviceGetDefaultApplicationsClock", 1)  # below the maximum on many cards
        return True if None not in (wanted, usual) and wanted != usual else None

    def driver(self) -> str | None:
        """Returns the version of the GPU's driver."""
        if self._nvml is None:
            return None
        answer = self._nvml.nvmlSystemGetDriverVersion()
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    def close(self) -> None:
        """Shuts NVML down; later readings are None."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def __exit__(self, *raised: object) -> None:
        self.close()


class ClockWatch(AbstractContextManager["ClockWatch"]):
    """A watch that reads a GPU every `PERIOD_S` while a block runs; it stays idle on a machine without NVML."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry, self._done = telemetry, threading.Event()
        self._readings: list[dict[str, float | None]] = []
        self._throttled: set[str] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ClockWatch":
        if not self._telemetry.unavailable:
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._readings.append(self._telemetry.read())
            self._throttled.update(self._telemetry.throttled())

    def fields(self) -> dict[str, Any]:
        """Returns the median readings as fields of `reports.Sample`, with the reasons of any slow-down of the GPU."""
        found: dict[str, Any] = {}
        for name in self._readings[0] if self._readings else ():
            values = [value for reading in self._readings if (value := reading[name]) is not None]
            found[name] = statistics.median(values) if values else None
        return found | ({"parameters": {"throttled": ", ".join(sorted(self._throttled))}} if self._throttled else {})
