"""The bundle excludes nothing that a causal language model needs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.core.composite import OWN_CLASS
from tests.core.families import FAMILIES, RARER_FAMILIES


@pytest.fixture(scope="module")
def left_out(repository: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "packaging"))
        return import_module("left_out")


@pytest.fixture(scope="module")
def modules(left_out: ModuleType) -> set[str]:
    return set(left_out.model_modules())


def test_every_causal_model_stays(modules: set[str]):
    kept = {model_type_to_module_name(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind != "gpt-sw3"}
    assert len(kept) > 150
    assert not {f"transformers.models.{folder}.modeling_{folder}" for folder in kept} & modules


def test_every_tested_family_stays(modules: set[str]):
    for family in FAMILIES | RARER_FAMILIES:
        folder = model_type_to_module_name(family)
        assert f"transformers.models.{folder}.modeling_{folder}" not in modules


def test_every_tested_model_that_sees_stays_with_what_prepares_pictures(modules: set[str]):
    for kind in OWN_CLASS:
        folder = model_type_to_module_name(kind)
        assert f"transformers.models.{folder}.modeling_{folder}" not in modules
    assert not [name for name in modules if ".processing_" in name or ".image_processing_pil_" in name]


def test_every_configuration_stays_so_that_any_model_can_be_judged(modules: set[str]):
    assert not [name for name in modules if ".configuration_" in name or name.endswith("__init__")]
    assert len(CONFIG_MAPPING_NAMES) > 300


def test_models_that_only_see_or_hear_go(modules: set[str]):
    gone = {name for name in modules if ".modeling_" in name}
    assert {"transformers.models.detr.modeling_detr", "transformers.models.wav2vec2.modeling_wav2vec2"} <= gone
    assert len(gone) > 100


def test_a_part_that_another_model_names_stays(modules: set[str]):
    # gemma3's configuration refers to siglip_vision_model by its type.
    assert "transformers.models.siglip.modeling_siglip" not in modules


def test_what_a_kept_module_imports_stays(modules: set[str]):
    # Whisper has a causal decoder; its tokenizer's module imports this one.
    assert "transformers.models.whisper.english_normalizer" not in modules


def test_torch_stays_without_its_compilers_and_tests(left_out: ModuleType):
    kept = set(left_out.modules_of("torch"))
    assert {"torch", "torch.nn.functional", "torch._subclasses.fake_tensor", "torch.testing"} <= kept
    assert not [name for name in kept if name.startswith(("torch._inductor.codegen", "torch.testing._internal.opinfo"))]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("torch/test/a.py", "/v/site-packages/torch/test/a.py", True),
        ("torch/bin/protoc", "/v/site-packages/torch/bin/protoc", True),
        ("torch/bin/torch_shm_manager", "/v/site-packages/torch/bin/torch_shm_manager", False),
        ("accelerate-1.15.0.dist-info/METADATA", "/v/site-packages/accelerate-1.15.0.dist-info/METADATA", True),
        ("torch-2.13.0.dist-info/METADATA", "/v/site-packages/torch-2.13.0.dist-info/METADATA", False),
        ("libxcb-cursor.so.0", "/usr/lib/x86_64-linux-gnu/libxcb-cursor.so.0", True),
        ("libstdc++.so.6", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6", True),
        ("libssl.so.3", "/usr/lib/x86_64-linux-gnu/libssl.so.3", False),
        ("libsqlite3.so.0", "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0", False),
        ("PySide6/Qt/lib/libQt6Core.so.6", "/v/site-packages/PySide6/Qt/lib/libQt6Core.so.6", False),
        ("assets\\icons\\copy.svg", "C:\\src\\assets\\icons\\copy.svg", False),
    ],
)
def test_files(left_out: ModuleType, name: str, source: str, expected: bool):
    assert left_out.is_left_out(name, source) is expected
