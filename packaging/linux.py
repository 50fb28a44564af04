"""Linux packages: a .deb for Debian and derivatives, and an AppImage if its tool is installed."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from email.utils import formatdate
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ID = "org.hetegen.HeteGen"
MAINTAINER = "The HeteGen authors <hetegen@users.noreply.github.com>"
ICON_SIZES = (16, 22, 24, 32, 48, 64, 128, 256, 512)
DEPENDS = (
    "libc6 (>= 2.34)", "libstdc++6", "libgcc-s1", "zlib1g", "libegl1", "libgl1", "libfontconfig1", "libfreetype6",
    "libglib2.0-0 | libglib2.0-0t64", "libdbus-1-3", "libgssapi-krb5-2", "libx11-6", "libx11-xcb1", "libxkbcommon0",
    "libxkbcommon-x11-0", "libxcb1", "libxcb-cursor0", "libxcb-icccm4", "libxcb-image0", "libxcb-keysyms1",
    "libxcb-randr0", "libxcb-render0", "libxcb-render-util0", "libxcb-shape0", "libxcb-shm0", "libxcb-sync1",
    "libxcb-util1", "libxcb-xfixes0", "libxcb-xkb1", "fonts-dejavu-core | fonts-noto-core | fonts-liberation",
    "ca-certificates",
)  # fmt: skip
RECOMMENDS = ("gnome-keyring | kwalletmanager", "xdg-utils", "libwayland-cursor0", "libwayland-egl1")
SUMMARY = "chat with language models larger than the graphics card"
DESCRIPTION = """\
 HeteGen opens ordinary Hugging Face models, measures this computer, and
 divides every layer between processor and graphics card so that both work
 at the same time. It works without a graphics card too.
 .
 Everything runs on this computer; nothing that you write leaves it.
"""
OVERRIDES = """\
# Sources of torch and transformers, which look them up as they run; nobody runs them as scripts.
hetegen: wrong-path-for-interpreter *
hetegen: script-not-executable *
hetegen: unusual-interpreter *
# Ready made libraries, of the wheels and of the Python that the bundle was built with.
hetegen: hardening-no-pie *
hetegen: custom-library-search-path *
hetegen: library-not-linked-against-libc *
hetegen: shared-library-lacks-prerequisites *
hetegen: unstripped-binary-or-object *
hetegen: no-manual-page *
# Not a package of Debian: the bundle is one folder, apart from the system's own.
hetegen: dir-or-file-in-opt *
hetegen: embedded-library *
"""

STRIPPED = (
    "libpython*", "python3*/lib-dynload/*.so", "core/kernels/*.so", "torch/lib/*.so", "tokenizers/*.so", "hf_xet/*.so",
    "cryptography/hazmat/bindings/*.so",
)  # fmt: skip
"""Libraries with large symbol tables. Libraries patched by their wheels are not listed: strip may break them."""


def strip(bundle: Path) -> None:
    """Strip the bundle's libraries, which saves about a sixth of its size."""
    libraries = [path for pattern in STRIPPED for path in (bundle / "_internal").glob(pattern) if not path.is_symlink()]
    subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)


def deb(bundle: Path, target: Path, version: str) -> Path:
    """Write `target`/hetegen_VERSION_amd64.deb; the bundle goes to /opt/hetegen."""
    tree = bundle.parent.parent / "build" / "deb"
    shutil.rmtree(tree, ignore_errors=True)
    _copy_bundle(bundle, tree / "opt" / "hetegen")
    for name in ("hetegen", "hetegen-cli"):
        link = tree / "usr" / "bin" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/opt/hetegen/{name}")
    _desktop_files(tree / "usr" / "share")
    _documents(tree / "usr" / "share", version)
    _control(tree, version)
    result = target / f"hetegen_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--build", tree, result], check=True)
    return result


