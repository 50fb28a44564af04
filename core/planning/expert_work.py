"""Who computes the experts that one pass chose in a layer: copy or compute, decided for each by measured rates. Pure.

    T_cpu  = exchange + sum of those that the CPU computes         where they lie
    T_card = max(held + copied ones computed, copies + the last)   beside it
    the division with the least max(T_cpu, T_card)

An expert's copy takes the same time however many tokens need it, its product on the CPU does not: those with most
tokens are copied first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from core.planning.machine_rates import LISTED_LAUNCHES, MachineRates, cpu_rate, gpu_rate
from core.spec import BUCKET_TOKENS, FEW, ExpertRates, Format, KernelRate, ModelSpec, bucket

WORTH = 0.95
"""Another division than the plain one (held experts on the card, all others on the CPU) is to take less than this part
of its time: a smaller gain is what rates are wrong by."""
PRODUCTS = 2
"""Of one expert: up (with its gate), and down."""
LEARNED, LEAST_PACE, MOST_PACE = 0.1, 0.25, 4.0
"""How far one measurement moves what is expected of the next, and between which bounds."""


@dataclass(frozen=True)
class ExpertPrices:
    """Seconds for one expert of a layer of `nbytes` and `parameters` weights. `paces`: measured by expected seconds of
    the CPU, by bucket."""

    rates: ExpertRates
    nbytes: int
    parameters: int
    paces: tuple[float, ...] = (1.0,) * len(BUCKET_TOKENS)

    def cpu(self, tokens: int) -> float:
        """Seconds on the CPU, for so many tokens."""
        return self.paces[bucket(tokens)] * self._product(self.rates.cpu, tokens)

    def card(self, tokens: int) -> float:
        """Seconds on the card, once it is there."""
        return self._product(self.rates.card, tokens) + PRODUCTS * self.rates.call_s

    def held(self, tokens: int) -> float:
        """Seconds on the card where it lies, besides what `at_once` says of all of them."""
        return self._product(self.rates.card, tokens) if self._listed(tokens) else self.card(tokens)

    def at_once(self, tokens: Iterable[int]) -> float:
        """Seconds that the calls for all held experts take together, `tokens` of each."""
        return self.rates.at_once_s or 0.0 if any(map(self._listed, tokens)) else 0.0

    def _listed(self, tokens: int) -> bool:
        return self.rates.at_once_s is not None and bucket(tokens) <= FEW

    @property
    def copy(self) -> float:
        """Seconds to bring it to the card."""
        return self.nbytes * self.rates.copy_s + PRODUCTS * self.rates.piece_s

    def _product(self, rate: KernelRate, tokens: int) -> float:
        return rate.seconds(self.nbytes, 2.0 * tokens * self.parameters, bucket(tokens))


@dataclass(frozen=True)
class ExpertDivision:
    """The chosen experts of a layer: computed by the card where they lie or after a copy, or by the CPU."""

    held: tuple[int, ...]
    copied: tuple[int, ...]
    computed: tuple[int, ...]


def expert_rates(spec: ModelSpec, format: Format, machine: MachineRates) -> ExpertRates | None:
    """The rates of this machine for the experts of a mixture; None without a card or experts."""
    experts = next((linear for linear in spec.linears if linear.experts > 1), None)
    if machine.gpu is None or experts is None:
        return None
    storage, profile, link = spec.storage(experts, format), machine.profile, machine.gpu.link
    return ExpertRates(
        cpu=_slowed(cpu_rate(machine.hardware, storage, machine.threads), profile.cpu),
        card=_slowed(gpu_rate(machine.gpu, storage), profile.gpu),
        copy_s=machine.link_s("hetegen") / machine.link_under_cpu,
        piece_s=machine.piece_s,
        exchange_s=profile.overhead * (link.sync_s + link.back_s),
        call_s=machine.gpu.launch_s,
        at_once_s=PRODUCTS * LISTED_LAUNCHES * machine.gpu.launch_s if machine.lists(storage) else None,
        slower=1 / machine.cpu_under_copy,
        apart=not machine.shares_cores,
    )


def divide_experts(
    tokens: Mapping[int, int], held: Collection[int], prices: ExpertPrices, *, can_copy: bool = True
) -> ExpertDivision:
    """The quickest division of chosen experts, `tokens` of each, where the card holds `held`."""
    there = sorted((expert for expert in tokens if expert in held), key=lambda expert: -tokens[expert])
    away = sorted((expert for expert in tokens if expert not in held), key=lambda expert: -tokens[expert])
    if not prices.rates.apart:
        return ExpertDivision(tuple(there), (), tuple(away))
    cpu = {count: prices.cpu(count) for count in set(tokens.values())}
    card = {count: prices.card(count) for count in cpu}
    held_s = [prices.held(tokens[expert]) for expert in there]
    ready = sum(held_s) + prices.at_once(tokens[expert] for expert in there)
    if can_copy and (
        count := _copies([cpu[tokens[one]] for one in away], [card[tokens[one]] for one in away], ready, prices)
    ):
        return ExpertDivision(tuple(there), tuple(away[:count]), tuple(away[count:]))
    alone = sum(cpu[tokens[expert]] for expert in away)
    kept = _kept([cpu[tokens[one]] for one in there], held_s, ready - sum(held_s), alone, prices)
    return ExpertDivision(tuple(there[:kept]), (), (*there[kept:], *away))


def learned(prices: ExpertPrices, tokens: Collection[int], seconds: float) -> ExpertPrices:
    """The prices after the CPU took so long for experts of so many `tokens` each, which are of one bucket mostly."""
    expected = sum(map(prices.cpu, tokens))
    number, paces = bucket(max(tokens)), list(prices.paces)
    step = LEARNED * (min(max(seconds / expected, 1 / 2), 2.0) - 1)
    paces[number] = min(max(paces[number] * (1 + step), LEAST_PACE), MOST_PACE)
    return replace(prices, paces=tuple(paces))


def _copies(cpu: Sequence[float], card: Sequence[float], ready: float, prices: ExpertPrices) -> int:
    """How many of the first experts are to be copied, given each one's seconds; the card computes for `ready` seconds
    besides."""
    rates, left = prices.rates, sum(cpu)

    def total(count: int, done: float, computed: float) -> float:
        on_cpu = (left - done) * (rates.slower if count else 1.0) + rates.exchange_s if count < len(cpu) else 0.0
        arrived = count * prices.copy + card[count - 1] if count else 0.0
        return max(on_cpu, ready + computed, arrived)

    sums = zip(accumulate(cpu, initial=0.0), accumulate(card, initial=0.0), strict=True)
    return _least([total(count, *done) for count, done in enumerate(sums)])


def _kept(cpu: Sequence[float], card: Sequence[float], once: float, alone: float, prices: ExpertPrices) -> int:
    """How many of the first held experts the card is to compute, `once` for all of them; the CPU has `alone` seconds of
    work besides."""

    def total(given: int, longer: float, shorter: float) -> float:
        on_cpu = alone + longer + prices.rates.exchange_s if alone or given else 0.0
        return max(on_cpu, once + sum(card) - shorter if given < len(card) else 0.0)

    sums = zip(accumulate(reversed(cpu), initial=0.0), accumulate(reversed(card), initial=0.0), strict=True)
    return len(cpu) - _least([total(given, *done) for given, done in enumerate(sums)])


def _least(totals: Sequence[float]) -> int:
    """Which is the least, the first unless another is worth it."""
    best = min(range(len(totals)), key=totals.__getitem__)
    return best if totals[best] < WORTH * totals[0] else 0


def _slowed(rate: KernelRate, factor: float) -> KernelRate:
    one, few, some, many = (flops / factor for flops in rate.flops)
    return KernelRate(rate.storage, rate.bytes_s / factor, (one, few, some, many))
