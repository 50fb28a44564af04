"""Decides for each chosen expert of a layer in a pass whether to copy or to compute, by measured rates. Pure.

    T_cpu  = exchange + sum of those that the CPU computes         in host memory
    T_card = max(held + copied ones computed, copies + the last)   concurrently
    choose the division with the least max(T_cpu, T_card)

Copying an expert takes the same time for any number of tokens, but its product on the CPU does not: experts with the
most tokens are copied first. Nothing is copied before the CPU's time for as many tokens was measured, and what copies
really took corrects what they are expected to take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from core.planning.machine_rates import LISTED_LAUNCHES, MachineRates, cpu_rate, gpu_rate
from core.spec import BUCKET_TOKENS, FEW, ExpertRates, Format, KernelRate, ModelSpec, bucket

WORTH = 0.95
"""A division other than the plain one (held experts on the card, others on the CPU) must take less than this fraction
of its time: smaller gains are within the error of the rates."""
PRODUCTS = 2
"""Number of products of an expert: up (with its gate), and down."""
LEARNED, LEAST_PACE, MOST_PACE = 0.1, 0.25, 4.0
"""The weight of a further measurement in the pace, and the bounds of a pace."""
TRIED, FORGOTTEN = 0.5, 0.02
"""The weight of one measurement with copies in their pace, and the part of the pace that is forgotten in each part of a
prompt without copies."""


@dataclass(frozen=True)
class ExpertPrices:
    """Seconds for one expert of a layer, of `nbytes` and `parameters` weights.

    `paces`: ratio of measured to expected CPU seconds, by bucket; None = not measured. `copying`: the same ratio for
    whole divisions with copies.
    """

    rates: ExpertRates
    nbytes: int
    parameters: int
    paces: tuple[float | None, ...] = (None,) * len(BUCKET_TOKENS)
    copying: float = 1.0

    def cpu(self, tokens: int) -> float:
        """Return the seconds on the CPU for so many tokens."""
        pace = self.paces[bucket(tokens)]
        return (1.0 if pace is None else pace) * self._product(self.rates.cpu, tokens)

    def knows(self, tokens: Collection[int]) -> bool:
        """Return whether the CPU's time for these tokens was measured."""
        return bool(tokens) and self.paces[bucket(max(tokens))] is not None

    def card(self, tokens: int) -> float:
        """Return the seconds on the card once the expert is there."""
        return self._product(self.rates.card, tokens) + PRODUCTS * self.rates.call_s

    def held(self, tokens: int) -> float:
        """Return the seconds on the card for a held expert, besides those of `at_once` for all held ones."""
        return self._product(self.rates.card, tokens) if self._listed(tokens) else self.card(tokens)

    def at_once(self, tokens: Iterable[int]) -> float:
        """Return the seconds of the launches shared by all held experts, with `tokens` of each."""
        return self.rates.at_once_s or 0.0 if any(map(self._listed, tokens)) else 0.0

    def _listed(self, tokens: int) -> bool:
        return self.rates.at_once_s is not None and bucket(tokens) <= FEW

    @property
    def copy(self) -> float:
        """Return the seconds to copy the expert to the card."""
        return self.nbytes * self.rates.copy_s + PRODUCTS * self.rates.piece_s

    def _product(self, rate: KernelRate, tokens: int) -> float:
        return rate.seconds(self.nbytes, 2.0 * tokens * self.parameters, bucket(tokens))


@dataclass(frozen=True)
class ExpertDivision:
    """The chosen experts of a layer: computed by the card, held or after a copy, or computed by the CPU.

    `expected`: seconds for all if some are copied, not corrected by what earlier copies took; 0 = not known.
    """

    held: tuple[int, ...]
    copied: tuple[int, ...]
    computed: tuple[int, ...]
    expected: float = field(default=0.0, compare=False)


def expert_rates(spec: ModelSpec, format: Format, machine: MachineRates) -> ExpertRates | None:
    """Return this machine's rates for the experts of a mixture; None without a card or experts."""
    experts = next((linear for linear in spec.linears if linear.experts is not None), None)
    if machine.gpu is None or experts is None:
        return None
    storage, profile, link = spec.storage(experts, format), machine.profile, machine.gpu.link
    return ExpertRates(
        cpu=cpu_rate(machine.hardware, storage, machine.threads).scaled(1 / profile.cpu),
        card=gpu_rate(machine.gpu, storage).scaled(1 / profile.gpu),
        copy_s=machine.link_s("hetegen") / machine.link_under_cpu,
        piece_s=machine.piece_s / machine.link_under_cpu,
        exchange_s=profile.overhead * (link.sync_s + link.back_s),
        call_s=machine.gpu.launch_s,
        at_once_s=PRODUCTS * LISTED_LAUNCHES * machine.gpu.launch_s if machine.lists(storage) else None,
        slower=1 / machine.cpu_under_copy,
        apart=not machine.shares_cores,
    )