def appimage(bundle: Path, target: Path, version: str) -> None:
    """Write `target`/HeteGen-VERSION-x86_64.AppImage, or report that its tool is missing."""
    tool = shutil.which("appimagetool")
    if tool is None:
        print("Skipped the AppImage: appimagetool is not installed.")
        return
    tree = bundle.parent.parent / "build" / "HeteGen.AppDir"
    shutil.rmtree(tree, ignore_errors=True)
    _copy_bundle(bundle, tree / "usr" / "lib" / "hetegen")
    _desktop_files(tree / "usr" / "share")
    shutil.copyfile(HERE / "linux" / f"{ID}.desktop", tree / f"{ID}.desktop")
    shutil.copyfile(ROOT / "assets" / "logo" / "256.png", tree / f"{ID}.png")
    (tree / "AppRun").symlink_to("usr/lib/hetegen/hetegen")
    image = target / f"HeteGen-{version}-x86_64.AppImage"
    # Without FUSE, as in containers, the tool can still unpack itself.
    environment = os.environ | {"ARCH": "x86_64", "APPIMAGE_EXTRACT_AND_RUN": "1"}
    subprocess.run([tool, "--no-appstream", tree, image], env=environment, check=True)


def _copy_bundle(bundle: Path, folder: Path) -> None:
    """Copy the large bundle, by hard links where possible, and set a package's permissions."""
    shutil.copytree(bundle, folder, symlinks=True, copy_function=_link)
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        runs = path.is_dir() or path.parent == folder or path.name == "torch_shm_manager"
        path.chmod(0o755 if runs else 0o644)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _desktop_files(share: Path) -> None:
    _put(HERE / "linux" / f"{ID}.desktop", share / "applications" / f"{ID}.desktop")
    _put(HERE / "linux" / f"{ID}.metainfo.xml", share / "metainfo" / f"{ID}.metainfo.xml")
    _put(HERE / "linux" / f"{ID}.mime.xml", share / "mime" / "packages" / f"{ID}.xml")
    logo = ROOT / "assets" / "logo"
    _put(logo / "logo.svg", share / "icons" / "hicolor" / "scalable" / "apps" / f"{ID}.svg")
    for size in ICON_SIZES:
        _put(logo / f"{size}.png", share / "icons" / "hicolor" / f"{size}x{size}" / "apps" / f"{ID}.png")


def _documents(share: Path, version: str) -> None:
    folder = share / "doc" / "hetegen"
    folder.mkdir(parents=True)
    (folder / "copyright").write_text(
        "HeteGen\nCopyright 2026 The HeteGen authors\n\nLicensed under the Apache License, Version 2.0; see"
        " /usr/share/common-licenses/Apache-2.0.\n\nThe libraries that come with it and their licences are listed in"
        " /opt/hetegen/_internal/assets/licences/;\nQt and PySide6 are used under the LGPL, version 3; see"
        " /usr/share/common-licenses/LGPL-3.\n",
        encoding="utf-8",
    )
    entry = f"hetegen ({version}) stable; urgency=low\n\n  * See the project's own list of changes.\n\n"
    news = f"{entry} -- {MAINTAINER}  {formatdate(_epoch())}\n"
    (folder / "changelog.gz").write_bytes(gzip.compress(news.encode(), 9, mtime=0))
    overrides = share / "lintian" / "overrides" / "hetegen"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(OVERRIDES, encoding="utf-8")


def _epoch() -> float:
    """Return the time of the last commit, so that two builds of a commit are identical."""
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return float(done.stdout.strip() or 0)


def _control(tree: Path, version: str) -> None:
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    folder = tree / "DEBIAN"
    folder.mkdir()
    fields = {
        "Package": "hetegen", "Version": version, "Section": "utils", "Priority": "optional", "Architecture": "amd64",
        "Maintainer": MAINTAINER, "Installed-Size": str(sum(path.stat().st_size for path in files) // 1024),
        "Depends": ", ".join(DEPENDS), "Recommends": ", ".join(RECOMMENDS), "Homepage": "https://arxiv.org/abs/2403.01164",
        "Description": f"{SUMMARY}\n{DESCRIPTION}",
    }  # fmt: skip
    lines = (f"{name}: {value}" for name, value in fields.items())
    (folder / "control").write_text("\n".join(lines), encoding="utf-8")
    sums = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)
    (folder / "md5sums").write_text("".join(sums), encoding="utf-8")


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)
