"""Every family's files give transformers' weights and tokens, packed weights bit for bit, on any placement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from core.errors import ModelUnreadable, UnsupportedModel
from core.events import LoadOptions, Prefill, Sampling, never
from core.generation.generate import generate
from core.generation.sampler import TokenSampler, resolve
from core.hub.remote_spec import read_local
from core.model.gguf_source import open_gguf
from core.model.model_source import open_source
from core.runtime.fit import describe
from core.runtime.loaded_model import LoadedModel
from tests.core.greedy import GREEDY, loaded_model, transformers_tokens
from tests.core.weights.gguf.tiny_gguf import MODELS, TURNED, copy_settings, finish, make_model, write_gguf

OPTIONS = LoadOptions(context=512, threads=1)
Q8_0, Q5_0, Q4_0 = (gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q5_0", "Q4_0"))
PROMPT = torch.randint(10, 260, (40,), generator=torch.Generator().manual_seed(5)).tolist()


def greedy(model: LoadedModel, count: int) -> list[int]:
    drawn: list[int] = []
    for step in generate(model.model, model.cache, PROMPT, TokenSampler(resolve(GREEDY, Sampling())), never):
        if not isinstance(step, Prefill):
            drawn.append(step.id)
        if len(drawn) == count:
            break
    return drawn


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    expected = transformers_tokens(model, PROMPT, 32)
    assert len(set(expected)) > 5, "a model that repeats itself proves nothing"
    assert greedy(loaded_model(write_gguf(name, model, tmp_path / "m.gguf"), OPTIONS), 32) == expected


@pytest.mark.parametrize("name", MODELS)
def test_quantised_linears_are_the_files_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    opened = open_gguf(write_gguf(name, model, tmp_path / "m.gguf", Q8_0))
    assert len(opened.stored) >= model.config.num_hidden_layers * 2
    values = model.state_dict()
    packed = opened.packed
    for linear in (name for name, storage in opened.stored.items() if storage is not None):
        value = values[opened.linears[linear]]
        experts = value.transpose(1, 2) if name.startswith(TURNED) and value.dim() == 3 else value
        for number, one in enumerate(experts if value.dim() == 3 else [experts]):
            weight = packed[f"{linear}.{number}" if value.dim() == 3 else linear]
            assert torch.equal(weight.dequantize(torch.float32), rounded(one, Q8_0)), linear


def rounded(value: torch.Tensor, kind: Any) -> torch.Tensor:
    """Round rows as in a file of this kind; the order of rows does not matter."""
    blocks = gguf.quants.quantize(value.contiguous().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(blocks, kind))


def test_a_linear_of_tensors_of_two_types_stays_packed(tmp_path: Path) -> None:
    """In Qwen3-Next's Q4_K_M files, gates have fewer bits than queries, keys and values, which are the same linear."""
    model = make_model("qwen3next")
    opened = open_gguf(write_gguf("qwen3next", model, tmp_path / "m.gguf", Q4_0, others={"attn_qkv": Q5_0}))
    linear = "model.layers.0.linear_attn.in_proj_qkvz"
    assert opened.stored[linear] == "int6g32"
    own = model.get_parameter(f"{linear}.weight").detach()
    heads = own.view(model.config.linear_num_key_heads, -1, own.shape[1])
    others, gates = heads.split((2 * 16 + 2 * 16, 2 * 16), dim=1)
    expected = torch.cat((rounded(others, Q5_0), rounded(gates, Q4_0)), dim=1).view(own.shape)
    assert torch.equal(opened.packed[linear].dequantize(torch.float32), expected)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35", "falcon"])
def test_the_input_table_stays_in_the_file(name: str, tmp_path: Path) -> None:
    """Tied to the head (llama), scaled (Gemma), or under its own name (Falcon)."""
    model = make_model(name)
    loaded = loaded_model(write_gguf(name, model, tmp_path / "m.gguf", Q8_0), OPTIONS)
    table, ids = loaded.model.module.get_input_embeddings(), torch.tensor([[7, 300, 7, 12]])
    assert not any(part.dim() > 1 for part in table.parameters())
    own = model.get_input_embeddings()
    own.weight.data = rounded(own.weight.data, Q8_0).bfloat16()
    assert torch.equal(table(ids), own(ids))
    assert table.weight.shape == own.weight.shape
    assert loaded.spec.embedding_bytes == 0


