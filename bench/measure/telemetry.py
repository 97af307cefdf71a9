"""What a GPU's clock, temperature and power are, once or all the while something runs; through NVML."""

import statistics
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wallclock.reports.store.schema import SLOWED

if TYPE_CHECKING:
    import torch

# NVML's names of the reasons for which a GPU slows down that are no part of a load it is made for, and their bits.
REASONS = {"hw_slowdown": 0x8, "sw_thermal_slowdown": 0x20, "hw_thermal_slowdown": 0x40, "hw_power_brake": 0x80}
PERIOD_S = 0.1  # between two readings while something runs


def _nvml_handle(nvml: Any, index: int) -> Any:
    """The GPU that torch calls `index`: NVML takes no notice of CUDA_VISIBLE_DEVICES and counts in its own order."""
    import torch

    if not torch.cuda.is_available():
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


class Telemetry:
    """GPU clock, temperature and power through NVML; every reading is None where there is no NVML.

    Args:
        index: of the GPU, as torch counts; None asks none, for a run on the CPU of a machine that has one.
        remark: is told, once for each reason, that a reading found the GPU slowed down.
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
        """Returns that of the device that a run is measured on.

        Args:
            device: "cpu" or a CUDA device.
            remark: see the class; such as `RunWriter.note`.
        """
        return cls(device.index or 0 if device.type == "cuda" else None, remark=remark)

    def _query(self, function: str, *arguments: int) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError:  # a query that this GPU or its driver does not support
            return None

    def read(self) -> dict[str, float | None]:
        """Returns `sm_clock_mhz`, `temperature_c` and `power_w`."""
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
        """Returns why the GPU is slowed down now, beside the power cap of any heavy load: names in `REASONS`."""
        mask = self._query("nvmlDeviceGetCurrentClocksThrottleReasons")
        return tuple(name for name, bit in REASONS.items() if mask is not None and mask & bit)

    def energy_j(self) -> float | None:
        """Returns what the GPU has used since its driver was loaded; a difference is what something took."""
        millijoules = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def power_limit_w(self) -> float | None:
        """Returns the enforced power limit."""
        milliwatts = self._query("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else milliwatts / 1e3

    def clocks_locked(self) -> bool | None:
        """Returns True when application clocks are set, else None: no driver tells of clocks locked by `-lgc`."""
        wanted = self._query("nvmlDeviceGetApplicationsClock", 1)
        usual = self._query("nvmlDeviceGetDefaultApplicationsClock", 1)  # below the maximum on many cards
        return True if None not in (wanted, usual) and wanted != usual else None

    def driver(self) -> str | None:
        """Returns the driver's version."""
        if self._nvml is None:
            return None
        answer = self._nvml.nvmlSystemGetDriverVersion()
        return answer.decode() if isinstance(answer, bytes) else str(answer)

    def close(self) -> None:
        """Lets NVML go."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ClockWatch:
    """Reads a GPU's clock again and again while a block runs; where there is no NVML, nothing.

    Args:
        telemetry: of the GPU.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry, self._done = telemetry, threading.Event()
        self._readings: list[dict[str, float | None]] = []
        self._throttled: set[str] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ClockWatch":
        if not self._telemetry.unavailable:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._readings.append(self._telemetry.read())
            self._throttled.update(self._telemetry.throttled())

    def fields(self) -> dict[str, Any]:
        """Returns the medians as fields of `reports.Sample`, and why the GPU was slowed down meanwhile, if it was."""
        found: dict[str, Any] = {}
        for name in self._readings[0] if self._readings else ():
            values = [value for reading in self._readings if (value := reading[name]) is not None]
            found[name] = statistics.median(values) if values else None
        return found | ({"parameters": {"throttled": ", ".join(sorted(self._throttled))}} if self._throttled else {})
