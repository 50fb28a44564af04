"""Builds a tokenizer from a GGUF file's settings: byte-level BPE, or SentencePiece with byte tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.errors import UnsupportedModel
from core.sentence import sentence
from core.weights.gguf.header import unreadable
from core.weights.gguf.pre_tokenizers import PATTERNS

BYTE_LEVEL, SENTENCE_PIECES = ("gpt2",), ("llama", "gemma4")
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Token types."""
SPACE = "\u2581"
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
ENDS = ("eos", "eot", "eom")
BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3", "tekken", "pixtral")
"""Byte-level vocabularies whose texts begin with a BOS token unless the file says otherwise."""


def make_tokenizer(settings: Mapping[str, Any], source: str) -> Any:
    """Build transformers' tokenizer of a file, with its chat template. Raises UnsupportedModel, ModelUnreadable."""
    from transformers import PreTrainedTokenizerFast

    tokens = settings.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise unreadable(source, "It holds no vocabulary.")
    backend = _backend(settings, tokens, source)
    _add_special(backend, settings, tokens)
    names = {role: tokens[index] for role, index in _roles(settings, len(tokens)).items()}
    if _adds_bos(settings) and "bos_token" in names:
        _begin_with(backend, names["bos_token"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    wrapped.chat_template = settings.get("tokenizer.chat_template")
    return wrapped


def end_ids(settings: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids of all tokens that end a reply."""
    found = {settings.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS}
    return frozenset(index for index in found if isinstance(index, int))


def _backend(settings: Mapping[str, Any], tokens: list[str], source: str) -> Any:
    kind = settings.get("tokenizer.ggml.model")
    try:
        if kind in BYTE_LEVEL:
            return _byte_level(settings, tokens)
        if kind in SENTENCE_PIECES:
            return _sentence_pieces(settings, tokens)
    # tokenizers' Rust errors arrive as plain Exceptions and ValueErrors.
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise unreadable(source, sentence("Its vocabulary is damaged ({}).", str(error)[:60])) from error
    raise UnsupportedModel(
        sentence("The tokenizer of this file is of the kind {}, which is not known here.", repr(str(kind)[:40])),
        "With another one the model would read something else than is written.",
        "Choose the model in its original safetensors version.",
    )


def _byte_level(settings: Mapping[str, Any], tokens: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = settings.get("tokenizer.ggml.pre", "")
    if name not in PATTERNS:
        raise UnsupportedModel(
            sentence("This file's tokenizer cuts text in the way {}, which is not known here.", repr(str(name)[:40])),
            "With another way the model would read something else than is written.",
            "Choose the model in its original safetensors version.",
        )
    merges = [_pair(merge) for merge in settings["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in BOS_BY_DEFAULT))
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[name]]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    """Split a merge into its two parts. Raises ValueError."""
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ValueError("merges")
    return left, right


def _sentence_pieces(settings: Mapping[str, Any], tokens: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores, kinds = settings.get("tokenizer.ggml.scores"), settings.get("tokenizer.ggml.token_type", [])
    pieces = [
        _spelled(token, kind) for token, kind in zip(tokens, [*kinds, *[1] * (len(tokens) - len(kinds))], strict=True)
    ]
    vocabulary = {token: index for index, token in enumerate(pieces)}
    said = settings.get("tokenizer.ggml.merges")
    merges = [_pair(merge) for merge in said] if said else list(_implied(vocabulary, scores, settings))
    unknown = _roles(settings, len(tokens)).get("unk_token")
    backend = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=BYTE in kinds, fuse_unk=True,
                   unk_token=None if unknown is None else pieces[unknown])
    )  # fmt: skip
    prefix = settings.get("tokenizer.ggml.add_space_prefix", settings.get("tokenizer.ggml.model") == "llama")
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return backend


def _spelled(token: str, kind: int) -> str:
    """Return a piece in normalised form: some files keep runs of spaces unescaped."""
    return token.replace(" ", SPACE) if kind == 1 or (kind == USER_DEFINED and not token.strip()) else token


def _implied(vocabulary: Mapping[str, int], scores: Any, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the merges implied by a vocabulary that lists none, the best piece first."""
    # Gemma's scores do not match its merges; the order of its pieces does.
    gemma = str(settings.get("general.architecture", "")).startswith("gemma")
    rank = {piece: -index if gemma or not scores else scores[index] for piece, index in vocabulary.items()}
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece in vocabulary:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-rank[piece], vocabulary[left], vocabulary[right], (left, right)))
    return (pair for *_, pair in sorted(found))


def _add_special(backend: Any, settings: Mapping[str, Any], tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    kinds = settings.get("tokenizer.ggml.token_type", ())
    named = zip(tokens, kinds, strict=False)
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in named
        if kind == CONTROL or (kind == USER_DEFINED and token.strip())
    ]
    backend.add_tokens([token for token in added if not token.special])
    backend.add_special_tokens([token for token in added if token.special])


def _roles(settings: Mapping[str, Any], count: int) -> dict[str, int]:
    found = {role: settings.get(f"tokenizer.ggml.{name}_token_id") for role, name in ROLES.items()}
    return {role: index for role, index in found.items() if isinstance(index, int) and 0 <= index < count}


def _adds_bos(settings: Mapping[str, Any]) -> bool:
    by_kind = settings.get("tokenizer.ggml.model") == "llama" or settings.get("tokenizer.ggml.pre") in BOS_BY_DEFAULT
    return bool(settings.get("tokenizer.ggml.add_bos_token", by_kind))


def _begin_with(backend: Any, token: str) -> None:
    from tokenizers import processors

    index = backend.token_to_id(token)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 $B:1", special_tokens=[(token, index)]
    )
