"""Draws the next token. The options are folded into one function before the decode loop starts."""

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
"""(logits (vocabulary,), ids so far) -> the next id. Raises BrokenOutput where the logits are not numbers."""

# Used where neither the user nor the model's generation_config says anything.
FALLBACK = Sampling(
    temperature=0.7,
    top_k=0,
    top_p=0.95,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
# The penalty looks back this far, so that its cost and effect stay bounded in long chats.
PENALTY_TOKENS = 1024
# A nucleus is nearly always found among the first number of likeliest ids, and else among the second.
NUCLEI = (128, 2048)
# Scores that are looked at together in the search for the largest, and how many such blocks there must be for each of
# these, so that it is faster than looking at all scores at once.
BLOCK, WORTHWHILE = 32, 8
# The id that stands for all that are not likely.
OTHERS_ID = -2
# Below this a temperature means greedy (dividing by less overflows).
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
    """Which tokens may come next, asked before every draw and told of every drawn token."""

    def allow(self, scores: Tensor) -> Tensor:
        """`scores` (vocabulary,) with those of forbidden tokens at minus infinity."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was drawn."""


@dataclass(frozen=True)
class Draw:
    """A Sampling with nothing left open; `seed` names the draw, so that a reply can be repeated."""

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
    """Raise BadRequest for a value that is not a number or out of its bounds."""
    for name, (low, high) in BOUNDS.items():
        value = getattr(sampling, name)
        if value is not None and not _within(value, low, high):
            shown = name.replace("_", " ")
            raise BadRequest(
                sentence("The {} {} is out of range.", shown, value),
                "",
                sentence("Choose a value from {} to {}.", f"{low:g}", f"{high:g}"),
            )
    for token, bias in sampling.logit_bias:
        if token < 0 or not _within(bias, -BIAS_LIMIT, BIAS_LIMIT):
            raise BadRequest(
                sentence("The bias {} of the token {} is out of range.", f"{bias:g}", token), "", "Choose -100 to 100."
            )


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def from_generation_config(config: dict[str, Any]) -> Sampling:
    """The model's own defaults from generation_config.json; what it leaves out or sets absurdly stays None."""
    known = {field.name for field in fields(Sampling)} - {"seed", "max_new_tokens", "logit_bias"}
    numbers = {name: config[name] for name in known if isinstance(config.get(name), int | float)}
    values = {name: value for name, value in numbers.items() if _within(value, *BOUNDS[name])}
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    return Sampling(**values)


def resolve(wish: Sampling, model_defaults: Sampling) -> Draw:
    """The user's wish first, then the model's defaults, then FALLBACK. Raises BadRequest."""
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
    """Turns logits into the next id. The same logits at the same place of a text give the same id."""

    def __init__(self, draw: Draw, mask: Mask | None = None, prompt_length: int = 0) -> None:
        self._draw = draw
        self._mask = mask
        self._prompt_length = prompt_length

    def __call__(self, logits: Tensor, ids: Sequence[int]) -> int:
        """The id that follows `ids`, whose scores are logits (vocabulary,)."""
        with one_thread():
            scores = self._scores(logits, ids)
            if self._mask is None:
                return self._pick(scores, len(ids))
            token = self._pick(self._mask.allow(scores), len(ids))
            self._mask.accept(token)
            return token

    def guess(self, logits: Tensor, ids: Sequence[int]) -> tuple[int, float]:
        """What a draft's logits (vocabulary,) make of the same draw, and that token's probability by them."""
        with one_thread():
            scores = self._scores(logits, ids)
            token = self._pick(scores, len(ids))
            sharp = scores if self._is_greedy else scores / self._draw.temperature
            return token, float(torch.exp(sharp[token] - sharp.logsumexp(-1)))

    @property
    def _is_greedy(self) -> bool:
        return self._draw.temperature < GREEDY_BELOW

    def _scores(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        scores = penalized(checked_logits(logits), ids, self._draw.repetition_penalty)
        return biased(scores, ids[self._prompt_length :], self._draw)

    def _pick(self, scores: Tensor, place: int) -> int:
        if self._is_greedy:
            return int(scores.argmax())
        return draw_from_many(*distribution(scores, self._draw), self._draw.seed, place)


def make_sampler(draw: Draw, mask: Mask | None = None, prompt_length: int = 0) -> TokenSampler:
    """What turns logits into the next id; its random numbers are those of `draw`'s seed."""
    return TokenSampler(draw, mask, prompt_length)


def draw_from_many(probabilities: Tensor, candidates: Tensor, seed: int, place: int) -> int:
    """One of candidates (n,), as `draw_from` draws. Where there are many, those that are not among the likeliest are
    one candidate at first: noise for each costs more than all else."""
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
    """Probabilities (n,) in falling order and their ids (n,), after temperature, top-k, min-p and top-p; of the whole
    vocabulary as it stands where nothing is to be cut off."""
    probabilities = torch.softmax(scores / draw.temperature, dim=-1)
    if draw.top_k == 0 and draw.min_p == 0 and draw.top_p >= 1:
        return probabilities, torch.arange(scores.numel())
    top, candidates = _likeliest(probabilities, draw)
    keep = top >= draw.min_p * top[0]
    keep &= top.cumsum(-1) - top < draw.top_p
    keep[0] = True
    kept = int(keep.sum())  # falling order: what is kept is a prefix
    return top[:kept] / top[:kept].sum(), candidates[:kept]


def _likeliest(probabilities: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """The top-k (renormalised), or at least as many as top-p and min-p leave, in falling order, with their ids: sorting
    a whole vocabulary costs more than drawing."""
    if 0 < draw.top_k < probabilities.numel():
        top, candidates = largest(probabilities, draw.top_k)
        return top / top.sum(), candidates
    for count in (count for count in NUCLEI if count < probabilities.numel()):
        top, candidates = largest(probabilities, count)
        if float(top.sum()) > draw.top_p or float(top[-1]) < draw.min_p * float(top[0]):
            return top, candidates
    return torch.sort(probabilities, descending=True)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of scores (n,) in falling order, and where they are. All lie in those `count` blocks whose
    largest ones are largest, and finding these takes one look at each score."""
    blocks = scores.numel() // BLOCK
    if blocks < WORTHWHILE * count:
        return torch.topk(scores, count)
    start = blocks * BLOCK  # the last ones make no block
    chosen = torch.topk(scores[:start].view(blocks, BLOCK).amax(1), count).indices.sort().values
    places = (chosen[:, None] * BLOCK + torch.arange(BLOCK)).view(-1)
    places = torch.cat((places, torch.arange(start, scores.numel())))
    top, found = torch.topk(scores[places], count)
    return top, places[found]


def penalized(logits: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Repetition penalty of CTRL (Keskar et al. 2019): seen ids' logits divided (or, below 0, multiplied) by it."""
    if penalty == 1.0 or not ids:
        return logits
    known = logits.numel()  # below 0 are pictures; a draft's table may be shorter
    seen = torch.tensor(sorted({id for id in ids[-PENALTY_TOKENS:] if 0 <= id < known}), dtype=torch.long)
    chosen = logits[seen]
    result = logits.clone()
    result[seen] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    return result


def biased(scores: Tensor, drawn: Sequence[int], draw: Draw) -> Tensor:
    """Scores (V,) with presence and frequency penalties on the tokens drawn so far, and the request's biases."""
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
    """Natural-log probability of `token`, and the `count` likeliest ids with theirs, by the model's scores (V,)."""
    logs = torch.log_softmax(scores.float(), dim=-1)
    values, ids = torch.topk(logs, min(count, logs.numel()))
    return float(logs[token]), list(zip(ids.tolist(), values.tolist(), strict=True))


def checked_logits(logits: Tensor) -> Tensor:
    """The logits (vocabulary,) in fp32. Raises BrokenOutput where one is NaN or the largest is infinite."""
    scores = logits.float()
    # +inf and NaN both make the maximum non-finite; single -inf entries are legal (masked tokens).
    if not math.isfinite(float(scores.max())):
        raise BrokenOutput(
            "The model computed values that are not numbers.",
            "Its weights are damaged or its format is too coarse for it.",
            "Try another format, or verify the model's files.",
        )
    return scores
