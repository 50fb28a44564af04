"""Setup before Qt and torch are imported, and messages for what keeps a bundle from starting.

Knows the environment, streams and system libraries, and nothing of the window. Imports only the standard library and
what sets the variables.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from core.startup.environment import prepare_environment

PACKAGES = {
    "libEGL": "libegl1", "libGL": "libgl1", "libfontconfig": "libfontconfig1", "libfreetype": "libfreetype6",
    "libglib-2.0": "libglib2.0-0", "libgthread-2.0": "libglib2.0-0", "libdbus-1": "libdbus-1-3",
    "libX11": "libx11-6", "libX11-xcb": "libx11-xcb1", "libxkbcommon": "libxkbcommon0",
    "libxkbcommon-x11": "libxkbcommon-x11-0", "libxcb": "libxcb1", "libxcb-cursor": "libxcb-cursor0",
    "libxcb-icccm": "libxcb-icccm4", "libxcb-image": "libxcb-image0", "libxcb-keysyms": "libxcb-keysyms1",
    "libxcb-randr": "libxcb-randr0", "libxcb-render": "libxcb-render0", "libxcb-render-util": "libxcb-render-util0",
    "libxcb-shape": "libxcb-shape0", "libxcb-shm": "libxcb-shm0", "libxcb-sync": "libxcb-sync1",
    "libxcb-util": "libxcb-util1", "libxcb-xfixes": "libxcb-xfixes0", "libxcb-xkb": "libxcb-xkb1",
    "libstdc++": "libstdc++6", "libgcc_s": "libgcc-s1", "libgssapi_krb5": "libgssapi-krb5-2",
}  # fmt: skip
"""Debian package of each system library that the window needs."""
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Certificate bundles of Debian; Fedora; openSUSE; Alpine, Arch and macOS."""
MESSAGE_BOXES = (
    ("zenity", "--error", "--no-markup", "--title=HeteGen", "--text={}"),
    ("kdialog", "--title", "HeteGen", "--error", "{}"),
    ("xmessage", "-center", "{}"),
)
"""Programs that can show a message without Qt."""


class CannotStart(Exception):
    """Why the program cannot run here, and what to do, in whole sentences."""


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set up the environment. Call once, before any library is imported."""
    prepare_environment(environ)
    restore_library_path(environ)
    find_certificates(environ)
    ensure_home(environ)


def restore_library_path(environ: MutableMapping[str, str]) -> None:
    """Undo the bootloader's LD_LIBRARY_PATH for child processes: a browser started with ours may crash."""
    if not getattr(sys, "frozen", False):
        return
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        environ.pop(name, None)
        if before := environ.pop(f"{name}_ORIG", ""):
            environ[name] = before


def find_certificates(environ: MutableMapping[str, str], places: Sequence[str] = CERTIFICATES) -> None:
    """Point a bundle's OpenSSL to this system's certificates; it would look where the build system keeps them.

    Windows certificates are found in another way.
    """
    if not getattr(sys, "frozen", False) or "SSL_CERT_FILE" in environ or "SSL_CERT_DIR" in environ:
        return
    if found := next((place for place in places if Path(place).is_file()), None):
        environ["SSL_CERT_FILE"] = found


def ensure_home(environ: MutableMapping[str, str]) -> None:
    """Create a temporary home for services and containers that have none; it does not last, but is better than none."""
    if _home_exists():
        return
    home = Path(tempfile.mkdtemp(prefix="hetegen-"))
    environ["HOME"] = environ["USERPROFILE"] = str(home)
    print(f"There is no home folder; this run keeps its files in {home}.", file=sys.stderr)


def _home_exists() -> bool:
    try:
        return Path.home().is_dir()
    except RuntimeError:
        return False


def check_window(platform: str = "") -> None:
    """Check that Qt can show a window here. Raises CannotStart naming the missing library.

    Qt itself aborts the process if its X11 plugin lacks a library.
    """
    if not sys.platform.startswith("linux"):
        return
    folder = _import_qt()
    platform = platform or os.environ.get("QT_QPA_PLATFORM", "")
    if platform.partition(":")[0] in ("", "xcb") and not os.environ.get("WAYLAND_DISPLAY"):
        if not platform and not os.environ.get("DISPLAY"):
            raise CannotStart("There is no screen: neither DISPLAY nor WAYLAND_DISPLAY is set.")
        load_library(folder / "Qt" / "plugins" / "platforms" / "libqxcb.so")


def _import_qt() -> Path:
    try:
        import PySide6
        from PySide6 import QtGui  # noqa: F401  Loads what the window's libraries need.
    except ImportError as error:
        raise CannotStart(missing(str(error))) from error
    return Path(PySide6.__file__).parent


def load_library(library: Path) -> None:
    """Load a library that Qt needs. Raises CannotStart naming what is missing."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        # In a bundle, PyInstaller's message hides the loader's, which names what is missing.
        raise CannotStart(missing(str(error.__cause__ or error))) from error


def missing(message: str) -> str:
    """Describe a missing library from the loader's message, with the package to install if it is known.

    >>> missing("libEGL.so.1: cannot open shared object file: No such file or directory")
    'The system library libEGL.so.1 is missing. On Debian or Ubuntu: sudo apt install libegl1'
    """
    library, _, why = message.partition(": ")
    if "cannot open shared object file" not in why:
        return f"A part of the window cannot be loaded: {message}"
    package = PACKAGES.get(library.partition(".so")[0])
    advice = f"On Debian or Ubuntu: sudo apt install {package}" if package else "Install it with the system's packages."
    return f"The system library {library} is missing. {advice}"


def say(sentence: str) -> None:
    """Tell a user without Qt: on stderr, and in a message box if the desktop has a program for that."""
    print(f"error: {sentence}", file=sys.stderr)
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) or sys.stderr.isatty():
        return
    for command in MESSAGE_BOXES:
        try:
            subprocess.run([part.format(sentence) for part in command], check=False, timeout=600)
        except OSError:
            continue
        return
