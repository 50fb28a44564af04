"""transformers' processor of a model, for pictures only: the inputs of the forward and the placeholder text.

Its video and audio parts are left out, because they need libraries that are not installed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from core.documents.picture import decode
from core.errors import ModelUnreadable, UnsupportedModel
from core.sentence import sentence

KEY_BYTES = 5
"""Bytes of a picture's key, so that its token ids fit into 64 bits."""
PIXTRAL = "transformers.models.pixtral.image_processing_pixtral"


@dataclass(frozen=True)
class Processed:
    """A picture's inputs for the forward, and the text that stands for it in a prompt, with `count` placeholder tokens;
    `key`: a number derived from its content."""

    key: int
    count: int
    inputs: Mapping[str, Tensor]
    text: str


class PictureProcessor:
    """A model's processor; `placeholder` is what its chat template writes for a picture."""

    def __init__(self, processor: Any, token: str) -> None:
        """`token`: the placeholder token in the model's input, once for each part of a picture."""
        self.transformers = processor
        self._token = token
        self.placeholder: str = processor.image_token

    def process(self, data: bytes) -> Processed:
        """Process the bytes of a picture file. Raises BadRequest, ModelUnreadable."""
        image = decode(data)
        options = self.transformers._merge_kwargs(tokenizer_init_kwargs={}, return_tensors="pt")["images_kwargs"]
        try:
            inputs, (text,) = self.transformers._process_images([image], **options)
        # Invalid settings show here, as any exception.
        except Exception as error:
            raise _unreadable(error) from error
        unused = set(self.transformers.unused_input_names)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name not in unused}
        key = int.from_bytes(hashlib.sha256(data).digest()[:KEY_BYTES], "little")
        return Processed(key, text.count(self._token), tensors, text)


def load_processor(folder: Path, config: Any, tokenizer: Any, placeholder: int) -> PictureProcessor:
    """Load the processor of a model folder; `tokenizer`: transformers'; `placeholder`: the id of its picture token.
    Raises UnsupportedModel, ModelUnreadable."""
    from transformers import AutoImageProcessor

    kind = _only_for_pictures(_processor_class(config))
    try:
        images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        settings, _ = kind.get_processor_dict(folder)
        parts = {"image_processor": images, "tokenizer": tokenizer}
        given = [parts.get(name) for name in kind.get_attributes()]
        return PictureProcessor(kind.from_args_and_dict(given, settings), tokenizer.convert_ids_to_tokens(placeholder))
    # Each family reads its settings in its own way and may raise any exception.
    except Exception as error:
        raise _unreadable(error) from error


def _processor_class(config: Any) -> Any:
    """Return transformers' processor class for this model type. Raises UnsupportedModel."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(config.model_type, "")
    try:
        found = getattr(_module_of(name), name)
        found.get_attributes()  # a placeholder for a missing dependency raises here
    except (ImportError, AttributeError, TypeError) as error:
        raise UnsupportedModel(
            sentence("Pictures cannot be shown to a model of the kind {}.", f"{config.model_type!r}"),
            "What prepares them for it needs libraries that are not here.",
            "Choose another model that sees.",
        ) from error
    return found


def _module_of(name: str) -> Any:
    """Import the module of a processor; two of them import libraries that pictures do not need."""
    if name == "SmolVLMProcessor":
        module = import_module("transformers.models.smolvlm.processing_smolvlm")
        module.num2words = module.num2words or str  # type: ignore[attr-defined]  # only used for video timestamps
        return module
    if name == "PixtralProcessor":
        with _without_torchvision():
            return import_module("transformers.models.pixtral.processing_pixtral")
    return import_module("transformers")


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Context: Pixtral's processor imports a function from a module that needs torchvision; another module has it,
    too."""
    if PIXTRAL in sys.modules:
        yield
        return
    sys.modules[PIXTRAL] = import_module(f"{PIXTRAL.rpartition('.')[0]}.image_processing_pil_pixtral")
    try:
        yield
    finally:
        del sys.modules[PIXTRAL]


def _only_for_pictures(kind: Any) -> Any:
    """Return a subclass of the processor that accepts None for its video and audio parts."""
    check: Callable[..., Any] = kind.check_argument_for_proper_class

    def checked(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else check(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": checked})


def _unreadable(error: Exception) -> ModelUnreadable:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
    return ModelUnreadable(
        "The model's settings for pictures cannot be read.", f"{reason}.", "Download the model again."
    )
