import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import ModelUnreadable, UnsupportedModel
from core.weights.checkpoint import Checkpoint
from core.weights.weight_files import INDEX, weight_files

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 4, dtype=torch.float16),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def write_shards(folder: Path) -> None:
    names = {}
    for number, name in enumerate(TENSORS):
        file = f"model-{number:05}-of-{len(TENSORS):05}.safetensors"
        save_file({name: TENSORS[name]}, folder / file)
        names[name] = file
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")


@pytest.mark.parametrize("write", [lambda folder: save_file(TENSORS, folder / "model.safetensors"), write_shards])
def test_every_tensor_is_as_it_was_stored(folder: Path, write: object) -> None:
    write(folder)  # type: ignore[operator]
    checkpoint = Checkpoint(folder)
    assert set(checkpoint) == set(TENSORS)
    assert len(checkpoint) == len(TENSORS)
    for name, expected in TENSORS.items():
        assert checkpoint[name].dtype == expected.dtype
        assert torch.equal(checkpoint[name], expected)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in TENSORS.values())
    assert checkpoint.dtype == torch.float32, "most of the bytes"
    assert checkpoint.infos["a"].shape == (2, 3)


def test_tensors_are_views_of_one_mapping(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    checkpoint = Checkpoint(folder)
    assert checkpoint["a"].data_ptr() == checkpoint["a"].data_ptr()


def test_tensors_outlive_the_checkpoint(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    tensor = Checkpoint(folder)["a"]
    assert torch.equal(tensor, TENSORS["a"])


def test_warming_reads_everything_and_says_how_far_it_is(folder: Path) -> None:
    write_shards(folder)
    fractions = list(Checkpoint(folder).warm())
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_plain_name_comes_before_others(folder: Path) -> None:
    """Some repositories contain the same weights twice: consolidated, and in transformers' layout."""
    for name in ("consolidated.safetensors", "model.safetensors"):
        save_file(TENSORS, folder / name)
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_files_of_other_names_are_taken_together(folder: Path) -> None:
    save_file({"a": TENSORS["a"]}, folder / "one.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "two.safetensors")
    assert set(Checkpoint(folder)) == {"a", "b"}


def test_a_folder_of_an_adapter_is_no_model(folder: Path) -> None:
    save_file(TENSORS, folder / "adapter_model.safetensors")
    with pytest.raises(UnsupportedModel):
        Checkpoint(folder)


def test_a_shard_cut_off_is_noticed_before_anything_is_read(folder: Path) -> None:
    write_shards(folder)
    file = folder / "model-00000-of-00004.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelUnreadable, match=r"model-00000-of-00004.safetensors cannot be read. It is cut off"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["my-lora-merged.safetensors", "exploration-7b.safetensors", "merged_adapter.safetensors", "weights.safetensors"],
)
def test_a_name_does_not_make_an_adapter(name: str, folder: Path) -> None:
    save_file(TENSORS, folder / name)
    assert set(Checkpoint(folder)) == set(TENSORS)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "renamed.safetensors"])
def test_what_holds_only_changes_is_an_adapter(name: str, folder: Path) -> None:
    save_file({"layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}, folder / name)
    with pytest.raises(UnsupportedModel):
        Checkpoint(folder)


def test_an_index_left_over_beside_a_whole_file_is_of_no_account(folder: Path) -> None:
    write_shards(folder)
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    save_file(TENSORS, folder / "model.safetensors")
    assert set(Checkpoint(folder)) == set(TENSORS)


def test_shards_in_a_folder_below(folder: Path) -> None:
    (folder / "shards").mkdir()
    save_file(TENSORS, folder / "shards" / "one.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "shards/one.safetensors")}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert set(Checkpoint(folder)) == set(TENSORS)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/../../x", "C:\\x.safetensors", "\\\\host\\x", ""]
)
def test_an_index_leads_nowhere_else(name: str, folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(ModelUnreadable, match="outside its folder"):
        Checkpoint(folder)
