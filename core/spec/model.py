"""A model as the planner sees it: its linears, its KV cache, what must stay resident. Sizes are in bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from core.spec.formats import QUANTUM, Format, KvFormat
from core.spec.plan import LinearPlan
from core.spec.storages import REORDERED, FloatStorage, Storage, bits_of, cut_columns, row_bytes, turned


@dataclass(frozen=True)
class LinearSpec:
    """One linear of the model, or all experts of one fused linear.

    `group` is shared by linears that read the same input; `layer` is the decoder layer, -1 outside of them. `experts`:
    the number of matrices of `rows` x `columns`, of which each token uses `active`; None = a linear. `stored`:
    its storage in the model's files if they are quantised; `converted`: they are, but in a format that is not kept.
    `after`: the group whose outputs are its only input, each column reading one row of all of them (down after gate and
    up); -1 = none. `attends`: the group of queries, keys and values whose attention is its only input; its `heads` KV
    heads are independent of each other. `key_heads`, `key_rows`: if it expands latents to keys and values, the heads,
    and the rows of each that make keys.
    """

    name: str
    rows: int
    columns: int
    group: int
    layer: int = -1
    experts: int | None = None
    active: int = 1
    has_bias: bool = False
    stored: Storage | None = None
    converted: bool = False
    after: int = -1
    attends: int = -1
    heads: int = 0
    key_heads: int = 0
    key_rows: int = 0

    @property
    def part(self) -> str:
        """The path of the layer's own child that it is, or lies in, such as 'model.layers.3.mlp'."""
        before, number, within = self.name.partition(f".{self.layer}.")
        return before + number + within.partition(".")[0]

    @property
    def matrices(self) -> int:
        """Number of matrices: one of a linear, and one of each expert."""
        return 1 if self.experts is None else self.experts

    @property
    def parameters(self) -> int:
        """Number of weights, of all experts."""
        return self.matrices * self.rows * self.columns

    def nbytes(self, storage: Storage) -> int:
        """Return the bytes of the whole weight."""
        return self.matrices * self.rows * row_bytes(storage, self.columns)

    def touched(self, tokens: int) -> float:
        """Return the fraction of the weight that `tokens` input rows read: 1, or the expected fraction of experts."""
        if self.matrices == self.active:
            return 1.0
        return float(1 - (1 - self.active / self.matrices) ** tokens)


SNAPSHOTS = 4
"""Number of saved copies of recurrent states, which allow a reply to be regenerated."""


@dataclass(frozen=True)
class KvLayer:
    """The KV cache of one layer: it grows with each token up to `window` (0 = the context), plus constant
    `state_bytes`. `packed_per_token`: bytes per token in 8 bits, 0 = it cannot be packed; `recent_bytes`: of the newest
    tokens, which are also kept unpacked."""

    layer: int
    bytes_per_token: int
    window: int = 0
    state_bytes: int = 0
    packed_per_token: int = 0
    recent_bytes: int = 0

    def nbytes(self, context: int) -> int:
        """Return the bytes for `context` tokens."""
        tokens = min(context, self.window) if self.window else context
        return self.state_bytes + self.recent_bytes + self.bytes_per_token * tokens

    def packed(self) -> KvLayer:
        """Return the same layer in 8 bits, if it can be packed."""
        if not self.packed_per_token or self.recent_bytes:
            return self
        return replace(self, bytes_per_token=self.packed_per_token, recent_bytes=RECENT_ROOM * self.bytes_per_token)


RECENT, RECENT_ROOM = 64, 96
"""In an 8-bit KV cache, this many newest tokens are read unpacked; and the room reserved for them."""
HEAD_COPY: Storage = "int4"
"""The storage of the coarse copy of the output head."""
READ_AGAIN = 2048
"""At least this many logits per token are recomputed with the full head. Taking the rest from the copy, the KL
divergence of SmolLM2 from 16 bits grew by 6 % with 8-bit weights and by 2 % with 4-bit ones; with 1024 logits by 17 and
7 %. The top logit came from the full head at all 4,213 positions (tests/bench/head_copy.py)."""
LEAST_HEAD = 64 << 20
"""Bytes from which a head is worth a copy: most processors cannot cache that much from one token to the next."""

VALUES = ".v_proj"
"""transformers' name of a separate value projection."""


