"""The native engine on a GPU beside PyTorch: results first, then times, each with the limit it stands against.

Usage: check.py --program FILE --out FOLDER [--small]

Correctness: random checkpoints of three families, on fresh random tokens; our logits against those of transformers in
f32, and no further from them than twice what transformers in bf16 is. Times: a Llama of 8 billion random parameters; the
bandwidth, the matrix rate and the link are measured in the same run, by PyTorch. `--small` makes small models and runs
anywhere, on the emulated device too: it shows that this program works, and its times say nothing.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers


def models(small: bool) -> dict:
    width = 1 if small else 4
    shape = dict(
        hidden_size=256 * width, intermediate_size=704 * width, num_hidden_layers=2 if small else 4,
        num_attention_heads=4 * width, num_key_value_heads=2, vocab_size=1000, max_position_embeddings=4096,
    )
    return {
        "llama": transformers.LlamaConfig(**shape, head_dim=64),
        "qwen2": transformers.Qwen2Config(**shape),
        "qwen3": transformers.Qwen3Config(**shape, head_dim=128, tie_word_embeddings=True),
    }


def save(config, folder: pathlib.Path, device: str):
    torch.manual_seed(time.time_ns() % 2**31)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return model.eval()


def ours(program: str, folder: pathlib.Path, tokens: torch.Tensor, chunk: int, scratch: pathlib.Path) -> torch.Tensor:
    given, got = scratch / "tokens", scratch / "logits"
    given.write_bytes(tokens.to(torch.int32).cpu().numpy().tobytes())
    subprocess.run([program, "logits", str(folder), str(given), str(got), str(chunk)], check=True)
    return torch.frombuffer(bytearray(got.read_bytes()), dtype=torch.float32).view(tokens.numel(), -1)


def correctness(args, device: str, scratch: pathlib.Path) -> list:
    rows = []
    for name, config in models(args.small).items():
        folder = scratch / name
        model = save(config, folder, device)
        tokens = torch.randint(0, config.vocab_size, (60 if args.small else 700,), device=device)
        with torch.no_grad():
            rounded = model(tokens[None]).logits[0].float().cpu()
            exact = model.float()(tokens[None]).logits[0].cpu()
        whole = ours(args.program, folder, tokens, 512, scratch)
        cut = ours(args.program, folder, tokens, 33, scratch)
        off, theirs = (whole - exact).abs().max().item(), (rounded - exact).abs().max().item()
        same = torch.equal(whole.view(torch.int32), cut.view(torch.int32))
        right = off <= 2 * theirs and same
        rows.append({"model": name, "off": off, "pytorch_bf16_off": theirs, "same_in_chunks": same, "right": right})
        print(rows[-1], flush=True)
    return rows


def seconds(run, device: str, times: int = 10) -> float:
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        run()
    measured = []
    for _ in range(times):
        wait()
        started = time.perf_counter()
        run()
        wait()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


def limits(device: str, small: bool) -> dict:
    """What the machine can do: bytes a second of reading, matrix products, and the link from the host."""
    count = 1 << (20 if small else 31)
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), device)
    n = 256 if small else 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = seconds(lambda: a @ b, device)
    host = torch.empty(min(count, 1 << 30), dtype=torch.uint8)
    host = host.pin_memory() if device == "cuda" else host
    link = seconds(lambda: target[: host.numel()].copy_(host, non_blocking=True), device)
    return {
        "bytes_per_s": 2 * count / copied,
        "flops": 2 * n**3 / product,
        "link_bytes_per_s": host.numel() / link,
    }


def pytorch_decode(config, model, batch: int, context: int) -> float | None:
    """A step of transformers with a static cache in a CUDA graph; None where it does not fit or does not run."""
    try:
        cache = transformers.StaticCache(config=config, max_cache_len=context + 8)
        tokens = torch.full((batch, 1), 5, device="cuda")
        position = torch.tensor([context], device="cuda")

        def step():
            with torch.no_grad():
                model(tokens, past_key_values=cache, cache_position=position, use_cache=True)

        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return seconds(graph.replay, "cuda")
    except Exception as error:  # a rival that does not run is told, not hidden
        print(f"pytorch decode {batch} x {context}: {error!r}", flush=True)
        return None


def report(lines: list, limit: dict, config, theirs: dict) -> list:
    kv_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    table = 2 * config.vocab_size * config.hidden_size
    weights = lines[0]["weight_bytes"] - table  # of the embedding a step reads some rows
    parameters = (weights - table) / 2  # and of a prompt only the last row meets the head
    base = {line["batch"]: line["ms"] for line in lines if line.get("what") == "decode" and line["context"] == 16}
    rows = []
    for line in lines[1:]:
        row = dict(line)
        if line["what"] == "decode":
            moved = weights + line["batch"] * line["context"] * kv_token
            row["of_bandwidth"] = moved / limit["bytes_per_s"] / (line["ms"] / 1e3)
            if line["context"] > 100_000:
                spent = (line["ms"] - base[line["batch"]]) / 1e3
                row["attention_of_bandwidth"] = line["batch"] * line["context"] * kv_token / limit["bytes_per_s"] / spent
            row["pytorch_ms"] = theirs.get((line["batch"], line["context"]))
        elif line["what"] == "prefill":
            n = line["tokens"]
            attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * n * n
            row["of_matrix_rate"] = (2 * parameters * n + attention) / limit["flops"] / (line["ms"] / 1e3)
            row["pytorch_ms"] = theirs.get(("prefill", n))
        else:
            row["of_link"] = line["bytes"] / limit["link_bytes_per_s"] / (line["ms"] / 1e3)
        rows.append(row)
        print(row, flush=True)
    return rows


def times(args, device: str, scratch: pathlib.Path) -> dict:
    layers = 1 if args.small else 32
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=128_256, max_position_embeddings=131_072, rope_theta=500_000.0,
    )
    folder = scratch / "timed"
    model = save(config, folder, device)
    limit = limits(device, args.small)
    theirs = {}
    if device == "cuda":
        for batch, context in [(1, 1024), (32, 2048)]:
            spent = pytorch_decode(config, model, batch, context)
            theirs[batch, context] = spent and spent * 1e3
        tokens = torch.randint(0, 1000, (1, 4096), device=device)
        with torch.no_grad():
            theirs["prefill", 4096] = 1e3 * seconds(lambda: model(tokens, logits_to_keep=1), device)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    printed = subprocess.run([args.program, "time", str(folder)], check=True, stdout=subprocess.PIPE).stdout
    lines = [json.loads(line) for line in printed.splitlines()]
    return {"limits": limit, "device": lines[0]["device"], "rows": report(lines, limit, config, theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-times", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        sys.exit("PyTorch sees no GPU; --small tries this program without one")
    room = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        found = {"correctness": correctness(args, device, pathlib.Path(scratch))}
        if not args.no_times:
            found["times"] = times(args, device, pathlib.Path(scratch))
    (args.out / "gpu.json").write_text(json.dumps(found, indent=1))
    if not all(row["right"] for row in found["correctness"]):
        sys.exit("results are wrong")


main()
