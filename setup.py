"""Builds the optional library of CPU kernels, and copies the assets into the package.

Without a compiler the package installs and runs on torch's kernels.
"""

import os
import platform
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ASSETS = Path("assets")
INSTALLED_ASSETS = Path("core", "_assets")
"""Searched first by `core.paths`; a checkout and an editable install use the source folder."""
NATIVE = Path("core/kernels/native")
VECTORISED = ("-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno")
"""Allow vectorised loops with float comparisons and square roots: exception flags and errno are not read."""
COMMON = ["-O3", "-g0", "-std=gnu11", "-fvisibility=hidden", *VECTORISED]
"""Without the debug information that Python's own options ask for, which takes half of gcc's time."""
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "Windows": (["/O2", "/std:c11"], []),
    "Darwin": (COMMON, []),
}
DEFAULT_OPTIONS = ([*COMMON, "-pthread"], ["-pthread"])


class BuildNative(build_ext):
    """Builds a plain library instead of a Python module: it exports its own functions and no init function. Its files
    are compiled side by side."""

    def build_extensions(self) -> None:
        # Visual C++ would otherwise be searched for in each thread.
        if not getattr(self.compiler, "initialized", True):
            self.compiler.initialize(self.plat_name)
        self.compiler.compile = side_by_side(self.compiler.compile)
        super().build_extensions()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # the sources mark what they export


def side_by_side(compile_all: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Make a compiler's `compile`, which runs one file after another, run as many files at a time as there are
    processors."""

    def compile_each(sources: list[str], *args: object, **options: object) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [*pool.map(lambda source: compile_all([source], *args, **options)[0], sources)]

    return compile_each


class BuildWithAssets(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(ASSETS, Path(self.build_lib, INSTALLED_ASSETS), dirs_exist_ok=True)


def native() -> Extension:
    compile_options, link_options = OPTIONS.get(platform.system(), DEFAULT_OPTIONS)
    return Extension(
        "core.kernels._native",
        sources=sorted(file.as_posix() for file in NATIVE.glob("*.c")),
        depends=sorted(file.as_posix() for file in NATIVE.glob("*.h")),
        include_dirs=[NATIVE.as_posix()],
        extra_compile_args=compile_options,
        extra_link_args=link_options,
        optional=True,
    )


setup(ext_modules=[native()], cmdclass={"build_ext": BuildNative, "build_py": BuildWithAssets})
