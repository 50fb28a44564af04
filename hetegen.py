"""HeteGen for programmers: models larger than the graphics card, split between CPU and GPU for this machine.

    import hetegen

    with hetegen.load("Qwen/Qwen3-4B", vram="6GiB") as model:
        for text in model.stream("Why is the sky blue?"):
            print(text, end="", flush=True)

The packages behind this module may change; the names exported here are stable.
"""

from core.api import Answer, Model, Planned, load, plan
from core.errors import HeteGenError
from core.events import Message, Sampling
from core.spec import Plan

__all__ = ["Answer", "HeteGenError", "Message", "Model", "Plan", "Planned", "Sampling", "load", "plan"]
