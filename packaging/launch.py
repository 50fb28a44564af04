"""Entry point of both executables of the bundle: `hetegen` opens the window, `hetegen-cli` is the command line."""

import multiprocessing
import os
import sys
from pathlib import Path

TRY_GPU_RUNTIME = "--try-gpu-runtime"
"""`core.gpu_runtime.trial.ARGUMENT`, repeated here to avoid its import."""
TRY_CARD = "--try-card"
"""`core.accelerators.trial.ARGUMENT`, likewise."""
READ_DOCUMENT = "--read-document"
"""`core.documents.reader.ARGUMENT`, likewise."""


def main() -> int:
    # Before any heavy import: child processes start here too.
    multiprocessing.freeze_support()

    from app.__main__ import guard_streams

    guard_streams()

    from app.system import start

    start.prepare()
    if sys.argv[1:2] == [TRY_GPU_RUNTIME]:
        from core.gpu_runtime.trial import main as try_runtime

        return try_runtime(sys.argv[2])
    if sys.argv[1:2] == [TRY_CARD]:
        from core.accelerators.trial import main as try_card

        try_card(int(sys.argv[2]), sys.argv[3])
    if sys.argv[1:2] == [READ_DOCUMENT]:
        from core.documents.__main__ import main as read_document

        return read_document(sys.argv[2:])
    # On Linux the second program is a link to the first: only its name tells them apart.
    if Path(sys.argv[0]).stem == "hetegen-cli":
        from core.__main__ import main as command_line

        return command_line()
    return _window()


def _window() -> int:
    from app.__main__ import main as window
    from app.system import start

    try:
        start.check_window("offscreen" if "--self-test" in sys.argv else os.environ.get("QT_QPA_PLATFORM", ""))
    except start.CannotStart as problem:
        start.say(str(problem))
        return 1
    return window()


if __name__ == "__main__":
    sys.exit(main())
