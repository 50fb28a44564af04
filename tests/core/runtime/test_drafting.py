"""A draft model: the same tokens as without it, on the CPU and beside a GPU, within the planned memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import BadRequest
from core.events import AUTO, LOOKUP, SELF, LoadOptions
from core.generation.speculation import Speculation
from core.planning import drafting
from core.planning.speculation import MOST_ROWS
from core.runtime.drafting import OWN_COPY
from core.runtime.loaded_model import LoadedModel
from core.runtime.replanner import Replanner
from tests.core.families import make_model
from tests.core.greedy import loaded_model, random_prompt
from tests.core.runtime import drafted
from tests.core.runtime.drafted import draft_long
from tests.core.tiny_tokenizer import write_tokenizer

ON_CPU = LoadOptions(context=512, threads=1, format="bf16")
MIB = 1 << 20


def folder_of(family: str, folder: Path) -> Path:
    made = make_model(family, folder)
    write_tokenizer(made)
    return made


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a copy beside a card lie there, although so tiny a model's would be as fast in RAM."""
    monkeypatch.setattr(drafting, "can_be_mirrored", lambda *_: False)


def said(model: LoadedModel, count: int = 80) -> tuple[list[int], Speculation]:
    return drafted.said(model, random_prompt(30), count)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "phi3", "qwen3_5_text"])
@pytest.mark.parametrize("gpu", ["", "vram=64MiB,link=2GB/s", "vram=64MiB,link=2GB/s,cores=1"])
@pytest.mark.usefixtures("on_card")
def test_its_own_copy_drafts_and_changes_no_token(
    family: str, gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cores" not in gpu:
        draft_long(monkeypatch)
    folder = folder_of(family, tmp_path)
    options = replace(ON_CPU, simulate_gpu=gpu or None)
    plain = loaded_model(folder, options)
    expected, _ = said(plain)
    plain.close()
    model = loaded_model(folder, replace(options, draft=SELF))
    found, ahead = said(model)
    assert found == expected
    assert model.draft is not None
    assert model.draft.plan.gpu == model.plan.gpu
    assert ahead.drafted >= (1 if "cores" in gpu else MOST_ROWS - 1)
    assert ahead.drafter == OWN_COPY
    model.close()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3"])
def test_a_copy_in_ram_follows_the_cache_on_the_card(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "entirely_on_gpu", lambda *args, **kwargs: None)  # as if it had no room there
    draft_long(monkeypatch)
    folder = folder_of(family, tmp_path)
    options = replace(ON_CPU, simulate_gpu="vram=64MiB,link=2GB/s,cores=1")
    plain, model = loaded_model(folder, options), loaded_model(folder, replace(options, draft=SELF))
    assert model.draft is not None
    assert (model.plan.gpu, model.draft.plan.gpu) == (0, -1)
    assert model.cache.away
    for _ in range(2):  # the second reply goes on from the same copy
        expected, (found, ahead) = said(plain)[0], said(model)
        assert found == expected
        assert ahead.drafted > 0
    plain.close()
    model.close()


@pytest.mark.usefixtures("on_card")
def test_memory_of_the_copy_is_planned_for_and_kept_to(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    options = replace(ON_CPU, simulate_gpu="vram=64MiB,link=2GB/s", vram=24 * MIB)
    model = loaded_model(folder, replace(options, draft=SELF))
    assert model.draft is not None
    card = model.machine.accelerator(0)
    said(model)
    assert card.memory().peak <= 24 * MIB
    assert model.plan.memory[-1].used + model.draft.nbytes <= 24 * MIB
    taken = card.memory().used
    model.drop_draft()
    assert card.memory().used < taken
    assert model.machine.now().gpus[0].vram_free >= 64 * MIB - 1
    model.close()


def test_a_plan_that_shrinks_lets_the_copy_go_and_the_reply_goes_on(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    options = replace(ON_CPU, simulate_gpu="vram=64MiB,link=2GB/s")
    plain = loaded_model(folder, options)
    expected, _ = said(plain)
    plain.close()
    model = loaded_model(folder, replace(options, draft=SELF))
    Replanner(model).keep_to(12 * MIB, None)
    assert model.draft is None
    assert said(model)[0] == expected
    model.to_host()
    assert said(model)[0] == expected
    model.close()


def test_another_model_drafts_if_it_has_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, small = folder_of("llama", tmp_path / "large"), folder_of("llama", tmp_path / "small")
    draft_long(monkeypatch)
    plain = loaded_model(folder, replace(ON_CPU, draft=LOOKUP))
    expected, _ = said(plain)
    model = loaded_model(folder, replace(ON_CPU, draft=str(small)))
    assert said(model)[0] == expected
    assert model.draft is not None
    assert model.draft.cache is not None
    known = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))
    words = known["model"]["vocab"]
    words["!"], words["#"] = words["#"], words["!"]
    (small / "tokenizer.json").write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(BadRequest, match="cannot draft"):
        loaded_model(folder, replace(ON_CPU, draft=str(small)))


def test_a_copy_that_would_not_pay_is_not_made(tmp_path: Path) -> None:
    """On the CPU, the tiny model's copy takes as long as the model: the cost of passes is mostly not weights."""
    model = loaded_model(folder_of("llama", tmp_path), replace(ON_CPU, draft=AUTO))
    assert model.draft is None
    assert model.speculation([1]) is not None
    assert loaded_model(tmp_path, replace(ON_CPU, draft="off")).speculation([1]) is None
