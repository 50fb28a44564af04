"""`plan`: what would be done with a model on this machine, and why. Nothing is loaded."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from typing import Any

from core.commands.arguments import add_json, add_machine_options, add_model, load_options, model_name
from core.errors import ModelNotFound
from core.hub.installed import PATH_LIKE
from core.paths import SHAPE_PREFIX
from core.spec import ModelSpec, Plan, Rows
from core.units import format_bytes

ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("plan", help="where a model's weights would lie, and how fast it would be")
    add_model(parser)
    add_machine_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises HeteGenError."""
    from core.startup.environment import prepare_environment

    prepare_environment()
    from core.hardware.machine import open_machine
    from core.paths import cache_folder
    from core.planning.planner import explain, place

    spec = _spec(model_name(args))
    hardware = open_machine(cache_folder(), args.simulate_gpu, args.threads).now()
    plan = place(spec, hardware, load_options(args))
    for line in explain(plan, spec, hardware):
        print(line)
    for device in plan.memory:
        print(f"{device.device:12} {format_bytes(device.used)} of {format_bytes(device.free_before)} free")
    print(f"{'speed':12} about {plan.decode.low:.1f} to {plan.decode.high:.1f} tokens/s ({plan.confidence})")
    return as_json(plan)


def _spec(name: str) -> ModelSpec:
    """The specification of a model that is here, or else of one on the Hub. Raises HeteGenError."""
    from core.model.model_source import open_source
    from core.model.spec_cache import specification
    from core.paths import cache_folder

    try:
        source = open_source(name)
    except ModelNotFound:
        if name.startswith(SHAPE_PREFIX) or PATH_LIKE.match(name) or not ID.fullmatch(name):
            raise
        return _remote_spec(name)
    return specification(source.module, source.name, cache_folder())


def _remote_spec(name: str) -> ModelSpec:
    from core.commands.models import make_client
    from core.hub.listing import parse_reference
    from core.hub.remote_spec import read_remote
    from core.runtime.fit import describe

    with make_client() as client:
        remote = read_remote(client, parse_reference(name))
    return describe(remote.config, remote.tensors, remote.info.id)


def as_json(plan: Plan) -> dict[str, Any]:
    """The contract's JSON object."""
    return {
        "model": plan.model,
        "fits": plan.fits,
        "reason": plan.reason,
        "reasons": list(plan.reasons),
        "format": plan.format,
        "context": plan.context,
        "threads": plan.threads,
        "strategy": plan.strategy,
        "memory": {memory.device: _memory(memory) for memory in plan.memory},
        "linears": [
            {"name": linear.name, "rows": linear.rows, "decode": _rows(linear.decode), "prefill": _rows(linear.prefill)}
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
