"""Whether and how fast a local or remote model would run on this machine: the planner's answer as a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.spec import Confidence, DeviceMemory, FormatWish, ModelSpec, Plan, Prediction
from core.weights.gguf.header import TensorPlace
from core.weights.safetensors_header import TensorInfo

ALL = 0.995
"""The fraction that counts as all of the weights: an output head may be stored unquantised."""
Kind = Literal["fits", "cpu_help", "slow", "no"]


@dataclass(frozen=True)
class Wishes:
    """The user's wishes: a weight format, and a context in tokens (None = decide)."""

    format: FormatWish = "auto"
    context: int | None = None


@dataclass(frozen=True)
class Fit:
    """`stored_bytes`: of the weights in the files; `converted_bytes`: in memory in the chosen format; `memory` by
    device.

    `tok_s`: decode speed; `confidence`: measured, derived or guess; `context_limit`: the model's own. `stored_as`: the
    name of the files' quantisation, if any; `kept`: all weights stay in it.
    """

    kind: Kind
    reason: str
    format: str
    context: int
    context_limit: int
    tok_s: Prediction
    confidence: Confidence
    memory: tuple[DeviceMemory, ...]
    stored_bytes: int
    converted_bytes: int
    parameters: int
    stored_as: str = ""
    kept: bool = False


Tensors = Mapping[str, TensorInfo] | Mapping[str, TensorPlace]
FitCheck = Callable[[Mapping[str, Any], Tensors, Wishes], Fit]
"""Called with config.json's content or a GGUF file's settings, tensors by name (empty if not known) and wishes. Raises
HeteGenError."""


def fit(plan: Plan, spec: ModelSpec, stored_bytes: int = 0) -> Fit:
    """Summarise a plan for choosing a model. `stored_bytes`: of the files' tensors, if known."""
    around = spec.resident_bytes + spec.lookup_bytes + (0 if spec.head_tied else spec.embedding_bytes)
    return Fit(
        kind=_kind(plan),
        reason=plan.reason,
        format=plan.format,
        context=plan.context,
        context_limit=spec.context_limit,
        tok_s=plan.decode,
        confidence=plan.confidence,
        memory=plan.memory,
        stored_bytes=stored_bytes if spec.stored_as and stored_bytes else spec.weight_bytes("bf16") + around,
        converted_bytes=spec.weight_bytes(plan.format) + around,
        parameters=spec.parameters,
        stored_as=spec.stored_as,
        kept=bool(spec.stored_as) and spec.kept_share(plan.format) >= ALL,
    )


def _kind(plan: Plan) -> Kind:
    if plan.fits == "no":
        return "no"
    if plan.fits == "slow":
        return "slow"
    helped = plan.gpu >= 0 and any(linear.resident < linear.rows for linear in plan.linears)
    return "cpu_help" if helped else "fits"
