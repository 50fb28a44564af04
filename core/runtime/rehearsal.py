"""The first passes of a model on the CPU, made while it loads."""

from __future__ import annotations

import logging

from core.errors import HeteGenError
from core.model.language_model import LanguageModel
from core.spec import Plan
from core.units import MIB

LEAST_BYTES, MOST_BYTES = 4 * MIB, 1024 * MIB
"""A token that reads fewer bytes is fast anyway (the guide's reads 8 MB, and takes a third less by straight passes);
beside reading more, a fraction of a millisecond makes no difference, and the rehearsal would be felt."""

log = logging.getLogger(__name__)


def rehearse(model: LanguageModel, plan: Plan) -> None:
    """Let a model that the CPU computes find out whether its passes may go straight, if that would be noticed."""
    reading = plan.bytes_per_token.cpu
    if plan.gpu >= 0 or plan.from_disk or not LEAST_BYTES <= reading <= MOST_BYTES:
        return
    try:
        model.rehearse(plan.kv)
    except HeteGenError as error:  # an ordinary pass of a reply will say so, if it persists
        log.info("The rehearsal failed: %s", error)
