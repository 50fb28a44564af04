"""Builds the bundle and the packages for this system: `python packaging/build.py [STEP ...]`.

The steps are the bundle, its self-test, archive, packages and SHA-256 sums. Results are in `dist/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import licences  # noqa: E402

DIST = ROOT / "dist"
WORK = ROOT / "build" / "bundle"
SYSTEM = {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")
EXE = ".exe" if SYSTEM == "windows" else ""
BUNDLE = DIST / "hetegen"
TEST_S = 300


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def run(*command: str | Path, **environment: str) -> None:
    """Run a tool; exit if it fails."""
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=os.environ | environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed with exit code {done.returncode}.")


def bundle() -> None:
    """Build `dist/hetegen`, and on macOS `dist/HeteGen.app`."""
    WORK.mkdir(parents=True, exist_ok=True)
    if lacking := licences.collect(WORK / "licences"):
        raise SystemExit(f"No licence text for {', '.join(lacking)}: see licences.py.")
    kernels()
    _made_before()
    if SYSTEM == "windows":
        import windows

        windows.write_version(WORK / "version.txt", version())
    run(
        *(sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"),
        *("--distpath", DIST, "--workpath", WORK / "pyinstaller", HERE / "hetegen.spec"),
        HETEGEN_BUILD=str(WORK),
        HETEGEN_VERSION=version(),
    )
    finish()


def finish() -> None:
    """Sign or strip the programs before testing and packing: the archive holds signed programs too."""
    if SYSTEM == "windows":
        import windows

        windows.sign(program(), program("hetegen-cli"))
    elif SYSTEM == "macos":
        import macos

        macos.sign(DIST / "HeteGen.app", *macos.HARDENED)
    else:
        import linux

        linux.strip(BUNDLE)
        (BUNDLE / "hetegen-cli").symlink_to("hetegen")


def kernels() -> None:
    """Copy or compile the kernels into a build folder: those beside the sources may be in use or outdated."""
    shutil.rmtree(WORK / "native", ignore_errors=True)
    sources = [path.stat().st_mtime for path in (ROOT / "core/kernels/native").iterdir()]
    for made in (ROOT / "core/kernels").glob(f"_native*{sysconfig.get_config_var('EXT_SUFFIX')}"):
        if made.stat().st_mtime > max(sources):
            (WORK / "native/core/kernels").mkdir(parents=True)
            shutil.copy2(made, WORK / "native/core/kernels")
            return
    run(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", WORK / "native", "--build-temp", WORK / "objects")
    # An installation from source works without a compiler; a bundle must not ship without kernels.
    if not list((WORK / "native").glob("core/kernels/_native*")):
        raise SystemExit("The kernels were not compiled: see the compiler's messages above.")


def _made_before() -> None:
    """Survey the guide in advance, which would make the first start the slowest."""
    folder = WORK / "made-before"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, HERE / "made_before.py", folder)


def program(name: str = "hetegen") -> Path:
    """Return the path of an executable of the bundle, as users start it."""
    if SYSTEM == "macos":
        return DIST / "HeteGen.app" / "Contents" / "MacOS" / name
    return BUNDLE / f"{name}{EXE}"


def test() -> None:
    """Run the bundle's self-test and its command line with an empty home."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        report = ask(program(), "--self-test", home=home)
        doctor = ask(program("hetegen-cli"), "doctor", "--json", home=home)
    print(json.dumps(report), json.dumps(doctor)[:400], sep="\n")
    if not report["ok"]:
        raise SystemExit("The bundle does not answer.")


def ask(*command: str | Path, home: str) -> dict[str, object]:
    """Run a program of the bundle and return the JSON object on its last line."""
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | {"HETEGEN_HOME": home}, capture_output=True, text=True,
        encoding="utf-8", timeout=TEST_S, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"{command[0]} failed with exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    answer: dict[str, object] = json.loads(lines[-1])
    return answer


def archive() -> None:
    """Pack the bundle: a tar on Linux, which keeps links and modes; a zip on macOS and Windows."""
    name = f"HeteGen-{version()}-{SYSTEM}"
    if SYSTEM == "windows":
        _zip(BUNDLE, DIST / f"{name}-portable.zip")
    elif SYSTEM == "macos":
        run("ditto", "-c", "-k", "--keepParent", DIST / "HeteGen.app", DIST / f"{name}.zip")
    else:
        # tar instead of tarfile: xz compresses on all cores.
        owner = ("--owner=0", "--group=0", "--numeric-owner", "--sort=name")
        target = DIST / f"{name}-x86_64.tar.xz"
        run("tar", "-C", DIST, *owner, "--use-compress-program=xz -T0 -3", "-cf", target, "hetegen")


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, Path("HeteGen") / path.relative_to(folder))


def package() -> None:
    """Build what this system installs: .deb and AppImage, an installer, or a disk image."""
    if SYSTEM == "windows":
        import windows

        windows.installer(BUNDLE, DIST, version())
    elif SYSTEM == "macos":
        import macos

        macos.disk_image(DIST / "HeteGen.app", DIST, version())
    else:
        import linux

        linux.deb(BUNDLE, DIST, version())
        linux.appimage(BUNDLE, DIST, version())


def sums() -> None:
    """Write the SHA-256 of every release file to `SHA256SUMS`."""
    names = sorted(file.name for file in DIST.iterdir() if file.is_file() and file.name != "SHA256SUMS")
    lines = (f"{_sha256(DIST / name)}  {name}\n" for name in names)
    (DIST / "SHA256SUMS").write_text("".join(lines), encoding="utf-8", newline="\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STEPS: dict[str, Callable[[], None]] = {
    "bundle": bundle, "test": test, "archive": archive, "package": package, "sums": sums,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], metavar="STEP", help=f"of {', '.join(STEPS)}")
    for name in parser.parse_args().steps or STEPS:
        print(f"== {name}", flush=True)
        STEPS[name]()


if __name__ == "__main__":
    main()
