"""Base class of methods that compute with torch."""

from __future__ import annotations

from ..process.devices import check_device


class TorchMethod:
    """The part of a `hpo.problem.base.Method` that asks torch about this process."""

    def prepare(self, device: str | None, threads: int) -> None:
        # Torch takes seconds to import, and who only reads a study file needs none of it.
        import torch

        check_device(device)
        torch.set_num_threads(threads)

    def count_gpus(self) -> int:
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def machine(self) -> dict[str, object]:
        import torch

        return {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "units": self.units(torch.backends.cpu.get_cpu_capability()),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def units(self, instruction_set: str) -> str:
        """What rounding depends on beside the device and torch's release."""
        return instruction_set

    def speed(self) -> float | None:
        return None
