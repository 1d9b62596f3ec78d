"""A real vLLM, on a CPU, behind the gateway: does our index say what it holds?

    vllm_check.py [--requests 10000] [--kit] [--keep FOLDER]

Runs in a Python that has `vllm` (README.md says how to make one); `mainstay` is on the PATH. Starts vLLM with a small
random model and `mainstay serve --upstream`, and looks at
  - a second turn: what our index predicts, what the answer says, what vLLM counts;
  - many requests at once over a cache that is too small for them: afterwards, block by block against vLLM's own events,
    and prompt by prompt against what it then finds;
  - a killed and restarted vLLM: how long until the index is right again.
With `--kit`, `mainstay engine check remote` over it instead.
"""

import argparse
import concurrent.futures
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from events import Held
from gateway import BLOCK, Checks, Gateway, history, kit
from processes import Process, get, metric

HERE = Path(__file__).resolve().parent
SERVER, EVENTS, REPLAY = 18000, 15557, 15558
CACHE_BLOCKS, CONTEXT = 1024, 4096
HISTORIES, TURNS_MAX = 96, 12
AT_ONCE, LOOKED_AT = 12, 200
UPSTREAM = {"upstream": f"http://127.0.0.1:{SERVER}", "kv_events": f"tcp://127.0.0.1:{EVENTS}",
            "kv_replay": f"tcp://127.0.0.1:{REPLAY}"}


class Vllm:
    def __init__(self, model: Path, folder: Path):
        self.model, self.folder = model, folder
        self.start()

    def start(self) -> None:
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{EVENTS}",
                  "replay_endpoint": f"tcp://*:{REPLAY}"}
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
                   "--served-model-name", "peer", "--host", "127.0.0.1", "--port", str(SERVER), "--dtype", "bfloat16",
                   "--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--block-size", str(BLOCK),
                   "--num-gpu-blocks-override", str(CACHE_BLOCKS), "--enable-prefix-caching",
                   "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events)]
        self.process = Process("vllm", command, self.folder, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
                               VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="WARNING")

    def wait(self) -> float:
        return self.process.until(lambda: get(f"http://127.0.0.1:{SERVER}/health") is not None, "healthy")

    def counter(self, name: str) -> float:
        return metric((get(f"http://127.0.0.1:{SERVER}/metrics") or b"").decode(), f"vllm:{name}_total")


def agreed(gateway: Gateway, held: Held, patience: float = 5) -> float | None:
    """Seconds until the index has as many blocks as vLLM, or nothing."""
    began = time.perf_counter()
    while time.perf_counter() - began < patience:
        if gateway.blocks() == held.blocks():
            return time.perf_counter() - began
        time.sleep(0.02)
    return None


def second_turn(gateway: Gateway, vllm: Vllm, checks: Checks) -> None:
    messages = history(-1, 4)
    first = gateway.ask(messages)
    time.sleep(1)
    before = vllm.counter("prefix_cache_hits")
    messages += [{"role": "assistant", "content": first["said"]}, {"role": "user", "content": "and then"}]
    second = gateway.ask(messages)
    # It counts a request's hits when it is over.
    time.sleep(1)
    counted = vllm.counter("prefix_cache_hits") - before
    good = second["predicted"] == second["cached"] == counted > 0
    checks.say(good, f"second turn of {second['prompt']} tokens: predicted {second['predicted']}, answered "
                     f"{second['cached']}, counted by vLLM {counted:.0f}")


