"""Another torch than the program's own: a folder like that of an environment, whose packages come first."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

PACKAGES = PurePosixPath("lib/python/site-packages")
"""Where packages lie in such a folder: as deep as in an environment, since torch's libraries for Intel look for Intel's
in a `lib` that many steps up."""
WINDOWS_LIBRARIES = PurePosixPath("Library/bin")
"""Where wheels put libraries for Windows that belong to no package."""


def packages_of(folder: Path) -> Path:
    """The packages of such a folder; before, they lay in the folder itself."""
    packages = folder / PACKAGES
    return packages if packages.is_dir() else folder


def use_packages(packages: Path) -> None:
    """Have torch imported from `packages`, with the libraries that lie beside them."""
    sys.path.insert(0, str(packages))
    if sys.platform == "win32" and packages.parts[-3:] == PACKAGES.parts:
        libraries = packages.parents[2] / WINDOWS_LIBRARIES
        if libraries.is_dir():
            os.add_dll_directory(str(libraries))
