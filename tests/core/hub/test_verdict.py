"""The verdict on a model on the Hub is the planner's own, and the same after the download."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import download
from core.hub.downloader import DownloadOptions
from core.hub.fit import Kind, Wishes, fit
from core.hub.installed import resolve_model
from core.hub.listing import Reference
from core.hub.remote_spec import read_local, read_remote
from core.planning.planner import place
from core.runtime.fit import FitChecker, describe
from core.spec import Budget, Hardware, ModelSpec
from core.units import GIB
from core.weights.safetensors_header import TensorInfo
from tests.core.hub.conftest import ID
from tests.core.hub.fake_hub import Double, Repo, model_files
from tests.core.machines import A10, DESKTOP, LAPTOP, model

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "num_hidden_layers": 3,
    "hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 999,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize("machine", [LAPTOP, DESKTOP], ids=["laptop", "desktop"])
@pytest.mark.parametrize("wishes", [Wishes(), Wishes("int8", 1024), Wishes("bf16", 99_999)], ids=str)
def test_same_before_and_after_the_download(
    cache: Cache, manner: DownloadOptions, connect: Callable[..., Client], machine: Hardware, wishes: Wishes
) -> None:
    files = model_files(rows=512) | {"config.json": json.dumps(LLAMA).encode()}
    checker = FitChecker(lambda: machine, Budget())
    with Double(Repo(ID, files)) as hub:
        client = connect(hub.endpoint)
        remote = read_remote(client, Reference(ID))
        before = checker(remote.config, remote.tensors, wishes)
        download(client, cache, Reference(ID), manner=manner)
    config, tensors = read_local(resolve_model(ID, cache))
    assert FitChecker(lambda: machine, Budget())(config, tensors, wishes) == before
    assert before.context <= before.context_limit == 4096


def test_a_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another format or context is answered from what is known."""
    described: list[str] = []

    def counted(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], name: str = "") -> ModelSpec:
        described.append(name)
        return describe(config, tensors, name)

    monkeypatch.setattr("core.runtime.fit.describe", counted)
    checker = FitChecker(lambda: DESKTOP, Budget())
    for context in range(512, 2048, 128):
        assert checker(LLAMA, {}, Wishes("int8", context)).context == context
    assert len(described) == 1


@pytest.mark.parametrize(
    ("name", "machine", "kind"),
    [
        ("llama-3.2-1b", DESKTOP, "fits"),
        ("llama-3.2-1b", LAPTOP, "fits"),
        ("llama-3.1-8b", A10, "fits"),
        ("llama-3.1-8b", DESKTOP, "cpu_help"),
        ("opt-30b", LAPTOP, "no"),
    ],
)
def test_kinds(name: str, machine: Hardware, kind: Kind) -> None:
    spec = model(name)
    found = fit(place(spec, machine, Budget()), spec)
    assert found.kind == kind
    assert found.reason.endswith(".")
    assert found.stored_bytes >= found.converted_bytes > 0.2 * found.stored_bytes
    assert found.tok_s.low <= found.tok_s.likely <= found.tok_s.high
    assert found.memory


def test_a_small_budget_is_too_small() -> None:
    spec = model("llama-3.1-8b")
    assert fit(place(spec, LAPTOP, Budget(ram=2 * GIB, format="bf16")), spec).kind in ("no", "slow")


def test_stored_size_is_that_of_the_files(tmp_path: Path, connect: Callable[..., Client]) -> None:
    """For a real shape: the weights' bytes, with the embedding counted once if the head is tied to it."""
    spec = model("llama-3.2-1b")
    found = fit(place(spec, LAPTOP, Budget()), spec)
    assert found.stored_bytes == pytest.approx(2 * 1_235_814_400, rel=0.001)
    assert found.parameters == pytest.approx(1_235_814_400, rel=0.001)
