"""Rules for every file: no traces of one machine, small files, small functions, a true README."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

FILE_LINES, FUNCTION_LINES, PARAMETERS, NESTING = 400, 50, 8, 4
FOREIGN = {
    "core/layers/attention.py:attend",
    "core/layers/recurrent_layers.py:mamba2_chunk_scan",
    "core/layers/recurrent_layers.py:mamba2_selective_state_update",
}
"""Functions whose parameters transformers prescribes, because it calls them."""
PRIVATE_REACHES = 11
"""How often tests access `other._name`, mostly names of other libraries. Lower it when one goes."""
NESTS = ast.For | ast.AsyncFor | ast.While | ast.If | ast.With | ast.AsyncWith | ast.Try | ast.Match
# Paths of somebody's machine, and registries that only some machines reach. Split, so that this file passes.
TRACES = re.compile(
    "|".join(
        [
            "/wo" + "rk/",
            "/ro" + "ot/",
            "/home/[a-z]+/",
            r"C:\\Users\\",
            "/opt/" + "venv",
            "index" + "-url",
            "127.0.0.1:3" + "128",
        ]
    )
)
ONE_MAKERS = re.compile(r"\btorch\.(cuda|xpu|mps)\b")
"""torch's interfaces for the cards of one maker: only for what its common interface lacks, and for kernels."""
USE_THEM = ("core/accelerators/capabilities.py", "core/kernels/cuda_dequant.py")
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".sh", ".c", ".h", ".spec", ".txt", ".json", ".svg", ""}


