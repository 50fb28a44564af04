"""Sampling of the next token from logits, and the resolution of sampling options."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from core.errors import BadRequest, BrokenOutput
from core.events import Sampling
from core.generation.chance import draw_from, uniform
from core.sentence import sentence
from core.startup.torch_threads import one_thread

Sampler = Callable[[Tensor, Sequence[int]], int]
"""(logits (vocabulary,), ids so far) -> the next id. Raises BrokenOutput if the logits are not finite numbers."""

# Defaults for options that neither the user nor the model's generation_config sets.
FALLBACK = Sampling(
    temperature=0.7,
    top_k=0,
    top_p=0.95,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
# The repetition penalty looks at this many last tokens, which bounds its cost and effect in long chats.
PENALTY_TOKENS = 1024
# Numbers of top tokens to search for the nucleus; the first nearly always suffices.
NUCLEI = (128, 2048)
# `largest` takes the maximum of blocks of this many scores first. This is faster than topk over all scores only if
# there are at least WORTHWHILE blocks per element to find.
BLOCK, WORTHWHILE = 32, 8
# Blocks of so many scores are searched for the largest score.
SEARCHED = 512
# A pseudo id that stands for all tokens outside the top ones.
OTHERS_ID = -2
# Temperatures below this mean greedy decoding: dividing by smaller ones overflows.
GREEDY_BELOW = 1e-3

BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 5.0),
    "top_k": (0, 1_000_000),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 10.0),
    "seed": (0, 2**63 - 1),
    "max_new_tokens": (1, 1_000_000),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
BIAS_LIMIT = 100.0


class Mask(Protocol):
    """Constrains which tokens may come next. Applied before each draw and informed of each drawn token."""

    def allow(self, scores: Tensor) -> Tensor:
        """Return `scores` (vocabulary,) with those of forbidden tokens at minus infinity."""
        ...

    def accept(self, token: int) -> None:
        """Advance by the token that was drawn."""


@dataclass(frozen=True)
class Draw:
    """Sampling options with every value set. `seed` is always set, so that a reply can be reproduced."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    max_new_tokens: int | None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


def check(sampling: Sampling) -> None:
    """Check all options. Raises BadRequest for a value that is not finite or out of its bounds."""
    for name, (low, high) in BOUNDS.items():
        value = getattr(sampling, name)
        if value is not None and not _within(value, low, high):
            shown = name.replace("_", " ")
            raise BadRequest(
                sentence("The {} {} is out of range.", shown, value),
                "",
                sentence("Choose a value from {} to {}.", f"{low:g}", f"{high:g}" if isinstance(high, float) else high),
            )
    for token, bias in sampling.logit_bias:
        if token < 0 or not _within(bias, -BIAS_LIMIT, BIAS_LIMIT):
            raise BadRequest(
                sentence("The bias {} of the token {} is out of range.", f"{bias:g}", token), "", "Choose -100 to 100."
            )


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def from_generation_config(config: dict[str, Any]) -> Sampling:
    """Return the model's defaults from generation_config.json; missing or out-of-range values are None."""
    known = {field.name for field in fields(Sampling)} - {"seed", "max_new_tokens", "logit_bias"}
    numbers = {name: config[name] for name in known if isinstance(config.get(name), int | float)}
    values = {name: value for name, value in numbers.items() if _within(value, *BOUNDS[name])}
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    return Sampling(**values)


def resolve(wish: Sampling, model_defaults: Sampling) -> Draw:
    """Resolve each option: the user's value, else the model's default, else FALLBACK. Raises BadRequest."""
    check(wish)

    def first(name: str) -> Any:
        return next(v for s in (wish, model_defaults, FALLBACK) if (v := getattr(s, name)) is not None)

    return Draw(
        temperature=first("temperature"),
        top_k=int(first("top_k")),
        top_p=first("top_p"),
        min_p=first("min_p"),
        repetition_penalty=first("repetition_penalty"),
        seed=random.SystemRandom().getrandbits(31) if wish.seed is None else wish.seed,
        max_new_tokens=wish.max_new_tokens,
        presence_penalty=first("presence_penalty"),
        frequency_penalty=first("frequency_penalty"),
        logit_bias=wish.logit_bias,
    )