def test_inputs_by_layer_stay_in_the_file_and_off_the_card(tmp_path: Path) -> None:
    model = make_model("gemma4")
    path = write_gguf("gemma4", model, tmp_path / "m.gguf", Q8_0)
    loaded = loaded_model(path, OPTIONS)
    table, ids = loaded.model.module.model.embed_tokens_per_layer, torch.tensor([[7, 300, 7, 12]])
    assert not list(table.parameters())
    own = model.model.embed_tokens_per_layer
    own.weight.data = rounded(own.weight.data, Q8_0).bfloat16()
    assert torch.equal(table(ids), own(ids))
    assert loaded.spec.lookup_bytes == loaded.spec.embedding_bytes == 0
    assert loaded.spec.resident_bytes < own.weight.nbytes
    assert describe(*read_local(path), "m.gguf").lookup_bytes == 0
    plain = write_gguf("gemma4", make_model("gemma4"), tmp_path / "plain.gguf")
    assert describe(*read_local(plain), "").lookup_bytes == 2 * own.weight.nbytes


@pytest.mark.parametrize("kind", [Q8_0, Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gemma4"])
def test_a_split_between_cpu_and_gpu_changes_nothing(name: str, kind: Any, tmp_path: Path) -> None:
    path = write_gguf(name, make_model(name), tmp_path / "m.gguf", kind)
    alone = loaded_model(path, OPTIONS)
    split = loaded_model(path, LoadOptions(context=512, threads=1, simulate_gpu="vram=1MiB,link=12GB/s"))
    logits = [one.model.forward(PROMPT, one.cache, keep=len(PROMPT)) for one in (alone, split)]
    split.close()
    assert torch.cosine_similarity(logits[0].flatten(), logits[1].flatten(), dim=0) > 0.99


def test_a_second_load_maps_what_the_first_has_repacked(tmp_path: Path) -> None:
    path = write_gguf("qwen3", make_model("qwen3"), tmp_path / "m.gguf", Q8_0)
    first = greedy(loaded_model(path, OPTIONS), 16)
    assert greedy(loaded_model(path, OPTIONS), 16) == first


def test_parts_of_a_model_are_one(tmp_path: Path) -> None:
    model = make_model("llama")
    whole = gguf.GGUFReader(write_gguf("llama", model, tmp_path / "whole.gguf"))
    expected = transformers_tokens(model, PROMPT, 16)
    split(whole, tmp_path, 3)
    assert greedy(loaded_model(tmp_path / "m-00001-of-00003.gguf", OPTIONS), 16) == expected
    assert greedy(loaded_model(tmp_path / "m-00002-of-00003.gguf", OPTIONS), 16) == expected, "whichever part is chosen"


def split(whole: Any, folder: Path, count: int) -> None:
    """Split a file; the first part has the metadata and no tensors, as llama.cpp's tool may write it."""
    for number in range(count):
        writer = gguf.GGUFWriter(folder / f"m-{number + 1:05}-of-{count:05}.gguf", "llama")
        if number == 0:
            copy_settings(whole, writer)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for index, tensor in enumerate(whole.tensors):
            if number and index % (count - 1) == number - 1:
                writer.add_tensor(tensor.name, tensor.data)
        finish(writer)


def test_an_unknown_architecture_gives_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.add_tensor("token_embd.weight", torch.zeros(8, 32).numpy())
    finish(writer)
    with pytest.raises(UnsupportedModel, match="'rwkv7'"):
        open_gguf(path)


def test_a_tensor_that_has_no_place_is_a_reason_to_stop(tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        writer.add_tensor("blk.0.attn_surprise.weight", torch.zeros(4, 32).numpy())

    with pytest.raises(UnsupportedModel, match="attn_surprise"):
        open_gguf(write_gguf("llama", make_model("llama"), tmp_path / "m.gguf", add=more))


def test_a_folder_of_one_file_is_that_model_and_of_several_asks_which(tmp_path: Path) -> None:
    model = make_model("qwen2")
    write_gguf("qwen2", model, tmp_path / "m-Q8_0.gguf")
    assert greedy(loaded_model(tmp_path, OPTIONS), 8) == transformers_tokens(model, PROMPT, 8)
    write_gguf("qwen2", model, tmp_path / "m-Q4_0.gguf", Q4_0)
    with pytest.raises(UnsupportedModel, match="not clear which GGUF file") as caught:
        open_source(tmp_path)
    assert "m-Q4_0.gguf, m-Q8_0.gguf" in str(caught.value)


def test_a_file_without_its_ending_is_known_by_its_content(tmp_path: Path) -> None:
    model = make_model("qwen2")
    write_gguf("qwen2", model, tmp_path / "m.gguf").rename(tmp_path / "sha256-0123")
    assert greedy(loaded_model(tmp_path / "sha256-0123", OPTIONS), 8) == transformers_tokens(model, PROMPT, 8)
    config, tensors = read_local(tmp_path / "sha256-0123")
    assert config["general.architecture"] == "qwen2"
    assert tensors


def test_an_empty_file_gives_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelUnreadable, match="There is nothing in it"):
        open_source(tmp_path / "m.gguf")
