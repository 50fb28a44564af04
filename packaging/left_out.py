"""What the bundle excludes, by name. Knows the layout of torch, transformers and Qt; imports none of them."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

MODULES = (
    "tkinter", "idlelib", "lib2to3", "pip", "setuptools", "wheel", "pytest", "_pytest", "hypothesis", "mypy", "ruff",
    "matplotlib", "scipy", "pandas", "IPython", "torchvision", "torchaudio", "tensorflow", "jax", "flax",
    "tensorboard", "onnx", "onnxscript", "triton", "accelerate", "sentencepiece", "grimp", "importlinter",
    "torch.utils.tensorboard", "torch.onnx._internal.exporter", "torch.utils.benchmark", "readline", "curses", "nis",
    "transformers.cli", "transformers.pipelines", "transformers.testing_utils", "transformers.trainer",
    "transformers.trainer_seq2seq", "huggingface_hub.cli",
    # Dependencies of the libraries above for features unused here: command lines, uploads, graph drawings.
    "networkx", "rich", "typer", "hf_xet", "requests", "urllib3", "certifi",
    "charset_normalizer", "py", "llama_cpp", "functorch", "huggingface_hub.inference",
    # Torch's compilers, tests, distributed training and exporters; `import torch` reaches none of them.
    "torch._inductor.autoheuristic", "torch._inductor.codegen", "torch._inductor.compile_worker",
    "torch._inductor.fx_passes", "torch._inductor.kernel", "torch._inductor.template_heuristics", "torch._export.db",
    "torch._vendor.quack", "torch.ao.ns", "torch.ao.pruning", "torch.ao.quantization.fx", "torch.backends._nnapi",
    "torch.distributed._tools", "torch.distributed.flight_recorder", "torch.distributed.pipelining",
    "torch.fx.experimental.migrate_gradual_types", "torch.quantization.fx", "torch.utils.hipify",
    "torch.testing._internal.common_device_type", "torch.testing._internal.common_methods_invocations",
    "torch.testing._internal.common_modules", "torch.testing._internal.common_nn",
    "torch.testing._internal.common_quantization", "torch.testing._internal.common_utils",
    "torch.testing._internal.generated", "torch.testing._internal.opinfo", "torch.testing._internal.optests",
    "sympy.physics", "numpy.f2py",
    "PySide6.QtQml", "PySide6.QtQuick", "PySide6.QtSql", "PySide6.QtTest", "PySide6.QtDesigner", "PySide6.QtUiTools",
)  # fmt: skip
"""Modules that no part of the program reaches, and development tools that may be installed beside it."""

FILES = (
    "torch/test/*", "torch/bin/*", "torch/include/*", "torch/share/*", "torch/_inductor/codegen/*.h",
    "torch/lib/*.a", "torch/lib/*.lib", "torch/lib/*_test.so", "torch/lib/libbackend_with_compiler.so",
    "torch/lib/libaoti_custom_ops.so", "torchgen/packaged/*", "functorch/*.so",
    "PySide6/Qt/translations/*", "PySide6/translations/*", "PySide6/Qt/qml/*", "PySide6/qml/*",
    "PySide6/Qt/plugins/platformthemes/libqgtk3*", "PySide6/Qt/plugins/qmltooling/*", "PySide6/plugins/qmltooling/*",
    "PySide6/Qt/plugins/egldeviceintegrations/*", "PySide6/Qt/plugins/platforms/libqeglfs*",
    "PySide6/Qt/plugins/platforms/libqlinuxfb*", "PySide6/Qt/plugins/platforms/libqvnc*",
    "PySide6/Qt/plugins/platforms/libqvkkhr*", "PySide6/Qt/plugins/platforms/libqminimal*",
    "PySide6/Qt/plugins/platforminputcontexts/libqtvirtualkeyboard*", "PySide6/Qt/plugins/generic/*",
    "PySide6/Qt/plugins/networkinformation/*", "PySide6/plugins/networkinformation/*",
    "PySide6/Qt/plugins/imageformats/libqpdf*", "PySide6/Qt/lib/libQt6Pdf*", "PySide6/Qt/lib/libQt6Egl?[Ss]*",
    "PySide6/Qt/lib/libQt6Qml*", "PySide6/Qt/lib/libQt6Quick*", "PySide6/Qt/lib/libQt6VirtualKeyboard*",
    "*/opengl32sw.dll", "*.pyi", "*/py.typed",
    # Metadata of development tools and of excluded libraries: transformers' hook collects whatever is installed.
    "accelerate-*.dist-info/*", "hypothesis-*.dist-info/*",
    "pytest*.dist-info/*", "rich-*.dist-info/*", "ruff-*.dist-info/*", "typer-*.dist-info/*",
)  # fmt: skip
"""Files of the wheels that nothing opens."""

FOR_COMPILERS = ("h", "hpp", "cuh", "lib", "cpp", "pyi", "cmake")
"""Suffixes of files that only compilers read."""

KEPT = ("torch/bin/torch_shm_manager",)
"""Exceptions to the list above: torch checks on import that this file exists."""

OUR_LIBRARIES = re.compile(r"lib(python|ssl|crypto|sqlite3|ffi|bz2|lzma|mpdec)[-.0-9]")
"""System libraries bundled on Linux: only those that Python itself needs, whose version differs between systems.

