"""The mutations of captured passes for `tests.bench.missing_waits`."""

from __future__ import annotations

from tests.bench.mutants import CARD, Mutant

CAPTURE, RUN, RESIDENT = "model/captures.py", "model/captured_run.py", "model/resident_run.py"
GRAPH, STRETCH = "accelerators/graph.py", "layers/kv_stretch.py"
CAPTURES = (
    Mutant(
        "captured work ends with its plan",
        CAPTURE,
        "        if self._whole is not None:\n            self._whole.drop()\n",
        "        return\n",
        "drops_what or end_with_their_plan",
    ),
    Mutant(
        "captured runs are freed at once", CAPTURE, "            run.remove()\n", "            pass\n", "freed_before"
    ),
    Mutant(
        "a captured model is freed at once",
        CAPTURE,
        "            self._whole.drop()\n",
        "            pass\n",
        "freed_before",
    ),
    Mutant(
        "a captured run is used with its own buffers only",
        RUN,
        "all(map(operator.is_, self.buffers, stretch.buffers)) and ",
        "",
        "cache_that_moved",
    ),
    Mutant(
        "a captured run is used for its own stretch only",
        RUN,
        "self.seen == stretch.seen and ",
        "",
        "every_family and llama",
    ),
    Mutant(
        "the places change from token to token",
        RUN,
        "captured.replay(stretch.places, ",
        "captured.replay(0 * stretch.places + 40, ",
        "taken_back",
    ),
    Mutant(
        "inputs change from token to token",
        GRAPH,
        "            self._put(there, value)\n",
        "            self._put(there, value) if value.device.type == 'cpu' else None\n",
        "are_divided and llama",
    ),
    Mutant(
        "the embedding rows change from token to token",
        CAPTURE,
        "torch.tensor([list(ids)])",
        "torch.tensor([[5 for _ in ids]])",
        "one_launch",
    ),
    Mutant(
        "a graph is for its own number of rows",
        RUN,
        "self._captured.get(stretch.rows)",
        "next(iter(self._captured.values()), None)",
        "several_rows and llama and bf16",
    ),
    Mutant(
        "windows end where they should",
        STRETCH,
        "(index > last - window)",
        "(index > last - 2 * window)",
        "several_rows",
    ),
    Mutant(
        "unpacked states are seen once",
        STRETCH,
        "older = _in_sight(index, last, window) & (index < first + ahead)",
        "older = _in_sight(index, last, window)",
        "several_rows and llama",
    ),
    Mutant("replayed tokens are counted", RUN, "            stretch.advance()\n", "", "several_tokens"),
    Mutant("the rest of a stretch is zeroed", RUN, "                stretch.blank()\n", "", "one_launch"),
    Mutant(
        "the cache keeps what the ordinary pass wrote",
        STRETCH,
        "                part.copy_(old)\n",
        "                pass\n",
        "something_else",
    ),
    Mutant(
        "writes of a failed pass are waited for",
        CARD,
        "            self.synchronize()  # its results",
        "            pass  # its results",
        "without_room",
    ),
    Mutant(
        "a captured run is compared with an ordinary one",
        RUN,
        "return _agree(tried.cpu(), expected)",
        "return tried is not expected",
        "something_else",
    ),
    Mutant(
        "keys that are not there yet are masked",
        STRETCH,
        "else index <= last",
        "else index < last + seen",
        "one_launch",
    ),
    Mutant(
        "what comes between deferred layers is noticed",
        RESIDENT,
        "if x is self._waiting and place",
        "if place",
        "comes_between",
    ),
    Mutant(
        "work runs once before it is captured",
        CARD,
        "work(lambda x: x if held is None else held, *there)",
        "pass",
        "captured_is_done",
    ),
    Mutant(
        "the memory of a dropped pass is freed", GRAPH, "            part.graph.reset()", "            pass", "its_own"
    ),
    Mutant(
        "what is computed at a gap reaches the next graph",
        GRAPH,
        "            self._put(self._back, gap(part.result))",
        "            gap(part.result)",
        "mlps_are_divided and llama",
    ),
    Mutant(
        "the graph before a gap is replayed",
        GRAPH,
        "            part.graph.replay()\n            assert",
        "            assert",
        "mlps_are_divided and llama",
    ),
    Mutant(
        "what reaches a gap is compared",
        RUN,
        "        if not _agree(x.cpu(), self.given):",
        "        if False:",
        "reaches_a_gap",
    ),
    Mutant(
        "a gap is computed anew in each pass",
        RUN,
        "computes = [gap.compute for gap in gaps]",
        "computes = [lambda _, y=gap.result: y for gap in gaps]",
        "mlps_are_divided and llama",
    ),
    Mutant(
        "only modules that turn one tensor into one are gaps",
        RESIDENT,
        "plain = len(args) == 1 and not kwargs and ",
        "plain = len(args) < 2 and ",
        "called_otherwise",
    ),
    Mutant("modules of gaps are restored", RESIDENT, "        self._gaps.remove()\n", "", "called_otherwise"),
    Mutant(
        "graphs of a run share memory",
        GRAPH,
        "self._pool or self._parts[0].graph.pool()",
        "self._pool",
        "share_memory",
    ),
    Mutant(
        "graphs take no more memory than was set aside",
        RUN,
        "has_room = self.taken < self.limit",
        "has_room = True",
        "set_aside",
    ),
    Mutant("their memory is counted", RUN, "            self.taken += replay.nbytes\n", "", "set_aside"),
    Mutant(
        "one graph may take the place of another",
        RUN,
        "(self._made_room(stretch.rows) or self._room.has_room(stretch.rows))",
        "self._room.has_room(stretch.rows)",
        "set_aside",
    ),
    Mutant(
        "what is freed is counted",
        RUN,
        "        self.taken = max(0, self.taken - max(0, self._accelerator.memory().untouched - before))\n",
        "",
        "set_aside",
    ),
)
