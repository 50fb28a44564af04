"""The verdict on a quantised model before its download agrees with what loading does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.hub.client import Client
from core.hub.fit import Wishes
from core.hub.listing import Reference
from core.hub.remote_spec import read_local, read_remote
from core.model.model_source import open_source
from core.model.spec_cache import specification
from core.planning.planner import explain, place
from core.runtime.fit import FitChecker, describe
from core.spec import Budget
from tests.core.hub.conftest import connect  # noqa: F401  the fixture
from tests.core.hub.fake_hub import Double, Repo
from tests.core.machines import DESKTOP
from tests.core.weights.stored.packers import FORMATS
from tests.core.weights.stored.tiny_stored import write_stored

ID = "acme/quantised"


@pytest.mark.parametrize("name", FORMATS)
def test_headers_foretell_how_each_linear_will_lie(name: str, tmp_path: Path) -> None:
    write_stored(tmp_path, FORMATS[name])
    source = open_source(tmp_path)
    loaded = specification(source.module, "", tmp_path, source.stored, source.stored_as)
    assert describe(*read_local(tmp_path)) == loaded


@pytest.mark.parametrize(
    ("name", "kept", "words"),
    [
        ("awq", True, "The files have the weights quantised (AWQ); they are kept exactly."),
        ("fp8 in blocks", True, "The files have the weights quantised (FP8); they are kept exactly."),
        ("mxfp8", False, "The files have the weights quantised (FP8); they are converted to 16-bit numbers."),
    ],
)
def test_the_verdict_before_the_download_knows_both_sizes(
    name: str,
    kept: bool,
    words: str,
    tmp_path: Path,
    connect: Callable[..., Client],  # noqa: F811
) -> None:
    write_stored(tmp_path, FORMATS[name], vocab_size=1000)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with Double(Repo(ID, files)) as hub:
        remote = read_remote(connect(hub.endpoint), Reference(ID))
    found = FitChecker(lambda: DESKTOP, Budget())(remote.config, remote.tensors, Wishes("bf16"))
    assert found.stored_bytes == remote.weight_bytes
    assert (found.stored_as, found.kept) == (FORMATS[name].title or name.split()[0].upper(), kept)
    spec = describe(remote.config, remote.tensors)
    plan = place(spec, DESKTOP, Budget(format="bf16"))
    assert words in explain(plan, spec, DESKTOP)
    assert not plan.mapped
    assert json.loads(files["config.json"])["quantization_config"]


HEADERS = """
import sys
import torch
from core.weights.safetensors_header import TensorInfo
from core.weights.stored.checkpoint import sketches
from core.weights.stored.find import find_stored
from core.weights.stored_formats import stored_format
from tests.core.weights.stored.packers import FORMATS

names = {torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.float16: "F16",
         torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
for name, format in FORMATS.items():
    parts, _ = format.pack(torch.randn(64, 128))
    infos = {}
    for end, part in parts.items():
        infos[f"q{end}"] = TensorInfo(f"q{end}", names[part.dtype], tuple(part.shape), 0, 0)
    stored = stored_format({"quantization_config": format.settings}, infos)
    sketch = sketches(find_stored(infos, stored), stored.settings)["q.weight"]
    assert sketch.codes.numel() == 64 * 128, name
assert "sympy" not in sys.modules
"""


def test_reading_headers_brings_no_algebra_system_along() -> None:
    subprocess.run([sys.executable, "-c", HEADERS], check=True, timeout=250)