The rest comes with a desktop, and bundled copies would be older than its drivers; the package declares them as
dependencies. OpenMP comes with torch, and a second copy would start its own threads.
"""

_KEPT_ANYWAY = re.compile(r"(__init__|configuration_|tokenization_|processing_|image_processing_pil_)")
_CHATTING = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
)
"""transformers' lists of models that write text, including those that also see or hear."""


def is_left_out(name: str, source: str) -> bool:
    """Whether a collected file is excluded. `name`: its path in the bundle; `source`: its path now."""
    name, source = name.replace("\\", "/"), source.replace("\\", "/")
    # The source of a link to an excluded library is its target.
    if any(fnmatch(path, pattern) for pattern in FILES for path in (name, source)):
        return name not in KEPT
    of_this_system = source.startswith(("/lib", "/usr/lib", "/usr/local")) and "-packages/" not in source
    return of_this_system and "/" not in name and ".so" in name and not OUR_LIBRARIES.match(name)


def model_modules() -> list[str]:
    """List the modules of `transformers.models` that no text-writing model can reach.

    Configurations, tokenizers and image processors stay: they are small, and a model that cannot be opened is judged by
    its configuration.
    """
    models = _folder("transformers") / "models"
    reached = _reached(models)
    files = (file for file in models.glob("*/*.py") if file not in reached)
    return sorted(f"transformers.models.{file.parent.name}.{file.stem}" for file in files)


def modules_of(package: str) -> list[str]:
    """List all modules of an installed package that stay, by its files, without importing it."""
    root = _folder(package)
    files = (file for file in root.rglob("*.py") if (file.parent / "__init__.py").exists())
    names = (
        ".".join((package, *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__") for file in files
    )
    return sorted(name for name in names if not _is_part_of(name, MODULES))


def _is_part_of(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed in this environment.")
    return Path(spec.origin).parent


def _reached(models: Path) -> set[Path]:
    """Follow imports and quoted names of model types, because a model's configuration may contain another model's."""
    folders = _folders_by_type(models)
    todo = [file for file in models.glob("*/*.py") if file.parent.name == "auto" or _KEPT_ANYWAY.match(file.name)]
    todo += [file for kind in _chatting_types(models) for file in _modeling(models, folders.get(kind, kind))]
    reached: set[Path] = set()
    while todo:
        file = todo.pop()
        if file in reached or not file.exists():
            continue
        reached.add(file)
        # These name every model, and import on demand.
        if file.parent.name == "auto" or file.name == "__init__.py":
            continue
        todo += _imports(file, models)
        if file.name.startswith("modeling_"):
            todo += [other for kind in _quoted(file) if kind in folders for other in _modeling(models, folders[kind])]
    return reached


def _modeling(models: Path, folder: str) -> Iterator[Path]:
    return (models / folder).glob("modeling_*.py")


def _quoted(file: Path) -> set[str]:
    """Return the quoted words of a modeling file and its configuration."""
    texts = [file.read_text("utf-8"), *(path.read_text("utf-8") for path in file.parent.glob("configuration_*.py"))]
    return {word for text in texts for word in re.findall(r"[\"']([a-z0-9_-]+)[\"']", text)}


def _imports(file: Path, models: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        parts = node.module.split(".")
        if node.level == 0 and parts[:2] == ["transformers", "models"]:
            yield from _module(models, parts[2:])
        elif node.level == 1:
            yield from _module(models, [file.parent.name, *parts])
        elif node.level == 2:
            yield from _module(models, parts)
        elif node.level == 3 and parts[0] == "models":
            yield from _module(models, parts[1:])


def _module(models: Path, parts: list[str]) -> Iterable[Path]:
    """Return a module's file; for a package, which resolves names lazily, all its modeling files."""
    if len(parts) == 1:
        return _modeling(models, parts[0])
    return [models.joinpath(*parts).with_suffix(".py")]


def _chatting_types(models: Path) -> list[str]:
    lists = [_pairs(models / "auto" / "modeling_auto.py", name) for name in _CHATTING]
    if not all(lists):
        raise SystemExit("transformers names its language models elsewhere now: see left_out.py.")
    return [kind for pairs in lists for kind, _ in pairs]


def _folders_by_type(models: Path) -> dict[str, str]:
    """Map model_type to folder: by transformers' list of special cases, else by the type's name."""
    auto = models / "auto"
    types = [kind for file in sorted(auto.glob("*auto*.py")) for kind, _ in _pairs(file, "CONFIG_MAPPING_NAMES")]
    special = dict(
        pair for file in sorted(auto.glob("*auto*.py")) for pair in _pairs(file, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    )
    return {kind: special.get(kind, kind).replace("-", "_") for kind in types}


def _pairs(file: Path, name: str) -> list[tuple[str, str]]:
    """Return the pairs of strings in the mapping that a file assigns to `name`."""
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and _is_name(node.targets[0], name):
            return [pair for item in ast.walk(node.value) if (pair := _pair(item))]
    return []


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _pair(node: ast.AST) -> tuple[str, str] | None:
    match node:
        case ast.Tuple(elts=[ast.Constant(value=str(first)), ast.Constant(value=str(second))]):
            return first, second
    return None
