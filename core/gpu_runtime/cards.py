"""The NVIDIA cards of this computer, asked of the driver itself: no torch is needed to know them."""

from __future__ import annotations

from core.gpu_runtime.cuda_choice import Nvidia, NvidiaCard


def find_nvidia() -> Nvidia | None:
    """The driver and its cards; None where no driver answers."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return Nvidia(_text(pynvml.nvmlSystemGetDriverVersion()), tuple(_cards(pynvml)))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _cards(nvml) -> list[NvidiaCard]:  # type: ignore[no-untyped-def]  # A module without types.
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [
        NvidiaCard(_text(nvml.nvmlDeviceGetName(handle)), tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)))
        for handle in handles
    ]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
