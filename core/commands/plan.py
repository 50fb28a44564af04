"""`plan`: what would be done with a model on this machine, and why. Loads nothing."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from core.api import plan_with
from core.commands.arguments import add_json, add_machine_options, add_model, load_options, model_name
from core.commands.models import make_client
from core.spec import ModelSpec, Plan, Rows
from core.units import format_bytes


def add(subparsers: Any) -> None:
    """Add the command `plan` and its options."""
    parser = subparsers.add_parser("plan", help="where a model's weights would lie, and how fast it would be")
    add_model(parser)
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Plan the model, print the plan and return it as JSON. Raises HeteGenError."""
    planned = plan_with(model_name(args), load_options(args), make_client)
    plan = planned.plan
    for line in planned.explain():
        print(line)
    for device in plan.memory:
        print(f"{device.device:12} {format_bytes(device.used)} of {format_bytes(device.free_before)} free")
    print(f"{'speed':12} about {plan.decode.low:.1f} to {plan.decode.high:.1f} tokens/s ({plan.confidence})")
    return as_json(plan, planned.spec)


def as_json(plan: Plan, spec: ModelSpec) -> dict[str, Any]:
    """Return the command's JSON object."""
    return {
        "model": plan.model,
        "fits": plan.fits,
        "reason": plan.reason,
        "reasons": list(plan.reasons),
        "format": plan.format,
        "kv": plan.kv,
        "stored_as": spec.stored_as,
        "context": plan.context,
        "threads": plan.threads,
        "strategy": plan.strategy,
        "memory": {memory.device: _memory(memory) for memory in plan.memory},
        "active_bytes": plan.active_bytes,
        "load_peak_bytes": plan.load_peak,
        "head_copy_bytes": plan.head_copy,
        "linears": [
            {
                "name": linear.name,
                "rows": linear.rows,
                "decode": _rows(linear.decode),
                "prefill": _rows(linear.prefill),
                **({"divided": "columns"} if linear.by_columns else {}),
                **({"kv_heads": linear.heads} if linear.heads else {}),
            }
            for linear in plan.linears
        ],
        "host_layers": list(plan.host_layers),
        "predicted": {
            "decode_tok_s": asdict(plan.decode),
            "prefill_tok_s": asdict(plan.prefill),
            "confidence": plan.confidence,
        },
    }


def _rows(rows: Rows) -> dict[str, int]:
    return {"resident": rows.resident, "streamed": rows.streamed, "cpu": rows.cpu}


def _memory(memory: Any) -> dict[str, int]:
    fields = asdict(memory)
    fields.pop("device")
    return fields
