"""The Windows installer, made by NSIS, the version resource, and signing if there is a certificate."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
NSIS = ("makensis", r"C:\Program Files (x86)\NSIS\makensis.exe", r"C:\Program Files\NSIS\makensis.exe")
TIMESTAMPS = "http://timestamp.digicert.com"
VERSION_INFO = """\
VSVersionInfo(
  ffi=FixedFileInfo(filevers={numbers}, prodvers={numbers}, mask=0x3F, flags=0, OS=0x40004, fileType=1, subtype=0,
    date=(0, 0)),
  kids=[
    StringFileInfo([StringTable('040904B0', [
      StringStruct('CompanyName', 'The HeteGen authors'),
      StringStruct('FileDescription', 'HeteGen'),
      StringStruct('FileVersion', '{version}'),
      StringStruct('InternalName', 'hetegen'),
      StringStruct('LegalCopyright', 'Copyright 2026 The HeteGen authors'),
      StringStruct('ProductName', 'HeteGen'),
      StringStruct('ProductVersion', '{version}')])]),
    VarFileInfo([VarStruct('Translation', [1033, 1200])])
  ]
)
"""


def write_version(path: Path, version: str) -> None:
    """Write the version resource that PyInstaller adds to both programs. `version`: MAJOR.MINOR.PATCH."""
    numbers = (*(int(part) for part in version.split(".")), 0)
    path.write_text(VERSION_INFO.format(numbers=numbers, version=version), encoding="utf-8")


def installer(bundle: Path, target: Path, version: str) -> Path | None:
    """Write `target`/HeteGen-VERSION-setup.exe, which installs for one user without administrator rights."""
    tool = next((found for name in NSIS if (found := shutil.which(name))), None)
    if tool is None:
        print("Skipped the installer: NSIS is not installed.")
        return None
    result = target / f"HeteGen-{version}-setup.exe"
    kilobytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) // 1024
    values = {"VERSION": version, "BUNDLE": bundle, "RESULT": result, "KILOBYTES": kilobytes}
    defines = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run([tool, "-V2", "-INPUTCHARSET", "UTF8", *defines, HERE / "windows" / "hetegen.nsi"], check=True)
    sign(result)
    return result


def sign(*files: Path) -> None:
    """Sign with the certificate whose SHA-1 is in HETEGEN_CERTIFICATE, from the system's store."""
    certificate = os.environ.get("HETEGEN_CERTIFICATE", "")
    if not certificate:
        print(f"Not signed: {', '.join(file.name for file in files)}; HETEGEN_CERTIFICATE names no certificate.")
        return
    tool = ("signtool", "sign", "/sha1", certificate, "/fd", "sha256", "/tr", TIMESTAMPS, "/td", "sha256")
    subprocess.run([*tool, *map(str, files)], check=True)
