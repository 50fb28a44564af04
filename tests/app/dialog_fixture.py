"""The model dialog with a fake Hub, a real cache, and fixed verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.catalog.catalog import Catalog
from app.catalog.downloads import Downloads
from app.catalog.recommended import Recommended
from app.settings.theme import Mode, Theme
from app.views.models.model_dialog import ModelDialog
from core.errors import UnsupportedModel
from core.hub.access import Access
from core.hub.cache_layout import Cache
from core.hub.environment import hub_environment
from core.hub.fit import Fit, Kind, Tensors, Wishes
from core.hub.folders import Folders
from core.spec import DeviceMemory, Prediction
from core.weights.gguf.header import TensorPlace
from tests.app.waiting import delete
from tests.core.hub.fake_hub import Double, Repo, model_files
from tests.core.keyring_in_memory import Ring

GB = 10**9
MEMORY = (
    DeviceMemory("cuda:0", 5 * GB, GB // 2, GB // 4, 0, 7 * GB, GB // 2),
    DeviceMemory("cpu", 9 * GB, 0, GB // 2, GB // 8, 22 * GB, 2 * GB),
)
REASONS: Mapping[Kind, str] = {
    "fits": "The whole model lies in the graphics card's memory.",
    "cpu_help": "42% of the weights lie in the graphics card's memory; the processor computes the rest.",
    "slow": "28.1 GB are needed and 20.0 GB are free. Other programs are using memory now: with them closed, "
    "about 9 tokens per second.",
    "no": "61.1 GB are needed and 22.0 GB are free. It is too big for this computer.",
}
SPEEDS: Mapping[Kind, tuple[float, float, float]] = {
    "fits": (41, 46, 52),
    "cpu_help": (18, 21, 24),
    "slow": (0.8, 1.1, 1.4),
    "no": (0, 0, 0),
}


def kind_of(parameters: int) -> Kind:
    limits: tuple[tuple[float, Kind], ...] = ((3e9, "fits"), (9e9, "cpu_help"), (20e9, "slow"))
    return next((kind for limit, kind in limits if parameters < limit), "no")


def check_fit(config: Mapping[str, Any], tensors: Tensors, wishes: Wishes) -> Fit:
    """Judge by size, as a mid-range computer would."""
    places = [place for place in tensors.values() if isinstance(place, TensorPlace)]
    if places:
        each = sum(place.nbytes for place in places) / sum(place.elements for place in places)
        config = {"parameters": 3e9 * each**1.5}
    if config.get("model_type") == "strange":
        raise UnsupportedModel("The architecture 'strange' is not known.", "", "Choose another model.")
    layers, hidden = int(config.get("num_hidden_layers", 4)), int(config.get("hidden_size", 256))
    parameters = int(config.get("parameters", 12 * layers * hidden * hidden * (4 if "num_experts" in config else 1)))
    kind = kind_of(parameters)
    format = wishes.format if wishes.format != "auto" else "bf16" if kind == "fits" else "int8"
    stored = 2 * parameters
    return Fit(
        kind, REASONS[kind], format, wishes.context or 8192, 131072, Prediction(*SPEEDS[kind]), "measured", MEMORY,
        stored, stored if format == "bf16" else stored // 2, parameters,
    )  # fmt: skip


class DialogStage:
    """Everything that the dialog needs; `close` ends its threads."""

    def __init__(
        self,
        hub: Double | None,
        folder: Path,
        recommended: tuple[Recommended, ...] = (),
        mode: Mode = "light",
        check_fit: Callable[..., Fit] | None = check_fit,
    ) -> None:
        variables = {"HF_HOME": str(folder), "HF_ENDPOINT": hub.endpoint if hub else "http://127.0.0.1:9"}
        environment = hub_environment(variables)
        if hub is None:
            environment = replace(environment, offline=True)
        self.theme = Theme(mode)
        self.cache = Cache(folder / "hub")
        self.access = Access(environment, Ring())
        self.catalog = Catalog(self.access, self.cache, Folders(folder / "folders.json"), check_fit)
        self.downloads = Downloads(self.access, self.cache)
        self.dialog = ModelDialog(self.theme, self.catalog, self.downloads, recommended)

    def close(self) -> None:
        self.downloads.close()
        self.catalog.close()
        self.dialog.close()
        delete(self.dialog)


def hub_repos() -> tuple[Repo, ...]:
    """Return some repositories to search."""
    card = (
        b"---\nlicense: apache-2.0\n---\n<div align=center><img src='https://example.org/logo.png'></div>\n\n"
        b"# Heron 7B\n\n![badge](https://example.org/b.svg) Heron is a **language model** that answers briefly.\n\n"
        b"## Use\n\n```python\nprint('<b>kept</b>')\n```\n\n| Task | Score |\n|:--|--:|\n| Reading | 71 |\n\n"
        b"- one\n- two\n\n<script>alert(1)</script>See [the paper](https://example.org/paper).\n"
    )
    sizes = (
        ("heron/heron-7b-instruct", 7.6e9),
        ("heron/heron-1b", 1.2e9),
        ("heron/heron-14b", 14.7e9),
        ("heron/heron-70b", 7e10),
    )
    repos = []
    for id, count in sizes:
        files = model_files(rows=512, seed=len(id))
        config = f'{{"model_type": "llama", "parameters": {int(count)}}}'.encode()
        files |= {"README.md": card, "config.json": config}
        repos.append(Repo(id, files, parameters={"BF16": int(count)}, downloads=int(count // 1000)))
    strange = model_files(rows=16) | {"config.json": b'{"model_type": "strange"}'}
    gated = model_files(rows=64) | {"config.json": b'{"model_type": "llama", "parameters": 8030261248}'}
    return (
        *repos,
        Repo("heron/strange", strange),
        Repo("heron/gated-8b", gated, gated=True, allowed=("hf_good",), parameters={"BF16": 8030261248}),
    )
