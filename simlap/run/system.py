"""How busy the machine is while a run trains, under the names that MLflow's page of system metrics knows."""

from __future__ import annotations

import psutil
import torch

_MB = 1e6


class SystemMeter:
    """Read once an epoch, by the process that trains, on rank 0's node: about 0.2 ms. No thread, no waiting."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        psutil.cpu_percent()  # utilisation is counted from the call before

    def read(self) -> dict[str, float]:
        """The whole node's CPU since the last call (percent), its memory now, and that of the GPU that trains.

        Memory is in megabytes (10^6 bytes) and in percent.
        """
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / _MB,
            "system/system_memory_usage_percentage": memory.percent,
        }
        return found | self._gpu() if self.device.type == "cuda" else found

    def _gpu(self) -> dict[str, float]:
        number = self.device.index or 0
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            f"system/gpu_{number}_memory_usage_megabytes": (total - free) / _MB,
            f"system/gpu_{number}_memory_usage_percentage": 100 * (total - free) / total,
        }
