"""The program that tries a card, with the tests' device as the card: run by `core.accelerators.trial` in its tests.

FAULTS in the environment, JSON, names steps in which the driver fails, and how: `segfault`, `hang`, `lost`
(the device is lost after the step), `last words` (a message, then an abort).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from dataclasses import replace

from core.accelerators import card_checks, trial
from core.accelerators.card import Card
from core.accelerators.trial import Trial
from tests.core.second_device import SecondDevice, second_device

FAULTS = "HETEGEN_TEST_FAULTS"


def last_words() -> None:
    print("GPU: page not present", file=sys.stderr, flush=True)
    os.abort()


DEADLY = {
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(600),
    "last words": last_words,
}


def faulty(take: card_checks.Taken, fault: str, device: SecondDevice) -> card_checks.Taken:
    """Return a step that fails so, after it has worked."""

    def taken(card: Card, found: Trial) -> Trial:
        result = take(card, found)
        if fault == "lost":
            device.set(lost=1)
        else:
            DEADLY[fault]()
        return result

    return taken


def main() -> None:
    device = second_device()
    device.plug(True)
    print("a driver's own words\n{}\n[1]\n", flush=True)
    for step, fault in json.loads(os.environ.get(FAULTS, "{}")).items():
        if step in card_checks.NEEDED:
            card_checks.NEEDED[step] = faulty(card_checks.NEEDED[step], fault, device)
        else:
            way = card_checks.WAYS[step]
            card_checks.WAYS[step] = replace(way, take=faulty(way.take, fault, device))
    index, packages, without = sys.argv[1:4]
    trial.main(int(index), packages, without)


if __name__ == "__main__":
    main()
