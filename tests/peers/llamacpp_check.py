"""A real llama.cpp server behind the gateway, and the same weights in our own engine beside it.

    llamacpp_check.py LLAMA_SERVER [--kit] [--keep FOLDER]

Runs in a Python that has `torch`, `transformers`, `gguf`; `mainstay` is on the PATH. Looks at
  - a second turn: what llama.cpp says that it found in its slot;
  - greedy answers: token for token those of our engine with the same weights, where rounding allows.
With `--kit`, `mainstay engine check remote` over it instead.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from gateway import PORT, Checks, Gateway, history, kit
from processes import Process, get

HERE = Path(__file__).resolve().parent
TO_GGUF = HERE.parents[1] / "plugins/native/fixtures/to_gguf.py"
SERVER, SLOTS, CONTEXT = 18001, 4, 4096
PROMPTS, TOKENS = 40, 16


def made(folder: Path) -> tuple[Path, Path]:
    """The model's folder and its GGUF file."""
    model, gguf = folder / "model", folder / "model.gguf"
    if not gguf.exists():
        subprocess.run([sys.executable, str(HERE / "random_model.py"), str(model)], check=True)
        subprocess.run([sys.executable, str(TO_GGUF), str(model), str(gguf)], check=True)
    return model, gguf


def compare(gateway: Gateway, model: Path, folder: Path, checks: Checks) -> None:
    ours = Gateway(model, folder, None, PORT + 1)
    try:
        source, equal, cached = random.Random(5), 0, 0
        for number in range(PROMPTS):
            messages = history(number % 10, source.randrange(1, 8))
            there, here = gateway.ask(messages, TOKENS), ours.ask(messages, TOKENS)
            equal += there["said"] == here["said"]
            cached += there["cached"] > 0
        # Random weights leave near ties, which two ways of rounding break differently: told, and not judged.
        print(f"     greedy answers of {TOKENS} tokens: {equal} of {PROMPTS} equal to our engine's")
        checks.say(cached > 0, f"llama.cpp found something for {cached} of {PROMPTS} prompts")
    finally:
        ours.process.stop()


def second_turn(gateway: Gateway, checks: Checks) -> None:
    messages = history(-1, 4)
    first = gateway.ask(messages)
    messages += [{"role": "assistant", "content": first["said"]}, {"role": "user", "content": "and then"}]
    second = gateway.ask(messages)
    checks.say(first["prompt"] // 2 < second["cached"] < second["prompt"],
               f"second turn of {second['prompt']} tokens: {second['cached']} cached, {second['predicted']} predicted "
               "(it tells no events)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path)
    parser.add_argument("--kit", action="store_true")
    parser.add_argument("--keep", type=Path, help="where model, data and logs go and stay")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="mainstay-llamacpp-"))
    folder.mkdir(parents=True, exist_ok=True)
    model, gguf = made(folder)
    command = [str(args.server), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(SERVER), "-np", str(SLOTS),
               "-c", str(SLOTS * CONTEXT), "-t", "2"]
    server, checks, gateway = Process("llama-server", command, folder), Checks(), None
    upstream = {"upstream": f"http://127.0.0.1:{SERVER}"}
    try:
        server.until(lambda: get(f"http://127.0.0.1:{SERVER}/health") is not None, "healthy")
        if args.kit:
            sys.exit(kit({**upstream, "cache": "engine", "model_dir": str(model)}))
        gateway = Gateway(model, folder, upstream)
        second_turn(gateway, checks)
        compare(gateway, model, folder, checks)
    finally:
        if gateway:
            gateway.process.stop()
        server.kill()
    print(f"{checks.failed} failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