@dataclass(frozen=True)
class ModelSpec:
    """What the planner knows of a model.

    `linears` in the order of the forward pass, including the output head. `resident_bytes`: norms, biases and other
    small parameters, always on the compute device. `embedding_bytes`: input tables as stored; if `head_tied`, they are
    the head's weights. `lookup_bytes`: other tables with a row per token, which stay in RAM. `head`: the output head's
    name among `linears` ('' if there is none). `stored_as`: the name of the files' quantisation, if any. `sight_bytes`:
    the vision part, which is loaded into RAM with the first picture. `widens_states`: attention on a card copies keys
    and values as floats (soft caps, sinks).
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
    widens_states: bool = False

    @cached_property
    def layer_groups(self) -> dict[int, tuple[int, ...]]:
        """The makes of the layers, by number: how many linears share each input, in the order of the pass."""
        layers: dict[int, Counter[int]] = {}
        for linear in self.linears:
            if linear.layer >= 0:
                layers.setdefault(linear.layer, Counter())[linear.group] += 1
        return {layer: tuple(groups.values()) for layer, groups in layers.items()}

    def storage(self, linear: LinearSpec, format: Format) -> Storage:
        """Return the storage of a linear in memory: as stored, or with fewer bits; never with more than it was stored.

        In the 4-bit format, the linears that are most sensitive to quantisation have 6 bits.
        """
        stored = linear.stored or self.stored_dtype
        wanted: Storage = "int6" if format == "int4" and self._is_sensitive(linear) else format
        return stored if wanted == "bf16" or bits_of(stored) <= bits_of(wanted) else wanted

    def _is_sensitive(self, linear: LinearSpec) -> bool:
        """Return whether it is the output head, a value projection, or a down projection in the first and last layers
        and every fourth between."""
        if linear.name == self.head or linear.name.endswith(VALUES):
            return True
        narrows = linear.experts is None and linear.rows == self.hidden and linear.columns >= 2 * self.hidden
        edge = self.layers // 8
        inner = edge <= linear.layer < self.layers - edge
        return narrows and (not inner or (linear.layer - edge) % 4 == 3)

    def format_name(self, format: str) -> str:
        """Return the display name of a format of this model's weights: "as stored" by the files' own name."""
        return self.stored_as if format == "bf16" and self.stored_as else format

    def can_follow(self, linear: LinearSpec, format: Format) -> bool:
        """Return whether a linear after a group can be cut by columns as the group is by rows."""
        storage = self.storage(linear, format)
        return linear.after >= 0 and storage not in REORDERED and linear.columns >= 2 * cut_columns(storage)

    def kv_heads(self, format: Format) -> int:
        """Return the number of KV heads of every layer if attention can be divided by them in all; otherwise 0."""
        found = [one for one in self.linears if one.heads and self._can_divide_heads(one, format)]
        counts = {linear.heads for linear in found}
        plain = not any(layer.state_bytes or layer.recent_bytes for layer in self.kv_layers)
        layers = [linear.layer for linear in found], [layer.layer for layer in self.kv_layers]
        every = all(numbers == list(range(self.layers)) for numbers in layers)
        return counts.pop() if len(counts) == 1 and every and plain else 0

    def _can_divide_heads(self, linear: LinearSpec, format: Format) -> bool:
        storage = self.storage(linear, format)
        border = max(QUANTUM, cut_columns(storage))
        return storage not in REORDERED and linear.columns // linear.heads % border == 0

    def linear_bytes(self, linear: LinearSpec, format: Format) -> int:
        """Return the bytes of one linear, all experts together, in this format."""
        return linear.nbytes(self.storage(linear, format))

    def part_bytes(self, linear: LinearSpec, plan: LinearPlan, count: int, format: Format) -> int:
        """Return the bytes of `count` of its rows, or columns if the plan counts these."""
        storage = self.storage(linear, format)
        if plan.by_columns:
            return linear.rows * row_bytes(storage, count) if count else 0
        return linear.matrices * count * row_bytes(storage, linear.columns)

    def row_bytes(self, linear: LinearSpec, format: Format) -> int:
        """Return the bytes of one row."""
        return row_bytes(self.storage(linear, format), linear.columns)

    def head_copy(self, format: Format) -> int:
        """Return the bytes of the output head's coarse copy; 0 if it is not worthwhile: for weights as stored, which
        are to stay exact, and for small heads."""
        head = next((linear for linear in self.linears if linear.name == self.head), None)
        if head is None or format == "bf16" or head.stored == self.storage(head, format):
            return 0
        size = self.linear_bytes(head, format)
        saves = bits_of(self.storage(head, format)) > bits_of(HEAD_COPY)
        return head.nbytes(HEAD_COPY) if saves and size >= LEAST_HEAD else 0

    def read_again(self, format: Format) -> int:
        """Return the bytes of the full output head that one token reads in addition to the copy."""
        head = next(linear for linear in self.linears if linear.name == self.head)
        return min(READ_AGAIN, head.rows) * self.row_bytes(head, format)

    def keys_copy(self, format: Format) -> int:
        """Return the bytes of transposed copies of weights that make keys from latents: queries are multiplied with
        them instead."""
        return sum(_keys_copy(linear, self.storage(linear, format)) for linear in self.linears if linear.key_heads)

    def mapped(self, format: Format) -> bool:
        """Return whether weights in this format are used directly from the model's files."""
        return format == "bf16" and not self.stored_as and all(linear.stored is None for linear in self.linears)

    def kept_share(self, format: Format) -> float:
        """Return the fraction (0-1) of the linears' quantised weights that keep their stored format."""
        stored = [linear for linear in self.linears if linear.stored or linear.converted]
        kept = [linear.parameters for linear in stored if linear.stored == self.storage(linear, format)]
        return sum(kept) / max(1, sum(linear.parameters for linear in stored))

    def with_kv(self, format: KvFormat) -> ModelSpec:
        """Return the same model with its KV cache in this format."""
        if format == "bf16":
            return self
        return replace(self, kv_layers=tuple(one.packed() for one in self.kv_layers))

    def kv_bytes(self, context: int) -> int:
        """Return the bytes of the whole KV cache for `context` tokens."""
        return sum(layer.nbytes(context) for layer in self.kv_layers)

    def weight_bytes(self, format: Format) -> int:
        """Return the bytes of all linears in this format."""
        return sum(self.linear_bytes(linear, format) for linear in self.linears)

    def active_bytes(self, format: Format) -> int:
        """Return the bytes of all linears that one token reads; of experts, only those that it uses."""
        return sum(linear.active * linear.rows * self.row_bytes(linear, format) for linear in self.linears)


def _keys_copy(linear: LinearSpec, storage: Storage) -> int:
    """Return the bytes of the transposed copy of a linear's key rows; fp32 is read where it lies."""
    if storage == "fp32" or storage in REORDERED:
        return 0
    return linear.key_heads * linear.columns * row_bytes(turned(storage), linear.key_rows)
