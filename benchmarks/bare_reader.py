"""The least Python can do with streamed answers on a Unix socket: epoll, recv, count the tokens."""

from __future__ import annotations

import math
import selectors
import socket
import time
from pathlib import Path

from benchmarks.token_readers import RAMP_SECONDS, SETTLE_SECONDS, STAMPS_EVERY, Sample, Tally

RECEIVE_BYTES = 65_536
TOKEN, STAMP = b'"content":"', b'"content":"@'


class BareReader:
    """The baseline: asks again and again for one answer, `streams` at a time.

    Args:
        path: the server's socket.
        body: JSON that asks for a stream.
    """

    def __init__(self, path: Path, body: bytes, streams: int) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        self._request = head + b"content-length: %d\r\n\r\n" % len(body) + body
        self._path = path
        self._tally = Tally(streams)
        self._selector = selectors.DefaultSelector()
        self._begun: set[socket.socket] = set()
        origin = time.monotonic()
        self._starts = [origin + RAMP_SECONDS * index / streams for index in range(streams)]
        self._settled = origin + RAMP_SECONDS + SETTLE_SECONDS

    def read(self, seconds: float) -> Sample:
        """Measure once every stream has begun; blocks."""
        end_at = math.inf
        while (now := time.monotonic()) < end_at:
            while self._starts and self._starts[0] <= now:
                del self._starts[0]
                self._ask()
            if end_at == math.inf and now > self._settled and self._tally.flowing.is_set():
                end_at = now + seconds
                self._tally.begin()
            for key, _ in self._selector.select(0.01):
                self._receive(key.data)
        sample = self._tally.end()
        for key in list(self._selector.get_map().values()):
            key.data.close()
        self._selector.close()
        return sample

    def _ask(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        connection.sendall(self._request)
        connection.settimeout(0)
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _receive(self, connection: socket.socket) -> None:
        data = connection.recv(RECEIVE_BYTES)
        if not data:
            self._selector.unregister(connection)
            self._begun.discard(connection)
            connection.close()
            self._ask()
        elif count := data.count(TOKEN):
            tally = self._tally
            if connection not in self._begun:
                self._begun.add(connection)
                tally.answer_begins()
            tally.tokens += count
            if not tally.tokens % STAMPS_EVERY and (start := data.rfind(STAMP) + len(STAMP)) > 20:
                stamp = int(data[start : data.find(b" ", start)])
                tally.late.append(time.monotonic() * 1e3 - stamp * 1e-3)
