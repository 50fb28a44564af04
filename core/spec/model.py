"""A model as the planner sees it: its linears, its KV cache, what must stay resident. Sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.spec.formats import Format, KvFormat
from core.spec.plan import LinearPlan
from core.spec.storages import REORDERED, FloatStorage, Storage, bits_of, cut_columns, row_bytes


@dataclass(frozen=True)
class LinearSpec:
    """One linear of the model, or all experts of one fused linear.

    `group` is shared by linears that read the same input; `layer` is the decoder layer, -1 outside of them. With
    `experts` > 1 there are that many matrices of `rows` x `columns`, and each token uses `active` of them. `stored`:
    how the model's files have it, where they are quantised already; `converted`: in a way that nothing here keeps.
    `after`: the group whose results are all that it reads, each of its columns what one row of all of them gives
    (down after gate and up); -1 = none.
    """

    name: str
    rows: int
    columns: int
    group: int
    layer: int = -1
    experts: int = 1
    active: int = 1
    has_bias: bool = False
    stored: Storage | None = None
    converted: bool = False
    after: int = -1

    @property
    def parameters(self) -> int:
        """Numbers in the weight, of all experts."""
        return self.experts * self.rows * self.columns

    def nbytes(self, storage: Storage) -> int:
        """Bytes of the whole weight."""
        return self.experts * self.rows * row_bytes(storage, self.columns)

    def touched(self, tokens: int) -> float:
        """Share of the weight that `tokens` rows of input read: 1, or the experts that they are likely to use."""
        if self.experts == self.active:
            return 1.0
        return float(1 - (1 - self.active / self.experts) ** tokens)


SNAPSHOTS = 4
"""How often recurrent states are kept beside those in use, so that a reply can be made anew."""


@dataclass(frozen=True)
class KvLayer:
    """The KV cache of one layer: grows with each token up to `window` (0 = the context); plus `state_bytes` always.
    `packed_per_token`: bytes for each token in 8 bits, 0 = it cannot be kept so; `recent_bytes`: of the newest tokens
    beside those."""

    layer: int
    bytes_per_token: int
    window: int = 0
    state_bytes: int = 0
    packed_per_token: int = 0
    recent_bytes: int = 0

    def nbytes(self, context: int) -> int:
        """Bytes for `context` tokens."""
        tokens = min(context, self.window) if self.window else context
        return self.state_bytes + self.recent_bytes + self.bytes_per_token * tokens

    def packed(self) -> KvLayer:
        """The same in 8 bits, if it can be kept so."""
        if not self.packed_per_token or self.recent_bytes:
            return self
        return replace(self, bytes_per_token=self.packed_per_token, recent_bytes=RECENT_ROOM * self.bytes_per_token)


RECENT, RECENT_ROOM = 64, 96
"""Where keys and values are kept in 8 bits, those of so many tokens are read as they were; room for so many."""
HEAD_COPY: Storage = "int4"
"""How the copy of the output head is kept that is read before it."""
READ_AGAIN = 2048
"""So many logits of each token, at least, are computed again from the head itself. With the copy's for the others
SmolLM2's divergence (KL) from 16 bits grew by 6 % of itself with 8-bit weights and 2 % with 4-bit ones; with 1024, by
17 and 7 %. The likeliest was the head's own at all 4,213 positions (tests/bench/head_copy.py)."""
LEAST_HEAD = 64 << 20
"""Bytes of a head that is worth a copy: most processors keep less in their caches from one token to the next."""

VALUES = ".v_proj"
"""What transformers calls the linear that makes the values of attention, where it stands by itself."""


