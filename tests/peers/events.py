"""What vLLM says that it holds, by its own events: the truth that our index is held against."""

import threading

import msgspec
import zmq

RECEIVE_MS = 200


class Held:
    """Hashes that are held, from the first event on; copies are counted, as vLLM tells each."""

    def __init__(self, endpoint: str):
        self.endpoint, self.lock = endpoint, threading.Lock()
        self.copies: dict = {}
        self.next, self.gaps, self.stored, self.removed = 0, 0, 0, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        socket = zmq.Context.instance().socket(zmq.SUB)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.setsockopt(zmq.RCVTIMEO, RECEIVE_MS)
        socket.connect(self.endpoint)
        while not self.over.is_set():
            try:
                _, number, payload = socket.recv_multipart()
            except zmq.Again:
                continue
            with self.lock:
                self._take(int.from_bytes(number, "big"), msgspec.msgpack.decode(payload))
        socket.close(0)

    def _take(self, number: int, batch: list) -> None:
        self.gaps += number != self.next
        self.next = number + 1
        for event in batch[1]:
            # Newer servers tell members by name, older ones by place.
            kind = event["type"] if isinstance(event, dict) else event[0]
            hashes = event.get("block_hashes") if isinstance(event, dict) else (event[1:] or [None])[0]
            if kind == "BlockStored":
                self.stored += len(hashes)
                for name in hashes:
                    self.copies[name] = self.copies.get(name, 0) + 1
            elif kind == "BlockRemoved":
                self.removed += len(hashes)
                for name in hashes:
                    left = self.copies.get(name, 0) - 1
                    if left > 0:
                        self.copies[name] = left
                    else:
                        self.copies.pop(name, None)
            elif kind == "AllBlocksCleared":
                self.copies.clear()
            else:
                raise SystemExit(f"an event that is not known: {kind}")

    def blocks(self) -> int:
        with self.lock:
            return len(self.copies)

    def close(self) -> None:
        self.over.set()
        self.thread.join()
