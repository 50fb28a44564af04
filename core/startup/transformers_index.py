"""Caches transformers' index of its model modules on disk: without it, an import reads 2,500 source files twice.

The function that builds the index is wrapped as soon as its module is loaded, before the package calls it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from core.files import keep

PACKAGE, MODULE, FUNCTION = "transformers", "transformers.utils.import_utils", "define_import_structure"

Table = dict[frozenset[str], dict[str, set[str]]]
"""By required libraries: modules, and the names that each defines."""
Make = Callable[..., Table]


def keep_model_index(folder: Path) -> None:
    """Cache the index of model modules; a no-op if transformers has already been imported."""
    if PACKAGE not in sys.modules:
        sys.meta_path.insert(0, _Finder(folder))


class KeptTable:
    """Builds the index like `make`, but reads that of all models from a file in `folder` if it has been built
    before."""

    def __init__(self, make: Make, models: Path, version: str, folder: Path) -> None:
        self._make, self._models = make, models
        self._file = folder / f"models-{version}-{models.stat().st_mtime_ns}.json"

    def __call__(self, module_path: str | Path, prefix: str | None = None) -> Table:
        if Path(module_path) not in (self._models, self._models / "__init__.py"):
            return self._make(module_path, prefix)
        table = self._read() or self._write(self._make(module_path))
        before = f"{prefix}." if prefix else ""
        return {needs: {before + name: names for name, names in modules.items()} for needs, modules in table.items()}

    def _read(self) -> Table | None:
        try:
            rows = json.loads(self._file.read_text(encoding="utf-8"))
            return {frozenset(needs): {name: set(names) for name, names in modules.items()} for needs, modules in rows}
        except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged
            return None

    def _write(self, table: Table) -> Table:
        keep(self._file, [[sorted(needs), _sorted(modules)] for needs, modules in table.items()])
        return table


class _Finder(MetaPathFinder):
    """Finds one module like the other finders and wraps its loader; removes itself afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._folder)
        return spec


class _Loader(Loader):
    """Loads the module like `inner`, then replaces the function with the cached table."""

    def __init__(self, inner: Loader, folder: Path) -> None:
        self._inner, self._folder = inner, folder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        package = sys.modules[PACKAGE]
        make, models = getattr(module, FUNCTION, None), Path(package.__path__[0]) / "models"
        if make is not None and models.is_dir():
            setattr(module, FUNCTION, KeptTable(make, models, package.__version__, self._folder))


def _sorted(modules: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {name: sorted(names) for name, names in modules.items()}