@dataclass(frozen=True)
class ModelSpec:
    """What the planner knows of a model.

    `linears` in the order of the forward pass, the output head among them. `resident_bytes`: norms, biases and other
    small parameters, always on the compute device. `embedding_bytes`: input tables as stored; if `head_tied`, they are
    the head's own weights. `lookup_bytes`: other tables with a row for each token, which lie in RAM. `head` is the name
    of the output head among `linears` ('' if there is none). `stored_as`: how the files have the weights, for people,
    where they are quantised already. `sight_bytes`: of what sees, which is opened in RAM at the first picture.
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    vocab: int
    context_limit: int
    linears: tuple[LinearSpec, ...]
    kv_layers: tuple[KvLayer, ...]
    resident_bytes: int
    embedding_bytes: int
    head: str
    head_tied: bool
    stored_dtype: FloatStorage = "bf16"
    stored_as: str = ""
    parameters: int = 0
    sight_bytes: int = 0
    lookup_bytes: int = 0

    def storage(self, linear: LinearSpec, format: Format) -> Storage:
        """How this linear lies in memory: as stored, or in a format of fewer bits; never in more than it was stored.

        In the format of 4 bits those linears have 6 where 4 lose most.
        """
        stored = linear.stored or self.stored_dtype
        wanted: Storage = "int6" if format == "int4" and self._is_sensitive(linear) else format
        return stored if wanted == "bf16" or bits_of(stored) <= bits_of(wanted) else wanted

    def _is_sensitive(self, linear: LinearSpec) -> bool:
        """The output head, the values of attention, and what narrows the gated part again, in the first and last layers
        and some between."""
        if linear.name == self.head or linear.name.endswith(VALUES):
            return True
        narrows = linear.experts == 1 and linear.rows == self.hidden and linear.columns >= 2 * self.hidden
        edge = self.layers // 8
        inner = edge <= linear.layer < self.layers - edge
        return narrows and (not inner or (linear.layer - edge) % 4 == 3)

    def format_name(self, format: str) -> str:
        """What people call a format of this model's weights: "as stored" by the files' own name."""
        return self.stored_as if format == "bf16" and self.stored_as else format

    def can_follow(self, linear: LinearSpec, format: Format) -> bool:
        """Whether a linear that comes after others can be cut by columns as they are by rows."""
        storage = self.storage(linear, format)
        return linear.after >= 0 and storage not in REORDERED and linear.columns >= 2 * cut_columns(storage)

    def linear_bytes(self, linear: LinearSpec, format: Format) -> int:
        """Bytes of one linear, all experts together, in this format."""
        return linear.nbytes(self.storage(linear, format))

    def part_bytes(self, linear: LinearSpec, plan: LinearPlan, count: int, format: Format) -> int:
        """Bytes of so many of its rows, or columns, as a plan counts them."""
        storage = self.storage(linear, format)
        if plan.by_columns:
            return linear.rows * row_bytes(storage, count) if count else 0
        return linear.experts * count * row_bytes(storage, linear.columns)

    def row_bytes(self, linear: LinearSpec, format: Format) -> int:
        """Bytes of one row of it."""
        return row_bytes(self.storage(linear, format), linear.columns)

    def head_copy(self, format: Format) -> int:
        """Bytes of the copy of the output head in HEAD_COPY that may be read before it; 0 where none is worth having:
        of weights as stored, which are exact, and of small heads."""
        head = next((linear for linear in self.linears if linear.name == self.head), None)
        if head is None or format == "bf16" or head.stored == self.storage(head, format):
            return 0
        size = self.linear_bytes(head, format)
        saves = bits_of(self.storage(head, format)) > bits_of(HEAD_COPY)
        return head.nbytes(HEAD_COPY) if saves and size >= LEAST_HEAD else 0

    def read_again(self, format: Format) -> int:
        """Bytes of the output head itself that one token reads where there is a copy."""
        head = next(linear for linear in self.linears if linear.name == self.head)
        return min(READ_AGAIN, head.rows) * self.row_bytes(head, format)

    def mapped(self, format: Format) -> bool:
        """Whether weights in this format are used where they lie in the model's files."""
        return format == "bf16" and not self.stored_as and all(linear.stored is None for linear in self.linears)

    def kept_share(self, format: Format) -> float:
        """Part of the linears' quantised weights that stays in this format as the files have it, 0-1."""
        stored = [linear for linear in self.linears if linear.stored or linear.converted]
        kept = [linear.parameters for linear in stored if linear.stored == self.storage(linear, format)]
        return sum(kept) / max(1, sum(linear.parameters for linear in stored))

    def with_kv(self, format: KvFormat) -> ModelSpec:
        """The same model with its keys and values kept in this format."""
        if format == "bf16":
            return self
        return replace(self, kv_layers=tuple(one.packed() for one in self.kv_layers))

    def kv_bytes(self, context: int) -> int:
        """Bytes of the whole KV cache for `context` tokens."""
        return sum(layer.nbytes(context) for layer in self.kv_layers)

    def weight_bytes(self, format: Format) -> int:
        """Bytes of all linears in this format."""
        return sum(self.linear_bytes(linear, format) for linear in self.linears)

    def active_bytes(self, format: Format) -> int:
        """Bytes of all linears that one token uses: all, or of experts those that it is sent to."""
        return sum(linear.active * linear.rows * self.row_bytes(linear, format) for linear in self.linears)
