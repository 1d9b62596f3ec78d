"""The native engine beside llama.cpp on one checkpoint: the same weights, threads and machine, by turns.

    llamacpp.py --mainstay FILE --llama DIR --model MODEL_DIR --gguf FILE [--threads 2] [--rounds 5]

DIR holds `llama-bench` and `llama-batched-bench`, built for this machine (README.md). A round measures ours, then
theirs; a figure is the median of all rounds, a ratio that of the rounds' own ratios. Prefill is of 512 tokens, decoding
of 64 tokens, for one stream and for eight.
"""

import argparse
import json
import statistics
import subprocess

PROMPT, DECODED, STREAMS = 512, 64, 8


def run(command: list) -> str:
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode()


def ours(args) -> dict:
    flags = ["--threads", args.threads, "--runs", 3, "-o", "json"]
    found = json.loads(run([args.mainstay, "bench", "engine", args.model, *flags]))
    return {
        "prefill": found["prefill_512_tok_s"],
        "decode": found["decode_b1_tok_s"],
        "decode of 8": found["decode_b8_tok_s"],
    }


def theirs(args) -> dict:
    flags = ["-m", args.gguf, "-t", args.threads, "-p", PROMPT, "-n", DECODED, "-r", 3, "-o", "json"]
    rows = json.loads(run([f"{args.llama}/llama-bench", *flags]))
    by = {(row["n_prompt"], row["n_gen"]): row["avg_ts"] for row in rows}
    flags = ["-m", args.gguf, "-t", args.threads, "-tb", args.threads, "-c", 2048, "-npp", 16, "-ntg", DECODED]
    printed = run([f"{args.llama}/llama-batched-bench", *flags, "-npl", STREAMS, "--output-format", "jsonl"])
    batched = next(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    return {
        "prefill": by[PROMPT, 0],
        "decode": by[0, DECODED],
        "decode of 8": batched["speed_tg"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mainstay", required=True)
    parser.add_argument("--llama", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds = []
    for number in range(args.rounds):
        rounds.append((ours(args), theirs(args)))
        print(f"round {number + 1} of {args.rounds}: {rounds[-1]}", flush=True)
    print("\n| tok/s | ours | llama.cpp | ratio | of the rounds |\n|---|---|---|---|---|")
    for name in rounds[0][0]:
        ratios = [own[name] / other[name] for own, other in rounds]
        medians = [statistics.median(side[name] for side in sides) for sides in zip(*rounds)]
        spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {medians[0]:.0f} | {medians[1]:.0f} | **{statistics.median(ratios):.2f}** | {spread} |")


main()