def divide_experts(
    tokens: Mapping[int, int], held: Collection[int], prices: ExpertPrices, *, can_copy: bool = True
) -> ExpertDivision:
    """Return the fastest division of the chosen experts, with `tokens` of each, if the card holds `held`."""
    there = sorted((expert for expert in tokens if expert in held), key=lambda expert: -tokens[expert])
    away = sorted((expert for expert in tokens if expert not in held), key=lambda expert: -tokens[expert])
    if not prices.rates.apart:
        return ExpertDivision(tuple(there), (), tuple(away))
    cpu = {count: prices.cpu(count) for count in set(tokens.values())}
    card = {count: prices.card(count) for count in cpu}
    held_s = [prices.held(tokens[expert]) for expert in there]
    ready = sum(held_s) + prices.at_once(tokens[expert] for expert in there)
    if can_copy and prices.knows([tokens[one] for one in away]):
        totals = _totals([cpu[tokens[one]] for one in away], [card[tokens[one]] for one in away], ready, prices)
        if count := _least([totals[0], *(prices.copying * total for total in totals[1:])]):
            return ExpertDivision(tuple(there), tuple(away[:count]), tuple(away[count:]), totals[count])
    alone = sum(cpu[tokens[expert]] for expert in away)
    kept = _kept([cpu[tokens[one]] for one in there], held_s, ready - sum(held_s), alone, prices)
    return ExpertDivision(tuple(there[:kept]), (), (*there[kept:], *away))


def learned(prices: ExpertPrices, tokens: Collection[int], seconds: float) -> ExpertPrices:
    """Return the prices after the CPU took `seconds` for experts with these `tokens`, mostly of one bucket."""
    ratio, number, paces = seconds / sum(map(prices.cpu, tokens)), bucket(max(tokens)), list(prices.paces)
    known = paces[number]
    paces[number] = _bounded(ratio if known is None else known * _step(ratio, LEARNED))
    forgotten = FORGOTTEN * (1 - prices.copying) if number > FEW else 0.0
    return replace(prices, paces=tuple(paces), copying=prices.copying + forgotten)


def learned_by_copying(prices: ExpertPrices, expected: float, seconds: float) -> ExpertPrices:
    """Return the prices after a division with copies took `seconds` instead of the `expected` ones."""
    return replace(prices, copying=_bounded(prices.copying * _step(seconds / (prices.copying * expected), TRIED)))


def _step(ratio: float, weight: float) -> float:
    return 1 + weight * (min(max(ratio, 1 / 2), 2.0) - 1)


def _bounded(pace: float) -> float:
    return min(max(pace, LEAST_PACE), MOST_PACE)


def _totals(cpu: Sequence[float], card: Sequence[float], ready: float, prices: ExpertPrices) -> list[float]:
    """Return the seconds of all if the first 0, 1, ... experts are copied, given each one's seconds.

    The card also computes for `ready` seconds.
    """
    rates, left = prices.rates, sum(cpu)

    def total(count: int, done: float, computed: float) -> float:
        on_cpu = (left - done) * (rates.slower if count else 1.0) + rates.exchange_s if count < len(cpu) else 0.0
        arrived = count * prices.copy + card[count - 1] if count else 0.0
        return max(on_cpu, ready + computed, arrived)

    sums = zip(accumulate(cpu, initial=0.0), accumulate(card, initial=0.0), strict=True)
    return [total(count, *done) for count, done in enumerate(sums)]


def _kept(cpu: Sequence[float], card: Sequence[float], once: float, alone: float, prices: ExpertPrices) -> int:
    """Return how many of the first held experts the card computes, at a shared cost of `once`.

    The CPU also computes for `alone` seconds.
    """

    def total(given: int, longer: float, shorter: float) -> float:
        on_cpu = alone + longer + prices.rates.exchange_s if alone or given else 0.0
        return max(on_cpu, once + sum(card) - shorter if given < len(card) else 0.0)

    sums = zip(accumulate(reversed(cpu), initial=0.0), accumulate(reversed(card), initial=0.0), strict=True)
    return len(cpu) - _least([total(given, *done) for given, done in enumerate(sums)])


def _least(totals: Sequence[float]) -> int:
    """Return the index of the least total, or 0 unless it is clearly less than the first."""
    best = min(range(len(totals)), key=totals.__getitem__)
    return best if totals[best] < WORTH * totals[0] else 0