def crowd(gateway: Gateway, vllm: Vllm, held: Held, requests: int, checks: Checks) -> None:
    source = random.Random(7)
    asked = [(source.randrange(HISTORIES), source.randrange(1, TURNS_MAX)) for _ in range(requests)]
    began, before = time.perf_counter(), vllm.counter("prefix_cache_hits")
    seen = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for done in pool.map(lambda which: gateway.ask(history(*which)), asked):
            seen.append(done)
            if len(seen) % 500 == 0:
                print(f"     {len(seen)} of {requests} requests, {time.perf_counter() - began:.0f} s", flush=True)
    took = time.perf_counter() - began
    cached, prompt = sum(one["cached"] for one in seen), sum(one["prompt"] for one in seen)
    exact = sum(one["predicted"] == one["cached"] for one in seen)
    print(f"     {requests} requests in {took:.0f} s, {prompt} prompt tokens, {100 * cached / prompt:.1f} % cached; "
          f"at {AT_ONCE} at once {100 * exact / requests:.1f} % were predicted to the block; vLLM stored {held.stored} "
          f"and removed {held.removed} blocks")
    time.sleep(1)
    counted = vllm.counter("prefix_cache_hits") - before
    checks.say(counted == cached, f"cached tokens: {cached} in answers, {counted:.0f} counted by vLLM")
    waited = agreed(gateway, held)
    checks.say(waited is not None and held.gaps == 0,
               f"blocks afterwards: {gateway.blocks()} in the index, {held.blocks()} by vLLM's events "
               f"({held.gaps} gaps)")


def each(gateway: Gateway, checks: Checks) -> None:
    """One after the other, what is predicted is what is found."""
    source = random.Random(11)
    wrong, found = 0, 0
    # The router expects for two seconds what it has just sent, whatever the index says.
    time.sleep(3)
    for _ in range(LOOKED_AT):
        one = gateway.ask(history(source.randrange(HISTORIES), source.randrange(1, TURNS_MAX)))
        found += one["cached"] > 0
        if one["predicted"] != one["cached"]:
            wrong += 1
            print(f"     {one['prompt']} tokens: predicted {one['predicted']}, found {one['cached']}")
        time.sleep(0.1)
    checks.say(wrong == 0 and found > 0,
               f"{LOOKED_AT} prompts one by one: {found} found something, {wrong} found other than predicted")


def restart(gateway: Gateway, vllm: Vllm, held: Held, checks: Checks) -> Held:
    had = gateway.blocks()
    vllm.process.kill()
    held.close()
    killed = time.perf_counter()
    while gateway.blocks() and time.perf_counter() - killed < 60:
        time.sleep(0.02)
    gone = time.perf_counter() - killed
    checks.say(gone <= 5, f"killed with {had} blocks: none in the index after {gone:.2f} s")
    held = Held(f"tcp://127.0.0.1:{EVENTS}")
    vllm.start()
    up = vllm.wait()
    began = time.perf_counter()
    one = None
    while one is None and time.perf_counter() - began < 30:
        try:
            one = gateway.ask(history(3, 6))
        except OSError:
            time.sleep(0.1)
    waited = agreed(gateway, held)
    right = time.perf_counter() - began
    checks.say(one is not None and waited is not None and right <= 5 and held.blocks() > 0,
               f"restarted ({up:.0f} s until healthy): first answer and equal counts ({gateway.blocks()} and "
               f"{held.blocks()} blocks) {right:.2f} s after that")
    time.sleep(0.5)
    again = gateway.ask(history(3, 6))
    checks.say(again["predicted"] == again["cached"] > 0,
               f"the same again: predicted {again['predicted']}, found {again['cached']}")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kit", action="store_true")
    parser.add_argument("--keep", type=Path, help="where model, data and logs go and stay")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="mainstay-vllm-"))
    folder.mkdir(parents=True, exist_ok=True)
    model, checks = folder / "model", Checks()
    if not (model / "config.json").exists():
        subprocess.run([sys.executable, str(HERE / "random_model.py"), str(model)], check=True)
    held = Held(f"tcp://127.0.0.1:{EVENTS}")
    vllm = Vllm(model, folder)
    gateway = None
    try:
        print(f"     vLLM is healthy after {vllm.wait():.0f} s; logs in {folder}", flush=True)
        if args.kit:
            sys.exit(kit({**UPSTREAM, "cache": "engine", "model_dir": str(model)}))
        gateway = Gateway(model, folder, UPSTREAM)
        second_turn(gateway, vllm, checks)
        crowd(gateway, vllm, held, args.requests, checks)
        each(gateway, checks)
        held = restart(gateway, vllm, held, checks)
    finally:
        if gateway:
            gateway.process.stop()
        vllm.process.kill()
    print(f"{checks.failed} failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
