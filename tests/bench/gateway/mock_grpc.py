"""The mock engine over smg's gRPC: a fixed number of tokens a fixed time apart, and true block events.

It says what vLLM's servicer would: model, server, load, and for each prompt the blocks that it did not hold
before, with their tokens, so that smg routes by its exact index. One worker a port, each
with a cache of its own that forgets the oldest.
"""

import argparse
import asyncio
import itertools
import json
from array import array
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc as rpc
from smg_grpc_proto.generated import common_pb2 as common

SERVICE = "vllm.grpc.engine.VllmEngine"
BLOCK_TOKENS = 16
CONTEXT_TOKENS = 1 << 20
EVENTS_QUEUED_MAX = 10_000
MESSAGE_BYTES_MAX = 64 << 20


def plain_words(model: Path, many: int) -> list[int]:
    """Tokens that are each a word of text, so that every one of them shows in a stream."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    plain = (id_ for token, id_ in vocabulary.items() if len(token) > 3 and token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha())
    words = sorted(plain)
    return [words[number % len(words)] for number in range(many)]


class Worker(rpc.VllmEngineServicer):
    def __init__(self, args: argparse.Namespace):
        self.args, self.words = args, plain_words(args.model_path, args.tokens)
        config = json.loads((args.model_path / "config.json").read_text())
        eos = config.get("eos_token_id") or 0
        self.facts = pb.GetModelInfoResponse(
            model_path=args.model, served_model_name=args.model, tokenizer_path=str(args.model_path), is_generation=True,
            max_context_length=CONTEXT_TOKENS, vocab_size=config["vocab_size"], model_type=config["model_type"],
            architectures=config["architectures"], eos_token_ids=eos if isinstance(eos, list) else [eos])
        self.blocks: dict[int, None] = {}
        self.streams: set[asyncio.Queue] = set()
        self.sequence, self.events, self.running = 0, 0, 0

    def store(self, ids: array) -> int:
        """Tokens that were held already; tells what is new to everyone who listens."""
        raw, width = ids.tobytes(), BLOCK_TOKENS * ids.itemsize
        known, parent, fresh, before = 0, 0, [], None
        for at in range(0, len(raw) - width + 1, width):
            name = hash((parent, raw[at : at + width]))
            if name in self.blocks and not fresh:
                known += BLOCK_TOKENS
            elif name not in self.blocks:
                before = parent if not fresh else before
                self.blocks[name] = None
                first = at // ids.itemsize
                fresh.append(common.KvBlock(block_hash=name, token_ids=ids[first : first + BLOCK_TOKENS], block_size=BLOCK_TOKENS))
            parent = name
        if fresh:
            self.tell(fresh, before)
        return known

    def tell(self, fresh: list, before: int) -> None:
        """What came in, and the oldest that had to go for it: a simple queue, since a mock's hits do not matter."""
        stored = common.KvBlocksStored(blocks=fresh)
        if before:
            stored.parent_block_hash = before
        self.events += 1
        told = [common.KvCacheEvent(event_id=self.events, stored=stored)]
        gone = list(itertools.islice(self.blocks, max(len(self.blocks) - self.args.blocks, 0)))
        for name in gone:
            del self.blocks[name]
        if gone:
            self.events += 1
            told.append(common.KvCacheEvent(event_id=self.events, removed=common.KvBlocksRemoved(block_hashes=gone)))
        self.sequence += 1
        batch = common.KvEventBatch(sequence_number=self.sequence, events=told, load=self.load())
        for queue in self.streams:
            queue.put_nowait(batch)

    def load(self) -> common.EngineLoad:
        return common.EngineLoad(running_requests=self.running, max_running_requests=256)

    async def Generate(self, request, context):
        ids = array("I", request.tokenized.input_ids)
        self.running += 1
        cached, words, wait_s = self.store(ids), self.words, self.args.token_ms / 1e3
        counts = {"prompt_tokens": len(ids), "cached_tokens": cached}
        try:
            if request.stream:
                for word in words:
                    if wait_s:
                        await asyncio.sleep(wait_s)
                    yield pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=[word], completion_tokens=1, **counts))
            elif wait_s:
                await asyncio.sleep(wait_s * len(words))
            yield pb.GenerateResponse(complete=pb.GenerateComplete(
                output_ids=[] if request.stream else words, finish_reason="length", completion_tokens=len(words), **counts))
        finally:
            self.running -= 1

    async def SubscribeKvEvents(self, request, context):
        queue: asyncio.Queue = asyncio.Queue(EVENTS_QUEUED_MAX)
        self.streams.add(queue)
        print("a front end listens to block events", flush=True)
        try:
            while True:
                yield await queue.get()
        finally:
            self.streams.discard(queue)

    async def HealthCheck(self, request, context):
        return pb.HealthCheckResponse(healthy=True, message="ok")

    async def Abort(self, request, context):
        return pb.AbortResponse()

    async def GetModelInfo(self, request, context):
        return self.facts

    async def GetServerInfo(self, request, context):
        return pb.GetServerInfoResponse(server_type="vllm-grpc", data_parallel_size=1, block_size=BLOCK_TOKENS, max_num_seqs=256)

    async def GetLoads(self, request, context):
        load = pb.SchedulerLoad(num_running_reqs=self.running, num_total_reqs=self.running, max_running_requests=256,
                                max_total_num_tokens=1 << 24)
        return pb.GetLoadsResponse(version="0", dp_rank_count=1, loads=[load])


async def serve(args: argparse.Namespace) -> None:
    servers = []
    for port in args.ports:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)])
        rpc.add_VllmEngineServicer_to_server(Worker(args), server)
        status = health.aio.HealthServicer()
        for name in ("", SERVICE):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        servers.append(server)
    print("ready", flush=True)
    await asyncio.gather(*(server.wait_for_termination() for server in servers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--model", default="sim-model")
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=1 << 19, help="of each worker's cache")
    parser.add_argument("--token-ms", type=float, default=0.0, help="time between two tokens")
    asyncio.run(serve(parser.parse_args()))
