"""NVIDIA cards and their compute capability, from NVML."""

from __future__ import annotations

from core.graphics.card import GraphicsCard


def nvidia_cards() -> list[GraphicsCard]:
    """Return the cards that NVML reports; none if no driver answers."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return _cards(pynvml)
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _cards(nvml) -> list[GraphicsCard]:  # type: ignore[no-untyped-def]  # A module without types.
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [
        GraphicsCard("NVIDIA", _text(nvml.nvmlDeviceGetName(handle)), _capability(nvml, handle), driver)
        for handle in handles
    ]


def _capability(nvml, handle) -> str:  # type: ignore[no-untyped-def]
    return ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
