"""The disk image for macOS, signed and notarised if there is an identity; otherwise a message says so."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

ENTITLEMENTS = Path(__file__).resolve().parent / "macos" / "entitlements.plist"
HARDENED = ("--deep", "--options", "runtime", "--entitlements", str(ENTITLEMENTS))
"""Signing options required for notarisation."""


def disk_image(app: Path, target: Path, version: str) -> Path:
    """Write `target`/HeteGen-VERSION.dmg with the application and a link to /Applications."""
    image = target / f"HeteGen-{version}.dmg"
    with tempfile.TemporaryDirectory() as folder:
        _run("ditto", app, Path(folder) / app.name)
        (Path(folder) / "Applications").symlink_to("/Applications")
        _run("hdiutil", "create", "-volname", "HeteGen", "-srcfolder", folder, "-format", "ULFO", "-ov", image)
    sign(image)
    notarise(image)
    return image


def sign(target: Path, *how: str) -> None:
    """Sign with the identity in HETEGEN_IDENTITY ("Developer ID Application: …") and these options."""
    identity = os.environ.get("HETEGEN_IDENTITY", "")
    if not identity:
        print(f"Not signed: {target.name}; HETEGEN_IDENTITY names no identity. People open it with a right click.")
        return
    _run("codesign", "--force", "--timestamp", *how, "--sign", identity, target)
    _run("codesign", "--verify", "--deep", "--strict", target)


def notarise(image: Path) -> None:
    """Notarise with the profile in HETEGEN_NOTARY_PROFILE, stored by `xcrun notarytool store-credentials`."""
    profile = os.environ.get("HETEGEN_NOTARY_PROFILE", "")
    if not profile:
        print("Not notarised: HETEGEN_NOTARY_PROFILE names no profile.")
        return
    _run("xcrun", "notarytool", "submit", image, "--keychain-profile", profile, "--wait")
    _run("xcrun", "stapler", "staple", image)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)
