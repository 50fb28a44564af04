"""The disk image for macOS; signing and notarising where there is an identity, a word where there is none."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

ENTITLEMENTS = Path(__file__).resolve().parent / "macos" / "entitlements.plist"
HARDENED = ("--deep", "--options", "runtime", "--entitlements", str(ENTITLEMENTS))
"""How an application is signed that is to be notarised."""


def disk_image(app: Path, target: Path, version: str) -> Path:
    """Write `target`/HeteGen-VERSION.dmg with the application and a link to the folder it belongs into."""
    image = target / f"HeteGen-{version}.dmg"
    with tempfile.TemporaryDirectory() as folder:
        _run("ditto", app, Path(folder) / app.name)
        (Path(folder) / "Applications").symlink_to("/Applications")
        _run("hdiutil", "create", "-volname", "HeteGen", "-srcfolder", folder, "-format", "ULFO", "-ov", image)
    sign(image)
    notarise(image)
    return image


def sign(target: Path, *how: str) -> None:
    """With the identity named by HETEGEN_IDENTITY ("Developer ID Application: …"), in these ways."""
    identity = os.environ.get("HETEGEN_IDENTITY", "")
    if not identity:
        print(f"Not signed: {target.name}; HETEGEN_IDENTITY names no identity. People open it with a right click.")
        return
    _run("codesign", "--force", "--timestamp", *how, "--sign", identity, target)
    _run("codesign", "--verify", "--deep", "--strict", target)


def notarise(image: Path) -> None:
    """With the profile that `xcrun notarytool store-credentials` kept, named by HETEGEN_NOTARY_PROFILE."""
    profile = os.environ.get("HETEGEN_NOTARY_PROFILE", "")
    if not profile:
        print("Not notarised: HETEGEN_NOTARY_PROFILE names no profile.")
        return
    _run("xcrun", "notarytool", "submit", image, "--keychain-profile", profile, "--wait")
    _run("xcrun", "stapler", "staple", image)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)
