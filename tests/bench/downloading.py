"""Measures the downloader and the verdict against a fake Hub in a process of its own on loopback.

`python -m tests.bench.downloading [--mebibytes 2048] [--files 4]` prints one JSON line. The rate includes hashing every
byte; the ticks are those of an otherwise idle window.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PySide6.QtWidgets import QApplication

from core.hub.cache_layout import Cache
from core.hub.client import Client
from core.hub.download import download
from core.hub.fit import Wishes
from core.hub.listing import Reference
from core.hub.remote_spec import read_remote
from core.runtime.fit import FitChecker
from core.spec import Budget
from tests.bench.ticks import Ticks
from tests.core.hub.fake_hub import Double, Repo, model_files
from tests.core.machines import DESKTOP

ID = "big/model"
LOOKS = 9
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "num_hidden_layers": 3,
    "hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 999,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip


def fetched(endpoint: str, folder: Path) -> dict[str, Any]:
    """Download everything once and return the rate and the tick delays."""
    client, ended = Client(endpoint), threading.Event()

    def work() -> None:
        download(client, Cache(folder), Reference(ID))
        ended.set()

    thread, ticks, began = threading.Thread(target=work), Ticks(), time.perf_counter()
    thread.start()
    while not ended.is_set() and thread.is_alive():
        QApplication.processEvents()
        time.sleep(0.0005)
    took = time.perf_counter() - began
    thread.join()
    client.close()
    assert ended.is_set(), "the download failed"
    weights = sum(path.stat().st_size for path in (folder / "models--big--model" / "blobs").iterdir())
    return {"mb_s": round(weights / took / 1e6), "mb": round(weights / 1e6), "tick": ticks.summary()}


def fit() -> dict[str, Any]:
    """Measure the time and requests from nothing known to a verdict on a model of four shards."""
    files = model_files(shards=4, rows=512) | {"config.json": json.dumps(LLAMA).encode()}
    took = []
    with Double(Repo(ID, files)) as hub:
        for _ in range(LOOKS):
            hub.seen.clear()
            client, began = Client(hub.endpoint), time.perf_counter()
            remote = read_remote(client, Reference(ID))
            FitChecker(lambda: DESKTOP, Budget())(remote.config, remote.tensors, Wishes())
            took.append(time.perf_counter() - began)
            client.close()
        shards = [name for name in files if name.startswith("model-") and name.endswith(".safetensors")]
        most = max(sum(name in seen.path and seen.host == "files" for seen in hub.seen) for name in shards)
    return {"s": round(statistics.median(took), 3), "first_s": round(took[0], 3), "requests_per_shard": most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--files", type=int, default=4)
    args = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    qt = QApplication([])
    command = [sys.executable, "-m", "tests.core.hub.fake_hub", str(args.mebibytes), str(args.files)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        result = fetched(server.stdout.readline().strip(), Path(folder))
        server.kill()
    print(json.dumps({"download": result, "verdict": fit()}))
    del qt


if __name__ == "__main__":
    main()