def tracked(root: Path) -> list[Path]:
    """Return the files tracked by git; skips outside of a checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def sources(root: Path) -> Iterator[Path]:
    for package in ("core", "app"):
        yield from sorted((root / package).rglob("*.py"))


def test_no_file_tells_of_the_machine_it_was_written_on(repository: Path) -> None:
    found = [
        f"{file.relative_to(repository)}: {match.group()}"
        for file in tracked(repository)
        if file.suffix in TEXT and (match := TRACES.search(file.read_text(encoding="utf-8", errors="replace")))
    ]
    assert not found


def test_files_are_small(repository: Path) -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sources(repository)}
    assert not {str(file.relative_to(repository)): n for file, n in lengths.items() if n > FILE_LINES}


@cache
def trees(root: Path) -> tuple[tuple[str, ast.Module], ...]:
    """Parse each source once; return its path and its tree."""
    return tuple((file.relative_to(root).as_posix(), ast.parse(file.read_text("utf-8"))) for file in sources(root))


def functions(root: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield each function of the sources with its place: "core/engine.py:chat"."""
    for place, tree in trees(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{place}:{node.name}", node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of parameters besides `self`, `*args` and `**kwargs`."""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def nesting(node: ast.AST, level: int = 0) -> int:
    """Return the depth of nested loops, branches and handlers; an `elif` is as deep as its `if`."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child, level + (isinstance(child, NESTS) and not is_elif)))
    return deepest


def test_functions_are_small(repository: Path) -> None:
    large = {
        name: lines
        for name, node in functions(repository)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    }
    assert not large


def test_functions_take_few_parameters(repository: Path) -> None:
    many = {name: count for name, node in functions(repository) if (count := parameters(node)) > PARAMETERS}
    assert many.keys() <= FOREIGN, many


def test_functions_are_flat(repository: Path) -> None:
    assert not {name: depth for name, node in functions(repository) if (depth := nesting(node)) > NESTING}


def test_cards_of_all_makers_take_the_same_path(repository: Path) -> None:
    found = [file for file in sources(repository) if ONE_MAKERS.search(file.read_text(encoding="utf-8"))]
    assert {file.relative_to(repository).as_posix() for file in found} == {*USE_THEM}


def private_reaches(file: Path) -> Iterator[str]:
    """Yield each `other._name` of a test, and each patch of one by `setattr`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            name, owner = node.attr, node.value.id if isinstance(node.value, ast.Name) else ""
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            patched = next((one.value for one in node.args if isinstance(one, ast.Constant)), "")
            name, owner = str(patched).rpartition(".")[2], ""
        else:
            continue
        if name.startswith("_") and not name.endswith("__") and owner not in ("self", "cls"):
            yield f"{file.name}:{node.lineno} {ast.unparse(node)}"


def test_tests_reach_for_few_private_names(repository: Path) -> None:
    """Tests use what users and callers use: widgets found by name, records, public interfaces."""
    found = [reach for file in sorted((repository / "tests").rglob("*.py")) for reach in private_reaches(file)]
    assert len(found) <= PRIVATE_REACHES, "\n".join(found)


def test_the_folder_packaging_is_no_package(repository: Path) -> None:
    """It would hide the library of this name: a folder without `__init__.py` gives way to it."""
    import packaging

    assert not (repository / "packaging" / "__init__.py").exists()
    assert packaging.__file__ is not None
    assert Path(packaging.__file__).parent != repository / "packaging"


def test_every_module_says_what_it_knows(repository: Path) -> None:
    assert not [place for place, tree in trees(repository) if tree.body and not ast.get_docstring(tree)]


@dataclass(frozen=True)
class Public:
    """A public function or class of the sources. `owner`: the class of a method."""

    place: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    owner: ast.ClassDef | None

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def annotations(self) -> str:
        """The types of its parameters and its result."""
        if isinstance(self.node, ast.ClassDef):
            return ""
        found = [one.annotation for one in (*self.node.args.args, *self.node.args.kwonlyargs)]
        return " ".join(ast.unparse(one) for one in (*found, self.node.returns) if one is not None)


def public(root: Path) -> Iterator[Public]:
    """Yield all public functions and classes outside of functions and private classes."""
    for place, tree in trees(root):
        todo: list[tuple[ast.Module | ast.ClassDef, ast.ClassDef | None]] = [(tree, None)]
        for within, owner in todo:
            for node in within.body:
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name[0] == "_":
                    continue
                name = f"{owner.name}.{node.name}" if owner else node.name
                yield Public(f"{place}:{node.lineno} {name}", node, owner)
                if isinstance(node, ast.ClassDef):
                    todo.append((node, node))


QT_NAMES = re.compile(
    "[a-zA-Z]+Event|eventFilter|event|(row|column)Count|(set|mime|header)?[dD]ata|flags|index|paint|translate|isEmpty|"
    "createEditor|(minimumS|s)izeHint|hitButton|loadResource|(canI|i)nsertFromMimeData|createMimeDataFromSelection|"
    "focusNextPrevChild|updateEditorGeometry|set(Editor|Model)Data|scrollContentsBy|initStyleOption|supported[a-zA-Z]+Actions"
)
"""Methods that Qt calls and documents."""


def explained(every: list[Public]) -> dict[str, set[str]]:
    """Return, by class, the methods with a docstring; their implementations need none."""
    found: dict[str, set[str]] = {}
    for one in every:
        if one.owner is not None and one.doc:
            found.setdefault(one.owner.name, set()).add(one.node.name)
    return found


def is_explained(one: Public, classes: dict[str, ast.ClassDef], found: dict[str, set[str]]) -> bool:
    """Whether a base class or a protocol has the docstring of this method."""
    if one.owner is None:
        return False
    protocols = [name for name, node in classes.items() if "Protocol" in map(ast.unparse, node.bases)]
    todo = [ast.unparse(base).split("[")[0].rpartition(".")[2] for base in one.owner.bases]
    for name in todo:
        todo += [ast.unparse(base).split("[")[0] for base in (classes[name].bases if name in classes else [])]
    return any(one.node.name in found.get(name, ()) for name in (*todo, *protocols))


def test_what_is_public_has_a_docstring(repository: Path) -> None:
    every = list(public(repository))
    assert len(every) > 2000
    classes = {one.node.name: one.node for one in every if isinstance(one.node, ast.ClassDef)}
    found = explained(every)
    silent = [one for one in every if not one.doc and not QT_NAMES.fullmatch(one.node.name)]
    assert not "\n".join(one.place for one in silent if not is_explained(one, classes, found))


NO_BEGINNING = ("Of", "By", "In", "For", "With", "Without", "From", "On", "To", "So", "As", "Only", "Once", "Nothing")


def test_docstrings_begin_with_a_verb_or_a_noun(repository: Path) -> None:
    assert not [one.place for one in public(repository) if one.doc and one.doc.split()[0] in NO_BEGINNING]


SHAPE = re.compile(r"\((?:\*|\.\.\.|[\w+* -]+,)[^()]*\)|\[\w+\]")
"""(M, K), (V,), (..., K), (...): as it comes; (*shape); [rows]."""


def test_functions_with_tensors_give_shapes(repository: Path) -> None:
    """Exempt: checkpoints, which are many tensors by name, and methods that a protocol documents."""
    every = list(public(repository))
    classes = {one.node.name: one.node for one in every if isinstance(one.node, ast.ClassDef)}
    found = explained(every)
    shapeless = [
        one
        for one in every
        if re.search(r"\bTensor\b", one.annotations.replace("Mapping[str, Tensor]", ""))
        and not SHAPE.search(one.doc)
        and not (not one.doc and is_explained(one, classes, found))
    ]
    assert not "\n".join(one.place for one in shapeless)


def test_errors_that_are_raised_are_named(repository: Path) -> None:
    """A function that raises an error of core/errors.py names it, or `Failed` if the error becomes an event."""
    kinds = {one.node.name for one in public(repository) if one.place.startswith("core/errors.py")}
    silent = []
    for one in public(repository):
        if isinstance(one.node, ast.ClassDef):
            continue
        raised = {
            ast.unparse(node.exc.func)
            for node in ast.walk(one.node)
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        }
        if raised & kinds and not any(kind in one.doc for kind in (*raised, "HeteGenError", "Failed")):
            silent.append(one.place)
    assert not "\n".join(silent)


def test_nothing_hides_every_error_or_runs_strangers_code(repository: Path) -> None:
    for file in sources(repository):
        text = file.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, file
        assert not re.search(r"except\s*:", text), file
        assert "torch.load(" not in text, file


def named_paths(document: Path) -> list[str]:
    """Return the paths of this repository that a document names, in code marks or as links."""
    text = document.read_text(encoding="utf-8")
    marked = re.findall(r"`((?:core|app|assets|packaging|tests|docs)/[\w./-]+|[\w-]+\.(?:py|toml))`", text)
    return marked + re.findall(r"\]\(((?!https?:)[\w./-]+)\)", text)


def test_the_readme_is_true(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"<!-- (start|test)-command -->\n```sh\n(.*?)\n```", readme, re.DOTALL)
    assert [name for name, _ in commands] == ["start", "test"]
    assert all(len(command.splitlines()) == 1 for _, command in commands), "one line each"
    named = named_paths(repository / "README.md")
    assert "ARCHITECTURE.md" in named
    assert not [name for name in named if not (repository / name).exists()]


def test_the_architecture_is_true(repository: Path) -> None:
    """Every path that it names exists, and every room is named."""
    named = named_paths(repository / "ARCHITECTURE.md")
    assert len(named) > 50
    assert not [name for name in named if not (repository / name).exists()]
    rooms = {f"{path.parent.relative_to(repository).as_posix()}/" for path in repository.glob("core/*/__init__.py")}
    rooms |= {f"{path.parent.relative_to(repository).as_posix()}/" for path in repository.glob("app/*/__init__.py")}
    assert rooms <= set(named)


def test_contributing_names_what_is_there(repository: Path) -> None:
    assert not [name for name in named_paths(repository / "CONTRIBUTING.md") if not (repository / name).exists()]


def test_the_built_in_model_is_small(repository: Path) -> None:
    folder = repository / "assets" / "builtin-model"
    assert sum(file.stat().st_size for file in folder.rglob("*")) <= 8_000_000
