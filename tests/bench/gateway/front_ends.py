"""The front ends under test: how each is started with its mock engine, and what it uses of the machine.

A front end runs alone on one core; engines and everything else share another. Each start is
a fresh process group in a folder of its own, with its output in files there.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from conversations import MODEL, OUTPUT_TOKENS, ROOT

READY_TIMEOUT_S = 90.0
FRONT_CORE, OTHER_CORE = 0, 1
HERE = Path(__file__).resolve().parent
WORKERS = 2
# More than 16 tokens of it, so that every answer ends by its limit.
ANSWER = ("The block is held by a worker and its prefix was found in the index of blocks, so the request goes there; "
          "all of this is more than it may say.")
# Of each engine's cache: every session of a phase with all its turns fits.
CACHE_TOKENS, BLOCK_TOKENS = 1 << 23, 16
TICKS = os.sysconf("SC_CLK_TCK")


def free_ports(many: int) -> list[int]:
    probes = [socket.socket() for _ in range(many)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def tree(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


class FrontEnd:
    """One front end with its engines; a context manager."""

    name, what = "", ""

    def __init__(self, places: dict[str, Path], model: Path, token_ms: float, cache_tokens: int = CACHE_TOKENS):
        self.places, self.model, self.token_ms, self.blocks = places, model, token_ms, cache_tokens // BLOCK_TOKENS
        self.folder = Path(tempfile.mkdtemp(prefix="gateway-cost-"))
        self.processes: list[subprocess.Popen] = []
        self.front: subprocess.Popen | None = None
        self.port = free_ports(1)[0]

    def start(self) -> None:
        raise NotImplementedError

    def __enter__(self):
        try:
            self.start()
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        shutil.rmtree(self.folder)

    def spawn(self, name: str, command: list, core: int = OTHER_CORE, **env: str) -> subprocess.Popen:
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(["taskset", "-c", str(core), *map(str, command)], stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, cwd=self.folder, env=os.environ | env, start_new_session=True)
        self.processes.append(process)
        return process

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.folder.glob("*.log"))

    def wait(self) -> None:
        """Until a completion has come back twice: then workers are known and lazily made things are there."""
        body = b'{"model":"%s","max_tokens":%d,"messages":[{"role":"user","content":"hello"}]}' % (MODEL.encode(), OUTPUT_TOKENS)
        until, good = time.monotonic() + READY_TIMEOUT_S, 0
        while good < 2:
            if self.front.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} is not ready:\n{self.logs()}")
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", body,
                                                 {"content-type": "application/json"})
                with urllib.request.urlopen(request, timeout=10) as reply:
                    good += reply.status == 200
            except OSError:
                time.sleep(0.2)
        time.sleep(1.0)

    def cpu_ms(self) -> float:
        """User and system time of the front end and what it started, to the nanosecond where the kernel tells."""
        total = 0.0
        for pid in tree(self.front.pid):
            try:
                total += sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e6
            except OSError:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) * 1e3 / TICKS
        return total

    def rss_mib(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in tree(self.front.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Direct(FrontEnd):
    """No front end: the mock itself is asked."""

    name, what = "mock", "the HTTP mock asked directly"

    def start(self) -> None:
        self.front = self.spawn("mock", self.mock([self.port]))

    def mock(self, ports: list[int]) -> list:
        return [sys.executable, HERE / "mock_openai.py", "--model", MODEL, "--tokens", OUTPUT_TOKENS,
                "--token-ms", self.token_ms, "--ports", *ports]


class Mainstay(FrontEnd):
    name, what = "mainstay", "gateway process; member and sim engines apart"

    def start(self) -> None:
        binary, (control, *self.worker_ports) = self.places["mainstay"], free_ports(1 + WORKERS)
        self.spawn("member", [binary, "control", f"--listen=127.0.0.1:{control}", f"--data-dir={self.folder}/m"])
        script = self.folder / "script.toml"
        script.write_text(f'default = "{ANSWER}"\n')
        config = self.folder / "engine.toml"
        config.write_text(f"[engine]\nblocks = {self.blocks}\nblock_tokens = {BLOCK_TOKENS}\n"
                          f"decode_us_per_token = {round(self.token_ms * 1e3)}\n")
        for number, port in enumerate(self.worker_ports):
            self.spawn(f"worker{number}", [
                binary, "worker", self.model, f"--control=127.0.0.1:{control}", f"--name=w{number}", f"--listen=127.0.0.1:{port}",
                "--engine=sim", f"--model-name={MODEL}", f"--script={script}", f"--config={config}"])
        self.front = self.spawn("front", [binary, "gateway", f"--control=127.0.0.1:{control}",
                                          f"--listen=127.0.0.1:{self.port}"], FRONT_CORE)


class Worker(Mainstay):
    """No front end: the workers themselves are asked; what is counted as its CPU means nothing."""

    name, what = "worker", "Mainstay's sim engine asked directly by gRPC"


class Dynamo(FrontEnd):
    name, what = "dynamo", "python -m dynamo.frontend --router-mode kv; dynamo.mocker behind its TCP plane"
    more: list[str] = []

    def start(self) -> None:
        python, env = self.places["dynamo"] / "bin/python", {"DYN_FILE_KV": f"{self.folder}/kv", "HF_HUB_OFFLINE": "1"}
        plane = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
        # As good as without delays: what it simulates has no fixed time a token.
        self.spawn("workers", [python, "-m", "dynamo.mocker", "--model-path", self.model, "--model-name", MODEL,
                               "--num-workers", WORKERS, "--block-size", BLOCK_TOKENS, "--max-model-len", 1 << 20,
                               "--num-gpu-blocks-override", self.blocks, "--max-num-batched-tokens", 1 << 20,
                               "--speedup-ratio", 1e9, *plane], **env)
        self.front = self.spawn("front", [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", self.port,
                                          "--router-mode", "kv", *plane, *self.more], FRONT_CORE, **env)


class DynamoFast(Dynamo):
    name, what = "dynamo-fast", "the same with --tokenizer fastokens"
    more = ["--tokenizer", "fastokens"]


class Smg(FrontEnd):
    """In HTTP mode it does not tokenise: it matches characters and passes the body on."""

    name, what = "smg-http", "smg launch --policy cache_aware, HTTP workers: text matched, nothing tokenised"
    scheme, more = "http", ["--disable-tokenizer-autoload"]

    def workers(self, ports: list[int]) -> None:
        self.spawn("mock", Direct.mock(self, ports))

    def start(self) -> None:
        ports = free_ports(WORKERS + 1)
        self.workers(ports[:WORKERS])
        self.front = self.spawn("front", [
            self.places["smg"] / "bin/smg", "launch", "--host", "127.0.0.1", "--port", self.port, "--policy", "cache_aware",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", ports[WORKERS], "--worker-startup-check-interval", "1",
            "--log-level", "error", "--worker-urls", *[f"{self.scheme}://127.0.0.1:{port}" for port in ports[:WORKERS]],
            *self.more], FRONT_CORE)


class SmgGrpc(Smg):
    """In gRPC mode it renders, tokenises and follows the engines' block events."""

    name, what = "smg-grpc", "the same with gRPC workers: template, tokens, exact block events"
    scheme, cache = "grpc", []

    def start(self) -> None:
        self.more = ["--model-path", self.model, "--backend", "vllm", "--block-size", BLOCK_TOKENS, *self.cache]
        super().start()

    def workers(self, ports: list[int]) -> None:
        self.spawn("mock", [self.places["smg"] / "bin/python", HERE / "mock_grpc.py", "--model", MODEL, "--model-path", self.model,
                            "--tokens", OUTPUT_TOKENS, "--token-ms", self.token_ms, "--blocks", self.blocks, "--ports", *ports])


class SmgGrpcCached(SmgGrpc):
    name, what = "smg-grpc-l1", "the same with --tokenizer-cache-enable-l1, its cache of tokenised prefixes"
    # As much as would hold all sessions of a phase; 50 MB is its default.
    cache = ["--tokenizer-cache-enable-l1", "--tokenizer-cache-l1-max-memory", 1 << 30]


ALL = {kind.name: kind for kind in (Direct, Worker, Mainstay, Smg, SmgGrpc, SmgGrpcCached, Dynamo, DynamoFast)}
