"""A model's vision: pictures to ids of a prompt, and ids to inputs of a forward pass.

transformers' own forward does the rest: it runs the tower, replaces the placeholder tokens' embeddings and builds the
masks. So there is no code per family here.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from core.errors import ModelUnreadable, NoChatTemplate
from core.model.pictures import Picture, begins, key_of
from core.vision.processor import PictureProcessor
from core.vision.tower import Tower, placeholder_id

REMEMBERED = 32
"""Number of processed pictures that are cached; one of a megapixel takes about 12 MB."""
TYPES = ("mm_token_type_ids", "token_type_ids")
"""Arguments of forwards that mark the tokens of a picture (1)."""


class ModelVision:
    """The vision of a loaded model."""

    def __init__(self, module: Any, checkpoint: Mapping[str, Tensor], processor: PictureProcessor) -> None:
        """Opens the tower. Raises UnsupportedModel, ModelUnreadable, NotEnoughMemory."""
        self.tower = Tower(module, checkpoint)
        placeholder = placeholder_id(module.config)
        assert placeholder is not None
        self._placeholder: int = placeholder
        self._processor = processor
        self._parameters = inspect.signature(module.forward).parameters
        self._rope_index = getattr(getattr(module, "model", None), "get_rope_index", None)
        self._pictures: OrderedDict[bytes, tuple[Picture, str]] = OrderedDict()
        self._by_key: dict[int, Picture] = {}
        self._counted: list[int] = []
        self._moved = 0

    def expand(self, text: str, shown: Sequence[bytes]) -> str:
        """Replace the chat template's placeholders in a rendered conversation by the text of each picture. Raises
        NoChatTemplate, BadRequest, ModelUnreadable."""
        first, *others = text.split(self._processor.placeholder)
        if len(others) != len(shown):
            raise NoChatTemplate(
                "This model's chat template leaves pictures out.", "", "Choose another model that sees."
            )
        self._remember(shown)
        return first + "".join(self._pictures[one][1] + part for one, part in zip(shown, others, strict=True))

    def numbered(self, ids: Sequence[int], shown: Sequence[bytes]) -> list[int]:
        """Replace the placeholder tokens among the ids of an expanded text by the pictures' own ids. Raises
        ModelUnreadable."""
        own = [id for one in shown for id in self._pictures[one][0].ids]
        places = [place for place, id in enumerate(ids) if id == self._placeholder]
        if len(places) != len(own):
            raise ModelUnreadable(
                "The model's settings for pictures cannot be read.",
                "They ask for another number of tokens than its tokenizer gives.",
                "Download the model again.",
            )
        result = list(ids)
        for place, id in zip(places, own, strict=True):
            result[place] = id
        return result

    def concerns(self, read: Sequence[int], ids: Sequence[int]) -> bool:
        """Return whether a pass over `ids` after `read` needs `inputs`: text not after any picture does not."""
        return min(ids) < 0 or self._moved_after(read) != 0

    def inputs(self, read: Sequence[int], ids: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Return the forward's arguments for a pass over `ids` (n,), with at most one picture, after `read`."""
        found = {"input_ids": torch.tensor([[self._placeholder if id < 0 else id for id in ids]], device=device)}
        picture = next((self._by_key[key_of(id)] for id in ids if id < 0), None)
        if picture is not None:
            types = torch.tensor([[int(id < 0) for id in ids]], device=device)
            found |= {name: types for name in TYPES if name in self._parameters}
            found |= {name: value for name, value in picture.inputs.items() if name in self._parameters}
        if self._rope_index is not None:
            found["position_ids"] = self._positions(read, ids).to(device)
        return found

    def _positions(self, read: Sequence[int], ids: Sequence[int]) -> Tensor:
        """Return positions (3, 1, n): a picture counts rows and columns apart; text continues after the longer side."""
        start = len(read) + self._moved_after(read)
        columns: list[Tensor] = []
        for key, count in runs(ids):
            picture = None if key is None else self._by_key[key]
            if picture is None or picture.positions is None:
                columns.append(torch.arange(start, start + count).expand(3, -1))
                start += count
            else:
                columns.append(start + picture.positions)
                start += picture.advance
        return torch.cat(columns, 1).unsqueeze(1)

    def _moved_after(self, read: Sequence[int]) -> int:
        """Return the position offset caused by earlier pictures; each id is examined once while ids are only
        appended."""
        if self._rope_index is None:
            return 0
        known = len(self._counted)
        if read[:known] != self._counted:
            known = self._moved = 0
            self._counted.clear()
        new = read[known:]
        seen = (self._by_key[key_of(id)] for id in new if begins(id))
        self._moved += sum(picture.advance - picture.count for picture in seen)
        self._counted.extend(new)
        return self._moved

    def _remember(self, shown: Sequence[bytes]) -> None:
        for one in shown:
            if one not in self._pictures:
                processed = self._processor.process(one)
                positions = self._own_positions(processed.count, processed.inputs)
                picture = Picture(processed.key, processed.count, processed.inputs, positions)
                self._pictures[one] = picture, processed.text
                self._by_key[picture.key] = picture
            self._pictures.move_to_end(one)
        while len(self._pictures) > max(REMEMBERED, len(set(shown))):
            _, (forgotten, _) = self._pictures.popitem(last=False)
            del self._by_key[forgotten.key]

    def _own_positions(self, count: int, inputs: Mapping[str, Tensor]) -> Tensor | None:
        if self._rope_index is None:
            return None
        ids = torch.full((1, count), self._placeholder)
        grid = inputs.get("image_grid_thw")
        positions: Tensor = self._rope_index(ids, mm_token_type_ids=torch.ones_like(ids), image_grid_thw=grid)[0]
        return positions[:, 0]


def runs(ids: Sequence[int]) -> Iterator[tuple[int | None, int]]:
    """Yield runs of text (None) and of pictures (their key) with their number of ids; a repeated picture is a new
    run."""
    beginnings = 0

    def run_of(id: int) -> tuple[int | None, int]:
        nonlocal beginnings
        if begins(id):
            beginnings += 1
        return (key_of(id), beginnings) if id < 0 else (None, 0)

    for (key, _), members in groupby(ids, run_of):
        yield key, sum(1 for _ in members)