class TokenSampler:
    """Draws the next id from logits. The same logits at the same position give the same id."""

    def __init__(self, draw: Draw, mask: Mask | None = None, prompt_length: int = 0) -> None:
        self._draw = draw
        self._mask = mask
        self._prompt_length = prompt_length

    def __call__(self, logits: Tensor, ids: Sequence[int]) -> int:
        """Draw the id that follows `ids` from logits (vocabulary,)."""
        with one_thread():
            scores = self._scores(logits, ids)
            if self._mask is None:
                return self._pick(scores, len(ids))
            token = self._pick(self._mask.allow(scores), len(ids))
            self._mask.accept(token)
            return token

    def guess(self, logits: Tensor, ids: Sequence[int]) -> tuple[int, float]:
        """Draw from a draft model's logits (vocabulary,) with the same noise; return the token and its probability."""
        with one_thread():
            scores = self._scores(logits, ids)
            token = self._pick(scores, len(ids))
            sharp = scores if self._is_greedy else scores / self._draw.temperature
            return token, float(torch.softmax(sharp, -1)[token])  # takes half the time of logsumexp

    @property
    def _is_greedy(self) -> bool:
        return self._draw.temperature < GREEDY_BELOW

    def _scores(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        scores = penalized(checked_logits(logits), ids, self._draw.repetition_penalty)
        return biased(scores, ids[self._prompt_length :], self._draw)

    def _pick(self, scores: Tensor, place: int) -> int:
        if self._is_greedy:
            return likeliest_id(scores)
        return draw_from_many(*distribution(scores, self._draw), self._draw.seed, place)


def draw_from_many(probabilities: Tensor, candidates: Tensor, seed: int, place: int) -> int:
    """Draw one of candidates (n,) like `draw_from`, but fast for large n.

    All candidates outside the top ones first count as a single one, because noise for each of them would cost more than
    everything else.
    """
    if len(candidates) <= NUCLEI[-1]:
        return draw_from(probabilities, candidates, seed, place)
    top, chosen = largest(probabilities, NUCLEI[0])
    rest = probabilities.index_fill(0, chosen, 0.0)
    reached = rest.cumsum(-1)
    shares, ids = torch.cat((top, reached[-1:])), torch.cat((candidates[chosen], torch.tensor([OTHERS_ID])))
    token = draw_from(shares, ids, seed, place)
    if token >= 0:
        return token
    found = torch.searchsorted(reached, uniform(seed, place) * reached[-1:], right=True)
    return int(candidates[min(int(found), len(reached) - 1)])


def distribution(scores: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return probabilities (n,) in descending order and their ids (n,), after temperature, top-k, min-p and top-p.

    If no option truncates, returns the whole vocabulary in its own order.
    """
    probabilities = torch.softmax(scores / draw.temperature, dim=-1)
    if draw.top_k == 0 and draw.min_p == 0 and draw.top_p >= 1:
        return probabilities, torch.arange(scores.numel())
    best = likeliest_id(probabilities)
    if float(probabilities[best]) > draw.top_p:  # as most tokens are: it is the whole nucleus
        return torch.ones(1), torch.tensor([best])
    top, candidates = _likeliest(probabilities, draw)
    keep = top >= draw.min_p * top[0]
    keep &= top.cumsum(-1) - top < draw.top_p
    keep[0] = True
    kept = int(keep.sum())  # descending order: the kept ones are a prefix
    return top[:kept] / top[:kept].sum(), candidates[:kept]


def _likeliest(probabilities: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return candidates (n,) in descending order with their ids, without sorting the whole vocabulary where possible.

    These are the top-k, renormalised, or at least all that top-p and min-p keep.
    """
    if 0 < draw.top_k < probabilities.numel():
        top, candidates = largest(probabilities, draw.top_k)
        return top / top.sum(), candidates
    for count in (count for count in NUCLEI if count < probabilities.numel()):
        top, candidates = largest(probabilities, count)
        if float(top.sum()) > draw.top_p or float(top[-1]) < draw.min_p * float(top[0]):
            return top, candidates
    return torch.sort(probabilities, descending=True)


def likeliest_id(scores: Tensor) -> int:
    """Return the index of the first largest of scores (n,).

    The maxima of blocks and the search of one block take a quarter of the time of torch's search of all scores.
    """
    whole = scores.numel() - scores.numel() % SEARCHED
    if not whole:
        return int(scores.argmax())
    start = int(scores[:whole].view(-1, SEARCHED).amax(1).argmax()) * SEARCHED
    found = start + int(scores[start : start + SEARCHED].argmax())
    if whole == scores.numel():
        return found
    rest = whole + int(scores[whole:].argmax())
    return rest if scores[rest] > scores[found] else found


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of scores (n,) in descending order, and their indices.

    They all lie in the `count` blocks with the largest maxima, which one pass over the scores finds.
    """
    blocks = scores.numel() // BLOCK
    if blocks < WORTHWHILE * count:
        return torch.topk(scores, count)
    start = blocks * BLOCK  # the rest after the last whole block
    chosen = torch.topk(scores[:start].view(blocks, BLOCK).amax(1), count).indices.sort().values
    places = (chosen[:, None] * BLOCK + torch.arange(BLOCK)).view(-1)
    places = torch.cat((places, torch.arange(start, scores.numel())))
    top, found = torch.topk(scores[places], count)
    return top, places[found]


def penalized(logits: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Apply the repetition penalty of CTRL (Keskar et al. 2019) to logits (V,) of seen ids.

    Divides positive logits by it and multiplies negative ones.
    """
    if penalty == 1.0 or not ids:
        return logits
    known = logits.numel()  # negative ids are pictures; a draft model's vocabulary may be smaller
    seen = torch.tensor(sorted({id for id in ids[-PENALTY_TOKENS:] if 0 <= id < known}), dtype=torch.long)
    chosen = logits[seen]
    result = logits.clone()
    result[seen] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    return result


def biased(scores: Tensor, drawn: Sequence[int], draw: Draw) -> Tensor:
    """Return scores (V,) with presence and frequency penalties for the drawn tokens, and the request's logit biases."""
    penalties = bool(drawn) and (draw.presence_penalty or draw.frequency_penalty)
    if not penalties and not draw.logit_bias:
        return scores
    result = scores.clone()
    if penalties:
        known = [id for id in drawn if id < result.numel()]
        seen, counts = torch.unique(torch.tensor(known, dtype=torch.long), return_counts=True)
        result[seen] -= draw.presence_penalty + draw.frequency_penalty * counts
    for token, bias in draw.logit_bias:
        if token < result.numel():
            result[token] += bias
    return result


def log_probabilities(scores: Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the natural log probability of `token`, and the top `count` ids with theirs, from scores (V,)."""
    logs = torch.log_softmax(scores.float(), dim=-1)
    values, ids = torch.topk(logs, min(count, logs.numel()))
    return float(logs[token]), list(zip(ids.tolist(), values.tolist(), strict=True))


def checked_logits(logits: Tensor) -> Tensor:
    """Return the logits (vocabulary,) in fp32. Raises BrokenOutput if one is NaN or the largest is infinite."""
    scores = logits.float()
    # The maximum is non-finite for +inf and NaN; single -inf entries are legal (masked tokens).
    if not math.isfinite(float(scores.max())):
        raise BrokenOutput(
            "The model computed values that are not numbers.",
            "Its weights are damaged or its format is too coarse for it.",
            "Try another format, or verify the model's files.",
        )
    return scores
