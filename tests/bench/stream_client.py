"""Reads streams of the local server in another process: `python -m tests.bench.stream_client PORT COUNT < BODY`.

Prints each stream's tokens per second, from the first piece to the last, one per line.
"""

from __future__ import annotations

import http.client
import json
import sys
import time


def streamed(port: int, body: bytes) -> float:
    """Return the tokens per second of one stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", body)
    response, times, tokens = connection.getresponse(), [], 0
    for line in response:
        if b'"content":"' in line and b'"role"' not in line:
            times.append(time.perf_counter())
        if b'"completion_tokens"' in line:
            tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    connection.close()
    return (tokens - 1) / (times[-1] - times[0])


def main() -> None:
    port, count = map(int, sys.argv[1:])
    body = sys.stdin.buffer.read()
    for _ in range(count):
        print(streamed(port, body), flush=True)


if __name__ == "__main__":
    main()
