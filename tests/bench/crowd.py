"""Simulates many clients of the local server, in a process of its own: `python -m tests.bench.crowd PORT SECONDS`.

CLIENTS clients ask again and again, and one more per second disconnects in mid-reply. Prints how many answers equal the
first one.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Tell me about the sea."}]
CLIENTS = 64
BODY = json.dumps({"messages": QUESTION, "max_tokens": 8, "temperature": 0}).encode()


def post(port: int, body: bytes, path: str = CHAT, timeout: float = 300) -> tuple[int, bytes]:
    """Send a request and return the answer's status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    connection.request("POST", path, body)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def crowd(port: int, seconds: float) -> Counter[str]:
    """Ask from all clients for `seconds` and count the outcomes."""
    expected = _content(post(port, BODY)[1])
    end, answers = time.monotonic() + seconds, Counter[str]()

    def client() -> None:
        while time.monotonic() < end:
            status, text = post(port, BODY)
            answers["right" if status == 200 and _content(text) == expected else f"wrong {status}"] += 1

    running = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in running:
        thread.start()
    while time.monotonic() < end:
        leave(port)
        answers["left"] += 1
        time.sleep(1)
    for thread in running:
        thread.join()
    return answers


def leave(port: int) -> None:
    """Request a long stream and disconnect at once."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", CHAT, json.dumps({"messages": QUESTION, "stream": True, "max_tokens": 500}))
    assert connection.sock is not None
    connection.sock.close()
    connection.close()


def _content(text: bytes) -> str:
    return str(json.loads(text)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    print(json.dumps(crowd(int(sys.argv[1]), float(sys.argv[2]))), flush=True)
