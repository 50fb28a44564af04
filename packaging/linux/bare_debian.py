"""Tests the packages in a bare Debian: installs, starts under Xvfb, asks by key presses, takes a screenshot, quits.

    sudo python packaging/linux/bare_debian.py PICTURES [--suite bookworm]

Needs root, debootstrap, Xvfb, xdotool and ImageMagick on this computer. None of them is installed in the bare system,
which is minbase, without Python or a desktop. The package is installed by apt, the archive as README describes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIST = HERE.parent.parent / "dist"
QUESTION = "What is HeteGen?"
DISPLAY = ":97"
PATIENCE_S = 300
HOME = "/home/person"
DATABASE = ".local/share/HeteGen/conversations.db"


@dataclass(frozen=True)
class System:
    """A Debian in a folder. Each command gets its own process, mount and /proc namespaces, so that nothing is left."""

    root: Path

    @property
    def home(self) -> Path:
        """The user's home as seen from this computer."""
        return self.root / HOME.lstrip("/")

    def command(self, *parts: str) -> list[str]:
        """Return the command line that runs `parts` inside as root."""
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--root={self.root}", "--mount-proc", *parts]

    def run(self, *parts: str) -> None:
        print("+", *parts, flush=True)
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        subprocess.run(self.command(*parts), env=environ, check=True)

    def start(self, program: str) -> subprocess.Popen[bytes]:
        """Start a program as an ordinary user with a home."""
        person = ["setpriv", "--reuid=person", "--regid=person", "--init-groups"]
        environ = {"PATH": "/usr/bin:/bin", "HOME": HOME, "DISPLAY": DISPLAY, "LC_ALL": "C.UTF-8"}
        return subprocess.Popen(self.command(*person, program), env=environ)

    def take(self, file: Path, folder: str) -> str:
        """Copy a file into the system and return its path there."""
        shutil.copy(file, self.root / folder.lstrip("/"))
        return f"{folder}/{file.name}"


def by_package(system: System) -> str:
    """Install the .deb with its dependencies; return the program's path."""
    package = system.take(next(DIST.glob("hetegen_*.deb")), "/tmp")
    system.run("apt-get", "install", "-qq", "-y", "--no-install-recommends", package)
    return "/usr/bin/hetegen"


def by_archive(system: System) -> str:
    """Install the libraries named in README and unpack the archive; return the program's path."""
    readme = (HERE.parent / "README.md").read_text("utf-8")
    found = re.search(r"<!-- libraries -->\n```sh\nsudo apt install (.*?)\n```", readme, re.DOTALL)
    if found is None:
        raise SystemExit("README names no libraries.")
    libraries = found.group(1).replace("\\", "").split()
    system.run("apt-get", "install", "-qq", "-y", "--no-install-recommends", *libraries)
    archive = system.take(next(DIST.glob("HeteGen-*-linux-*.tar.xz")), "/tmp")
    system.run("tar", "-C", HOME, "-xf", archive)
    return f"{HOME}/hetegen/hetegen"


def talk(system: System, program: str, picture: Path) -> None:
    """Start the program, ask, wait for the answer, take a screenshot, quit. Exits if a step fails."""
    running = system.start(program)
    try:
        window = wait_for(find_window, "a window", running)
        subprocess.run(["xdotool", "windowfocus", "--sync", window], env=on_display(), check=True)
        press("type", "--delay", "40", QUESTION)
        answer = wait_for(lambda: ask_and_read(system.home / DATABASE), "an answer", running)
        print(f"{QUESTION} -> {answer}")
        time.sleep(1)
        subprocess.run(["import", "-window", "root", picture], env=on_display(), check=True)
        press("key", "ctrl+q")
        code = running.wait(timeout=60)
    finally:
        running.kill()
    if code:
        raise SystemExit(f"{program} ended with exit code {code}.")
    print(f"{program} has quit cleanly; see {picture}", flush=True)


def find_window() -> str:
    search = ["xdotool", "search", "--onlyvisible", "--name", "HeteGen"]
    return subprocess.run(search, env=on_display(), capture_output=True, text=True, check=False).stdout.split("\n")[0]


def ask_and_read(database: Path) -> str:
    """Return the stored answer; until the question is stored, press Return, as the model may still be loading."""
    turns = read_turns(database)
    if not turns:
        press("key", "Return")
    return next((text for role, ending, text in turns if role == "assistant" and ending != "streaming"), "")


def read_turns(database: Path) -> list[tuple[str, str, str]]:
    """Read the stored turns from a copy, because the program locks its database."""
    with tempfile.TemporaryDirectory() as folder:
        for file in database.parent.glob(f"{database.name}*"):
            shutil.copy(file, folder)
        with closing(sqlite3.connect(Path(folder) / database.name)) as connection:
            try:
                return list(connection.execute("SELECT role, ending, content FROM messages ORDER BY number"))
            except sqlite3.DatabaseError:
                # Copied during a write, or not there yet: try again later.
                return []


def press(*keys: str) -> None:
    subprocess.run(["xdotool", *keys], env=on_display(), check=True)


def wait_for(look: Callable[[], str], what: str, running: subprocess.Popen[bytes]) -> str:
    """Call `look` until it returns something."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if running.poll() is not None:
            raise SystemExit(f"The program ended with {running.returncode} before there was {what}.")
        if found := look():
            return found
        time.sleep(1)
    raise SystemExit(f"There was not {what} within {PATIENCE_S} s.")


def on_display() -> dict[str, str]:
    return os.environ | {"DISPLAY": DISPLAY}


@contextmanager
def screen() -> Iterator[None]:
    """A virtual screen, which the bare system reaches through its abstract socket."""
    server = subprocess.Popen(["Xvfb", DISPLAY, "-screen", "0", "1280x800x24", "-ac"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        yield
    finally:
        server.terminate()
        server.wait()


def bare(folder: Path, suite: str) -> System:
    """Create a new Debian with one user."""
    system = System(folder)
    subprocess.run(["debootstrap", "--variant=minbase", suite, folder], stdout=subprocess.DEVNULL, check=True)
    system.run("apt-get", "update", "-qq")
    system.run("useradd", "--create-home", "--home-dir", HOME, "person")
    return system


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--suite", default="bookworm", help="the Debian to install into")
    args = parser.parse_args(arguments)
    args.pictures.mkdir(parents=True, exist_ok=True)
    for install in (by_package, by_archive):
        with tempfile.TemporaryDirectory(dir="/var/tmp", ignore_cleanup_errors=True) as folder, screen():
            system = bare(Path(folder) / "debian", args.suite)
            talk(system, install(system), args.pictures / f"bare-debian-{install.__name__}.png")


if __name__ == "__main__":
    main()
