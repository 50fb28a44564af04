"""The decision about a runtime at startup, with the trial in a real process: used, or the CPU and a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.gpu_runtime.install import install
from core.gpu_runtime.start import Standing, activate
from core.gpu_runtime.store import Runtime, TrialResult
from core.gpu_runtime.trial import attempt
from core.gpu_runtime.wheel_selection import Needed
from core.graphics.card import GraphicsCard
from core.hub.client import Client
from core.hub.downloader import DownloadOptions
from tests.core.gpu_runtime.wheels import CUDA, PACKAGES, Offer


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", sys.path.copy())


@pytest.fixture
def installed(client: Client, runtime: Runtime, needed: Needed, manner: DownloadOptions) -> Runtime:
    install(client, runtime, needed, manner=manner)
    return runtime


def used(offer: Offer) -> Standing:
    return Standing(offer.version, used=True, device="Fake Card")


def untried(*_: object) -> TrialResult:
    raise AssertionError("it was tried again")


def test_nothing_installed_is_nothing_to_say(runtime: Runtime):
    assert activate(runtime) == Standing()


def test_tried_once_then_used_at_every_start(installed: Runtime, offer: Offer):
    assert activate(installed, lambda: [offer.card]) == used(offer)
    assert sys.path[0] == str(installed.folder(offer.version) / PACKAGES)
    assert activate(installed, lambda: [offer.card], untried) == used(offer)


def test_another_driver_means_another_trial(installed: Runtime, offer: Offer):
    installed.keep_result(TrialResult(offer.version, "570.1", why="It crashed."))
    assert activate(installed, lambda: [offer.card]) == used(offer)


def test_a_start_that_never_ended_means_another_trial(installed: Runtime, offer: Offer):
    installed.keep_result(TrialResult(offer.version, offer.card.driver, "Fake Card"))
    installed.set_out()
    standing = activate(
        installed, lambda: [offer.card], lambda folder, driver: TrialResult(folder.name, driver, why="It crashed.")
    )
    assert (standing.used, standing.why) == (False, "It crashed.")


@pytest.mark.parametrize("others", [(), (GraphicsCard("AMD", "No driver", "gfx1100"),)])
def test_without_a_card_the_processor_is_used(installed: Runtime, offer: Offer, others: tuple[GraphicsCard, ...]):
    before = sys.path.copy()
    standing = activate(installed, lambda: others, untried)
    assert not standing.used
    assert standing.why == f"No {offer.card.maker} card answers."
    assert sys.path == before


def test_a_runtime_for_another_torch_is_not_used(installed: Runtime, offer: Offer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("core.gpu_runtime.start.own_torch", lambda: "9.9.9")
    standing = activate(installed, lambda: [offer.card], untried)
    assert "this program has 9.9.9" in standing.why


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
        ("import os; os._exit(139)", "crashed when it was tried (exit code 139)"),
        (
            "import types; __version__ = '0'; "
            "accelerator = types.SimpleNamespace(current_accelerator=lambda check_available: None)",
            "finds no card",
        ),
    ],
)
def test_a_broken_runtime_falls_back_with_a_sentence(installed: Runtime, offer: Offer, code: str, words: str):
    (installed.folder(offer.version) / PACKAGES / "torch" / "__init__.py").write_text(code, "utf-8")
    standing = activate(installed, lambda: [offer.card])
    assert not standing.used
    assert words in standing.why
    assert standing == activate(installed, lambda: [offer.card], untried)


def test_wrong_numbers_are_no_use(installed: Runtime, offer: Offer):
    source = installed.folder(offer.version) / PACKAGES / "torch" / "__init__.py"
    source.write_text(source.read_text("utf-8") + "\nequal = lambda a, b: False\n", "utf-8")
    assert attempt(installed.folder(offer.version), "580").why == "The card multiplied wrongly."


def test_removed_at_once_or_at_the_next_start(installed: Runtime, offer: Offer):
    installed.remove_later()
    assert installed.installed() == offer.version
    assert activate(installed, lambda: [offer.card], untried) == Standing()
    assert not installed.root.exists()
    installed.remove()


USER = """
import sys
from pathlib import Path
from core.gpu_runtime.store import Runtime
Runtime(Path(sys.argv[1])).hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_one_that_another_program_uses_is_removed_by_a_later_start(installed: Runtime, offer: Offer):
    command = [sys.executable, "-c", USER, str(installed.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        assert user.stdout.readline().strip() == b"held"
        installed.remove_later()
        assert activate(installed, lambda: [offer.card], untried) == Standing()
        assert installed.installed() == offer.version
        user.kill()
    assert activate(installed, lambda: [offer.card], untried) == Standing()
    assert not installed.root.exists()


def test_a_start_that_does_not_wait_for_a_trial_says_so(installed: Runtime, offer: Offer):
    standing = activate(installed, lambda: [offer.card], attempt=None)
    assert (standing.version, standing.used, standing.untried) == (offer.version, False, True)
    assert str(installed.folder(offer.version) / PACKAGES) not in sys.path
    assert activate(installed, lambda: [offer.card]) == used(offer)
    assert activate(installed, lambda: [offer.card], attempt=None) == used(offer)


def test_half_unpacked_is_not_installed(runtime: Runtime):
    runtime.partial(CUDA.version).mkdir(parents=True)
    (runtime.partial(CUDA.version) / "stamp.json").write_text('{"version": "x"}', "utf-8")
    assert activate(runtime, lambda: [CUDA.card], untried) == Standing()
