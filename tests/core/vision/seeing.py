"""Tiny random vision models with their processors, and transformers' own pipeline from pictures to tokens."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from core.events import Message
from core.vision.processor import load_processor
from tests.core.composite import make_composite
from tests.core.tiny_tokenizer import VOCABULARY, write_tokenizer

SIDE = 28
PLACEHOLDER = VOCABULARY - 10
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[PICTURE]{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = {
    "image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "video_token": "<video>",
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>",
    "audio_token": "<sound>", "boa_token": "<boa>", "eoa_token": "<eoa>",
}  # fmt: skip
SQUARE = {"height": SIDE, "width": SIDE}
GRID = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}
TILES = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
IMAGES: dict[str, dict[str, Any]] = {
    "qwen2_vl": GRID, "qwen2_5_vl": GRID, "qwen3_vl": GRID, "qwen3_5": GRID, "glm4v": GRID,
    "gemma3": {"size": SQUARE}, "gemma4": {"max_soft_tokens": 70},
    "mistral3": {"patch_size": SIDE, "size": {"longest_edge": 3 * SIDE}}, "smolvlm": TILES, "idefics3": TILES,
    "llava": {"size": SQUARE, "crop_size": SQUARE},
    "internvl": {"size": SQUARE, "crop_to_patches": True, "max_patches": 4},
}  # fmt: skip
"""Model types, and the settings of their image processors."""
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma3": {"image_seq_length": 4},
    "mistral3": {"patch_size": 14, "spatial_merge_size": 2, "image_token": "<image>"},
    "smolvlm": {"image_seq_len": 1}, "idefics3": {"image_seq_len": 1}, "internvl": {"image_seq_length": 1},
    "llava": {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
}  # fmt: skip


def picture(seed: int, width: int = 70, height: int = 60) -> bytes:
    """Return a PNG of coloured noise."""
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def make_seeing(kind: str, folder: Path) -> Any:
    """Write a tiny vision model to `folder`, with tokenizer and processor; return transformers' model."""
    model = make_composite(kind, folder)
    for config in (model.config, model.model.config):
        for name in ("image_token_id", "image_token_index"):
            if hasattr(config, name):
                setattr(config, name, PLACEHOLDER)
    content = json.loads((folder / "config.json").read_text("utf-8"))
    content |= {name: PLACEHOLDER for name in ("image_token_id", "image_token_index") if name in content}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    _write_tokenizer(folder, "<boi>" if kind == "gemma3" else "<image>")
    getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[kind]["pil"])(**IMAGES[kind]).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(SETTINGS.get(kind, {})), encoding="utf-8")
    return model


def _write_tokenizer(folder: Path, placeholder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder))
    fill = [f"<|unused{number}|>" for number in range(PLACEHOLDER - len(tokenizer))]
    texts = [*fill, *dict.fromkeys(TOKENS.values())]
    tokenizer.add_tokens([AddedToken(text, special=True) for text in texts])
    assert tokenizer.convert_tokens_to_ids("<image>") == PLACEHOLDER
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token, pad_token="<pad>",
        extra_special_tokens=TOKENS,
    )  # fmt: skip
    wrapped.chat_template = TEMPLATE.replace("PICTURE", placeholder)
    wrapped.save_pretrained(folder)


def expected_tokens(model: Any, folder: Path, messages: Sequence[Message], count: int) -> list[int]:
    """Return the greedy tokens of transformers' pipeline: one call of its processor, one of `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = load_processor(folder, model.config, tokenizer, PLACEHOLDER).transformers
    turns = []
    for one in messages:
        parts = [*({"type": "image"} for _ in one.pictures), {"type": "text", "text": one.content}]
        turns.append({"role": one.role, "content": parts})
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    shown = [Image.open(io.BytesIO(data)).convert("RGB") for one in messages for data in one.pictures]
    inputs = processor(text=[text], images=shown or None, return_tensors="pt")
    inputs.pop("attention_mask", None)
    out = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
    return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]
