"""Importing and building models without torch's compiler, which is still available to those who need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "assets" / "builtin-model"

SURVEY = """
import sys
from core.engine import Engine
list(Engine().load(sys.argv[1]))
"""

CHAT = """
import sys
from core.engine import Engine
from core.events import Message, Request
engine = Engine()
loaded = list(engine.load(sys.argv[1]))
said = list(engine.chat(Request([Message("user", "Hello!")])))
assert type(said[-1]).__name__ == "Finished", said[-1]
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
assert not {"sympy", "torch.distributed.tensor"} & sys.modules.keys()
"""

REAL = """
import sys
from core.startup.torch_stubs import bare_torch
import torch
with bare_torch():
    stand_in = sys.modules["torch._dynamo"]
    function = torch.compiler.disable(len)
    assert not hasattr(stand_in, "__file__") and sys.modules["torch._dynamo"] is stand_in
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as context
    assert sys.modules["torch._dynamo"] is stand_in
    with context():
        assert torch.arange(3)[torch.tensor(1)] == 1
    assert sys.modules["torch._dynamo"] is not stand_in
assert function is len
import torch._dynamo
assert torch._dynamo is not stand_in and torch._dynamo.__file__
assert torch.distributed.is_available() and torch.compile(lambda x: x + 1, backend="eager")(1) == 2
"""


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code, str(GUIDE)], check=True, timeout=200)


def test_a_chat_with_a_known_model_needs_no_compiler() -> None:
    run(SURVEY)
    run(CHAT)


def test_the_real_compiler_comes_for_who_asks_for_it() -> None:
    run(REAL)
