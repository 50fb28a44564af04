"""Cards as listed by Linux, in a tree of real files in place of the root of the file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.graphics.builds import choose
from core.graphics.card import GraphicsCard
from core.graphics.linux import amd_targets, linux_cards

PCI_IDS = """\
# a comment
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]
\t\t1002 0e3b  Another's card
8086  Intel Corporation
\t56a0  DG2 [Arc A770]
\t744c  Not this one
"""


class Disk:
    """A file system root with the files that the system would provide."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        return file

    def pci(self, address: str, vendor: int, device: int, kind: int = 0x030000) -> None:
        for name, number in (("class", kind), ("vendor", vendor), ("device", device)):
            self.write(f"sys/bus/pci/devices/{address}/{name}", f"{number:#06x}\n")

    def kfd(self, node: int, version: int, bus: int, device: int = 0) -> None:
        place = bus << 8 | device << 3
        facts = f"simd_count 96\ngfx_target_version {version}\nvendor_id 4098\nlocation_id {place}\ndomain 0\n"
        self.write(f"sys/class/kfd/kfd/topology/nodes/{node}/properties", facts)

    def level_zero(self, folder: str = "usr/lib/x86_64-linux-gnu", version: str = "1.6.33578.15") -> None:
        whole = self.write(f"{folder}/libze_intel_gpu.so.{version}")
        (whole.parent / "libze_intel_gpu.so.1").symlink_to(whole.name)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path)
    made.write("usr/share/misc/pci.ids", PCI_IDS)
    made.write("proc/sys/kernel/osrelease", "6.14.0-29-generic\n")
    made.write("dev/kfd")
    made.write("dev/dri/renderD128")
    # A bridge and a network card, which are no display controllers.
    made.pci("0000:00:01.0", 0x8086, 0x1234, 0x060400)
    made.pci("0000:00:1f.6", 0x8086, 0x15BC, 0x020000)
    return made


def test_a_computer_without_any(disk: Disk) -> None:
    assert linux_cards(disk.root) == []
    assert linux_cards(disk.root / "nowhere") == []


def test_amd_by_what_the_kernel_computes_on(disk: Disk) -> None:
    disk.pci("0000:03:00.0", 0x1002, 0x744C)
    disk.kfd(0, 0, 0)
    disk.kfd(1, 110000, 3)
    [card] = linux_cards(disk.root)
    assert card == GraphicsCard("AMD", "AMD Radeon RX 7900 XT/7900 XTX", "gfx1100", "6.14.0-29-generic")
    assert choose([card], "linux")[0].tag == "rocm7.2"


@pytest.mark.parametrize(
    ("version", "target"),
    [(90402, "gfx942"), (90010, "gfx90a"), (100302, "gfx1032"), (110501, "gfx1151"), (120001, "gfx1201")],
)
def test_what_amd_cards_are_compiled_for(disk: Disk, version: int, target: str) -> None:
    disk.kfd(1, version, 0x83)
    assert amd_targets(disk.root) == {"0000:83:00.0": target}


def test_amds_own_driver_has_a_version_of_its_own(disk: Disk) -> None:
    disk.pci("0000:03:00.0", 0x1002, 0x744C)
    disk.kfd(1, 110000, 3)
    disk.write("sys/module/amdgpu/version", "6.16.6\n")
    assert linux_cards(disk.root)[0].driver == "6.16.6"


def test_an_amd_card_that_the_kernel_does_not_compute_on_has_no_driver(disk: Disk) -> None:
    disk.pci("0000:03:00.0", 0x1002, 0x9999)
    assert linux_cards(disk.root) == [GraphicsCard("AMD", "AMD graphics 9999")]


def test_a_device_that_may_not_be_opened_is_noticed(disk: Disk) -> None:
    disk.pci("0000:03:00.0", 0x1002, 0x744C)
    disk.kfd(1, 110000, 3)
    # The superuser may open every existing file.
    (disk.root / "dev/kfd").unlink()
    assert not linux_cards(disk.root)[0].allowed


def test_intel_by_its_number_and_its_driver_for_computing(disk: Disk) -> None:
    disk.pci("0000:00:02.0", 0x8086, 0x56A0, 0x038000)
    assert linux_cards(disk.root) == [GraphicsCard("Intel", "Intel Arc A770", "Alchemist")]
    disk.level_zero()
    [card] = linux_cards(disk.root)
    assert (card.architecture, card.driver, card.allowed) == ("Alchemist", "1.6.33578.15", True)
    assert choose([card], "linux")[0].tag == "xpu"


@pytest.mark.parametrize(("device", "family"), [(0xE20B, "Battlemage"), (0x64A0, "Lunar Lake"), (0xA780, "")])
def test_families_of_intel(disk: Disk, device: int, family: str) -> None:
    disk.pci("0000:00:02.0", 0x8086, device)
    disk.level_zero("usr/lib64")
    assert linux_cards(disk.root)[0].architecture == family


def test_nvidia_without_its_driver_is_known_by_name(disk: Disk) -> None:
    disk.pci("0000:01:00.0", 0x10DE, 0x2684)
    assert linux_cards(disk.root) == [GraphicsCard("NVIDIA", "NVIDIA graphics 2684")]
