"""Entry point of the desktop program: arguments, logging, hooks for uncaught errors, then the window."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from app import ID, NAME, VERSION
from core.commands.arguments import add_machine_options, load_options
from core.gpu_runtime.start import activate
from core.gpu_runtime.store import Runtime
from core.paths import HOME_VARIABLE, gpu_runtime
from core.startup.environment import prepare_environment
from core.startup.log import start_log

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication

log = logging.getLogger("app")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `None` reads `sys.argv`."""
    parser = argparse.ArgumentParser("hetegen", description=f"{NAME}: chat with models larger than the graphics card.")
    parser.add_argument("file", nargs="?", default="", metavar="FILE", help="a .gguf file, as a double click gives it")
    parser.add_argument("--model", default="", metavar="PATH_OR_ID", help="the model to load (default: the last one)")
    parser.add_argument(
        "--self-test", action="store_true", help="load, answer once without a screen, print one JSON line"
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {VERSION}")
    add_machine_options(parser)
    return parser.parse_args(argv)


def guard_streams() -> None:
    """Replace missing stdout and stderr by the null device.

    A windowed bundle has neither, and libraries that print would fail.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  Open to the end.


def load_c10_first() -> None:
    """Load torch's c10.dll before Qt on Windows; loaded later, it fails to start (WinError 1114).

    Torch and Qt ship different C++ runtimes, and the first one loaded wins. Loading this one small library settles it
    without importing torch, which would delay the window by a second.
    """
    if sys.platform == "win32":
        _load_c10()


def _load_c10() -> None:
    import ctypes

    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        library = Path(spec.origin).parent / "lib" / "c10.dll"
        if library.exists():
            getattr(os, "add_dll_directory")(str(library.parent))  # noqa: B009  Windows only
            ctypes.CDLL(str(library))


def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write an uncaught exception to the log and to stderr; the window stays open."""
    text = "".join(traceback.format_exception(kind, error, trace))
    log.error("Uncaught:\n%s", text)
    sys.stderr.write(text)


def log_uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    """Handle uncaught exceptions of Python threads like those of the main thread."""
    if failure.exc_value is not None:
        log_uncaught(failure.exc_type, failure.exc_value, failure.exc_traceback)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    prepare_environment()
    guard_streams()
    args = arguments(argv)
    if args.self_test:
        # The self-test must not touch the user's own conversations and settings.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            os.environ[HOME_VARIABLE] = home
            os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
            code = run(args)
            logging.shutdown()
            return code
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Run the program with parsed arguments and return its exit code."""
    # A trial of the GPU runtime may take minutes. If one is due, start without the card and try it once the window is
    # open.
    gpu = activate(Runtime(gpu_runtime()), attempt=None)
    load_c10_first()

    from app.system.paths import places

    start_log(places().log)
    sys.excepthook = log_uncaught
    threading.excepthook = log_uncaught_in_thread

    from app.application import Application, StartOptions
    from app.system.file_open import FileOpen
    from app.system.interrupts import Interrupts
    from app.system.single_instance import SingleInstance

    qt = make_qt()
    instance = SingleInstance(places().data)
    model = named_model(args)
    if not args.self_test and not instance.claim(model):
        return 0
    application = Application(StartOptions(model, load_options(args), gpu))
    if args.self_test:
        from app.self_test import SelfTest

        return SelfTest(application).run()
    instance.woken.connect(application.window.wake)
    instance.asked.connect(application.load)
    opened = FileOpen()
    opened.asked.connect(application.load)
    qt.installEventFilter(opened)
    Interrupts(qt).asked.connect(application.window.close)
    application.window.fit_screen()
    application.window.show()
    code = qt.exec()
    if application.restarts:
        instance.release()
        start_again()
    return code


def make_qt() -> QApplication:
    """Create the QApplication with the program's name, icon and style."""
    from PySide6.QtGui import QIcon
    from PySide6.QtWidgets import QApplication

    from app.system.gc_timer import Collector
    from core.paths import assets

    qt = QApplication(sys.argv[:1])
    Collector(qt)
    qt.setApplicationName(NAME)
    qt.setApplicationVersion(VERSION)
    qt.setDesktopFileName(ID)
    qt.setWindowIcon(QIcon(str(assets() / "logo" / "logo.svg")))
    qt.setStyle("Fusion")
    return qt


def named_model(args: argparse.Namespace) -> str:
    """Return the model given on the command line; a path is made absolute."""
    model = args.model or args.file
    return str(Path(model).absolute()) if model and Path(model).exists() else str(model)


def start_again() -> None:
    """Start the program again in a new process with the same arguments."""
    own = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "app"]
    # Keeps PyInstaller's bootloader from treating the new process as a helper of this one.
    subprocess.Popen([*own, *sys.argv[1:]], env=os.environ | {"PYINSTALLER_RESET_ENVIRONMENT": "1"})


if __name__ == "__main__":
    import multiprocessing

    multiprocessing.freeze_support()
    sys.exit(main())
