"""Predicted time of a pass under given shares: the law of DESIGN section 2, for three shares and priced exchanges.

Linears that read the same input form a group. In one pass, with the link prefetching across linears:

    group   = max(CPU rows + exchange, resident and streamed rows on the GPU)        (added up if they share cores)
    pass    = max(all groups + attention + overhead, streamed bytes / link)          (added up if serial)

Computation and link slow each other down while both run, and the link can run ahead only by the size of its ring.

Each engine's time is linear in its share, so a class is a handful of coefficients, made once for each placement, and
pricing a pass takes microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from core.planning.cost_model import GroupClass, Residents
from core.planning.fixed_cost import FixedCosts
from core.planning.machine_rates import MachineRates
from core.spec import Ring, Strategy, Times


@dataclass(frozen=True)
class PassCost:
    """One phase of a placement, to be priced under any shares."""

    classes: tuple[GroupClass, ...]
    residents: Residents
    bucket: int
    machine: MachineRates
    fixed_costs: FixedCosts
    strategy: Strategy
    ring: Ring

    def times(self, streamed: Sequence[float]) -> Times:
        """Return the times if the share `streamed[class]` of the non-resident rows is streamed and the CPU has the
        rest."""
        work, link = self._groups(streamed), self._link(streamed)
        attention, between = self.fixed_costs.attention[self.bucket], self.fixed_costs.overhead[self.bucket]
        rest, overhead = attention + between, between + work.exchanged
        if self.strategy == "serial":
            alone = work.alone + rest
            return Times(work.cpu, link, work.gpu, attention, overhead, 0.0, alone + link, alone)
        dead = self._settled.dead
        critical, link_until, slower = overlapped(
            work.alone + rest - dead, work.slowed + rest - dead, link, self._link_share(work)
        )
        total = dead + max(critical, link_until)
        return Times(work.cpu * slower, link_until, work.gpu, attention, overhead, 0.0, total, dead + critical)

    def _link(self, streamed: Sequence[float]) -> float:
        """Return the seconds of the link if nothing else runs."""
        nbytes, pieces, buffer = 0.0, 0.0, max(1, self.ring.bytes)
        for one in self._shared:
            if away := one.away * streamed[one.number]:
                sent = away * one.nbytes
                nbytes += one.groups * sent
                pieces += one.groups * max(one.matrices, sent / buffer)
        return nbytes * self.machine.link_s(self.strategy) + pieces * self.machine.piece_s

    def _link_share(self, work: GroupTimes) -> float:
        """Return the fraction of its rate that the link keeps while the CPU computes."""
        meets = work.cpu > 0 or self.machine.shares_cores
        return self.machine.link_under_cpu if meets else 1.0

    def _groups(self, streamed: Sequence[float]) -> GroupTimes:
        """Return the times of all groups, one after the other."""
        adds, slower, waiting = self.machine.shares_cores, 1 / self.machine.cpu_under_copy, self.machine.queue_s
        together_s = self.machine.together_s
        cpu, gpu, exchanged, alone, slowed, _ = self._settled
        for one in self._shared:
            on_cpu = one.hosted * (1 - streamed[one.number])
            gpu_s = (1 - on_cpu) * one.gpu + one.gpu_call if on_cpu < 1 else 0.0
            cpu_s = cross = queued = 0.0
            if on_cpu > 0:
                cpu_s, cross, queued = on_cpu * one.cpu + one.cpu_call, one.into + on_cpu * one.back, waiting
            cpu += one.groups * cpu_s
            gpu += one.groups * gpu_s
            exchanged += one.groups * cross
            alone += one.groups * (together_s(cpu_s, gpu_s) + cross)
            slowed_s = (cpu_s + gpu_s) * slower if adds else together_s(cpu_s * slower, gpu_s)
            slowed += one.groups * (slowed_s + cross + queued)
        return GroupTimes(cpu, gpu, exchanged, alone, slowed, self._settled.dead)

    @cached_property
    def _shared(self) -> tuple[_Shared, ...]:
        """The groups of each class that are neither wholly on the card nor in layers of the CPU."""
        bucket, held = self.bucket, self.residents
        groups = zip(self.classes, held.whole, held.hosted(bucket), held.part, strict=True)
        return tuple(
            _Shared(
                number, item.count - whole - host, item.nbytes, item.matrices, 1 - part,
                1 - (self.machine.profile.covered(part) if item.chosen else part),
                item.gpu[bucket], item.gpu_call[bucket], item.cpu[bucket], item.cpu_call[bucket],
                item.exchange[bucket], item.exchange_out[bucket],
            )
            for number, (item, whole, host, part) in enumerate(groups)
            if item.count > whole + host
        )  # fmt: skip

    @cached_property
    def _settled(self) -> GroupTimes:
        """The times of all other groups, whatever is streamed."""
        bucket, held, machine = self.bucket, self.residents, self.machine
        slower = 1 / machine.cpu_under_copy
        lead = self.ring.total * machine.link_s(self.strategy)
        cpu = gpu = slowed = dead = 0.0
        groups = zip(self.classes, held.whole, held.hosted(bucket), held.as_graphs(bucket), strict=True)
        for item, whole, host, graphs in groups:
            whole_s = whole * item.gpu[bucket] + (whole - machine.replay_saves * graphs) * item.gpu_call[bucket]
            hosted_s = host * item.cpu[bucket]
            cpu += hosted_s
            gpu += whole_s
            slowed += whole_s * (slower if machine.shares_cores else 1.0) + hosted_s * slower
            # The whole groups of a class come first: meanwhile the link fills the ring and then waits.
            dead += max(0.0, whole_s - lead)
        return GroupTimes(cpu, gpu, 0.0, cpu + gpu, slowed, dead if lead else 0.0)


class _Shared(NamedTuple):
    """Those `groups` of the class `number` that both sides may compute: how many, and the figures of one of them.

    `away`: the share of the rows that is not resident; `hosted`: the share of the products that is not the card's
    already, of experts by how often they are used. Times are seconds in the phase's bucket.
    """

    number: int
    groups: int
    nbytes: int
    matrices: int
    away: float
    hosted: float
    gpu: float
    gpu_call: float
    cpu: float
    cpu_call: float
    into: float
    back: float


class GroupTimes(NamedTuple):
    """Seconds of groups.

    `cpu`, `gpu`, `exchanged`: per engine. `alone`, `slowed`: of the sequence, by itself and while the link runs.
    `dead`: of stretches that exceed the link's lead.
    """

    cpu: float
    gpu: float
    exchanged: float
    alone: float
    slowed: float
    dead: float


def overlapped(alone: float, slowed: float, link: float, link_share: float) -> tuple[float, float, float]:
    """Return when work and link are done if both start together, and the factor by which the work was slowed down.

    While both run, the work takes `slowed` instead of `alone` seconds, and the link keeps `link_share` of its rate. The
    one that is left over continues at its own rate.
    """
    together = min(slowed, link / link_share)
    done = together / slowed if slowed else 1.0
    work_until = together + (1 - done) * alone
    link_until = together + link - together * link_share
    return work_until, link_until, work_until / alone if alone else 1.0


def with_disk(times: Times, seconds: float) -> Times:
    """Return the times if weights must also be read from disk again."""
    return replace(times, disk=seconds, total=times.total + seconds)
