"""Cards in the Windows registry, represented by a folder per key and a file per value."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.graphics.builds import NoRuntime, choose
from core.graphics.card import GraphicsCard
from core.graphics.windows import DISPLAY_CLASS, LocalMachine, windows_cards


class FolderRegistry:
    """A registry whose keys are folders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keys(self, path: str) -> list[str]:
        folder = self._folder(path)
        return [one.name for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []

    def value(self, path: str, name: str) -> str:
        file = self._folder(path) / name
        return file.read_text("utf-8") if file.exists() else ""

    def adapter(self, key: str, name: str, version: str, device: str) -> None:
        folder = self._folder(rf"{DISPLAY_CLASS}\{key}")
        folder.mkdir(parents=True)
        for value, text in (("DriverDesc", name), ("DriverVersion", version), ("MatchingDeviceId", device)):
            (folder / value).write_text(text, "utf-8")

    def _folder(self, path: str) -> Path:
        return self._root.joinpath(*path.split("\\"))


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    made = FolderRegistry(tmp_path)
    made.adapter("0000", "Intel(R) Arc(TM) B580 Graphics", "32.0.101.8860", r"PCI\VEN_8086&DEV_E20B&SUBSYS_11001849")
    made.adapter("0001", "AMD Radeon RX 9070 XT", "32.0.21025.1024", r"pci\ven_1002&dev_7550&rev_c0")
    made.adapter("0002", "NVIDIA GeForce RTX 4090", "32.0.15.8088", r"PCI\VEN_10DE&DEV_2684")
    made.adapter("0003", "Microsoft Remote Display Adapter", "10.0", "ROOT\\Remote")
    made.adapter("Properties", "Not an adapter", "1", r"PCI\VEN_8086&DEV_E20B")
    return made


def test_adapters_with_their_drivers(registry: FolderRegistry) -> None:
    arc, radeon, geforce = windows_cards(registry)
    assert arc == GraphicsCard("Intel", "Intel(R) Arc(TM) B580 Graphics", "Battlemage", "32.0.101.8860")
    assert radeon == GraphicsCard("AMD", "AMD Radeon RX 9070 XT", "", "32.0.21025.1024")
    assert geforce == GraphicsCard("NVIDIA", "NVIDIA GeForce RTX 4090")
    assert choose([radeon, arc], "win32")[0].tag == "xpu"


def test_amd_on_windows_is_said_in_a_sentence_with_what_to_do(registry: FolderRegistry) -> None:
    radeon = windows_cards(registry)[1]
    with pytest.raises(NoRuntime) as refused:
        choose([radeon], "win32")
    assert str(refused.value) == (
        "The AMD Radeon RX 9070 XT cannot be used on this system. PyTorch publishes builds for AMD cards for "
        "other systems only. Under Linux it can be used."
    )


def test_a_registry_without_adapters(tmp_path: Path) -> None:
    assert windows_cards(FolderRegistry(tmp_path)) == []
    assert isinstance(windows_cards(LocalMachine()), list)
