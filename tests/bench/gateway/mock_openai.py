"""The mock engine over HTTP: chat completions of a fixed number of tokens, a fixed time apart.

Used behind front ends that speak OpenAI to their workers, and asked directly for the latency
that a front end adds to. It reads a body no further than whether it asks for a stream, and answers at
once what front ends ask of an engine besides (health, models, load).
"""

import argparse
import asyncio
import json
import time

WORDS = " the block is held by a worker and its prefix was found in the index"


class Answers:
    """Prepared bytes of both forms."""

    def __init__(self, model: str, tokens: int):
        words = [" " + word for word in WORDS.split()]
        self.said = [words[number % len(words)] for number in range(tokens)]
        usage = {"prompt_tokens": 30_000, "completion_tokens": tokens, "total_tokens": 30_000 + tokens}
        common = {"id": "chatcmpl-mock", "created": int(time.time()), "model": model}
        message = {"role": "assistant", "content": "".join(self.said)}
        whole = common | {"object": "chat.completion", "usage": usage,
                          "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]}
        self.whole = self.json(whole)

        def chunk(delta: dict, finish: str | None = None) -> bytes:
            return self.event(common | {"object": "chat.completion.chunk",
                                        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        self.head = (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                     + chunk({"role": "assistant", "content": ""}))
        self.deltas = [chunk({"content": word}) for word in self.said]
        last = self.event(common | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.tail = chunk({}, "length") + last + self.framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        card = {"id": model, "object": "model", "created": 0, "owned_by": "mock", "root": model, "max_model_len": 1 << 20}
        self.models = self.json({"object": "list", "data": [card]})
        self.info = self.json({"model_path": model, "served_model_name": model, "tokenizer_path": model, "is_generation": True,
                               "version": "0", "max_total_num_tokens": 1 << 22, "loads": []})

    @staticmethod
    def json(value: dict) -> bytes:
        body = json.dumps(value).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    @staticmethod
    def framed(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data)

    @classmethod
    def event(cls, value: dict) -> bytes:
        return cls.framed(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


class Mock(asyncio.Protocol):
    def __init__(self, answers: Answers, token_s: float):
        self.answers, self.token_s = answers, token_s
        self.parts, self.held, self.needed, self.streams, self.path = [], 0, -1, False, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.parts.append(data)
        self.held += len(data)
        if self.needed < 0:
            first = b"".join(self.parts)
            end = first.find(b"\r\n\r\n")
            if end < 0:
                return
            head = first[:end].lower()
            at = head.find(b"content-length:")
            self.path = head.split(b" ", 2)[1]
            self.needed = end + 4 + (int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0)
            self.parts = [first]
        if self.held >= self.needed:
            whole = b"".join(self.parts)
            self.streams = b'"stream":true' in whole or b'"stream": true' in whole
            self.parts, self.held, self.needed = [], 0, -1
            self.answer()

    def answer(self):
        answers = self.answers
        if b"completions" not in self.path:
            self.transport.write(answers.models if b"models" in self.path else answers.info)
        elif not self.token_s:
            self.transport.writelines([answers.head, *answers.deltas, answers.tail] if self.streams else [answers.whole])
        elif self.streams:
            asyncio.ensure_future(self.stream())
        else:
            wait_s = self.token_s * len(answers.deltas)
            asyncio.get_running_loop().call_later(wait_s, self.transport.write, answers.whole)

    async def stream(self):
        loop, due = asyncio.get_running_loop(), time.monotonic()
        self.transport.write(self.answers.head)
        for delta in self.answers.deltas:
            due += self.token_s
            await asyncio.sleep(max(due - loop.time(), 0))
            self.transport.write(delta)
        self.transport.write(self.answers.tail)


async def serve(args: argparse.Namespace) -> None:
    answers, loop = Answers(args.model, args.tokens), asyncio.get_running_loop()
    for port in args.ports:
        await loop.create_server(lambda: Mock(answers, args.token_ms / 1e3), "127.0.0.1", port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--model", default="sim-model")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--token-ms", type=float, default=0.0, help="time between two tokens")
    asyncio.run(serve(parser.parse_args()))
