"""What is said of a quantised model before it is here is what becomes of it when it is loaded."""

from __future__ import annotations

import json
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
        ("fp8 in blocks", False, "The files have the weights quantised (FP8); they are converted to 16-bit numbers."),
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
