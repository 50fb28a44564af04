"""A separate torch instead of the program's own: a folder with the layout of an environment, imported first."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath

PACKAGES = PurePosixPath("lib/python/site-packages")
"""The packages in such a folder, at the depth that an environment has: torch's libraries for Intel GPUs search for
Intel's runtime in a `lib` at that distance."""
WINDOWS_LIBRARIES = PurePosixPath("Library/bin")
"""Where Windows wheels put libraries that belong to no package."""


def packages_of(folder: Path) -> Path:
    """Return the packages of such a folder; older versions had them in the folder itself."""
    packages = folder / PACKAGES
    return packages if packages.is_dir() else folder


def use_packages(packages: Path) -> None:
    """Have torch imported from `packages`, with the libraries beside them."""
    sys.path.insert(0, str(packages))
    if sys.platform == "win32" and packages.parts[-3:] == PACKAGES.parts:
        libraries = packages.parents[2] / WINDOWS_LIBRARIES
        if libraries.is_dir():
            os.add_dll_directory(str(libraries))
