"""Layer lists: a full slice is the list itself, other slices are as before."""

from __future__ import annotations

from typing import Any

from torch import nn

from core.layers.layer_list import LayerList, keep_lists


def test_all_of_a_list_is_the_list_and_a_part_of_it_a_new_one() -> None:
    layers: list[nn.Module] = [nn.Linear(2, 2) for _ in range(3)]
    tree: Any = nn.Sequential(nn.ModuleList(layers))
    keep_lists(tree)
    kept = tree[0]
    assert isinstance(kept, LayerList)
    assert kept[:3] is kept[:] is kept[0:7] is kept
    assert list(kept[1:]) == layers[1:]
    assert list(kept[::-1]) == layers[::-1]
    assert kept[-1] is layers[2]
    assert len(kept[:0]) == 0
    assert list(tree.state_dict()) == [f"0.{number}.{name}" for number in range(3) for name in ("weight", "bias")]
