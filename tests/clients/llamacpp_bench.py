"""What llama.cpp does with a GGUF file on this machine, as one JSON object.

The yardstick for `mainstay bench engine` on the same weights: prefill of 512 tokens
and decoding of 128 tokens for one stream, two threads, medians. Runs where
`llama-cpp-python` is installed, built for the machine it runs on (GGML_NATIVE=ON);
the output names the instruction sets that build uses, because a portable build is
several times slower and would be no yardstick.

    python llamacpp_bench.py MODEL.gguf [--threads 2] [--runs 5] [--prefill 512] [--decode 128]
"""

import argparse
import json
import os
import random
import statistics
import time

import llama_cpp

# Prompts are numbers, not text: the tokenizer has no part in what is measured.
FIRST_ORDINARY_TOKEN = 300


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(path: str, threads: int, runs: int, prefill_tokens: int, decode_tokens: int) -> dict:
    model = llama_cpp.Llama(path, n_ctx=prefill_tokens + decode_tokens + 8, n_batch=512, n_ubatch=512,
                            n_threads=threads, n_threads_batch=threads, verbose=False, seed=1)
    source = random.Random(1)
    prompt = [source.randrange(FIRST_ORDINARY_TOKEN, model.n_vocab()) for _ in range(prefill_tokens)]
    prefill, decode = [], []

    def generate() -> None:
        for _ in range(decode_tokens):
            model.eval([model.sample(temp=0.0)])

    for run in range(runs + 1):
        model.reset()
        first = seconds(lambda: model.eval(prompt))
        rest = seconds(generate)
        # The first run pays for page faults and the thread pool.
        if run:
            prefill.append(prefill_tokens / first)
            decode.append(decode_tokens / rest)
    return {
        "engine": "llama.cpp",
        "binding": f"llama-cpp-python {llama_cpp.__version__}",
        "cpu_features": llama_cpp.llama_print_system_info().decode(),
        "model": os.path.basename(path),
        "model_bytes": os.path.getsize(path),
        "threads": threads,
        "runs": runs,
        "prefill_tokens": prefill_tokens,
        "decode_tokens": decode_tokens,
        "prefill_tokens_per_s": round(statistics.median(prefill), 1),
        "prefill_tokens_per_s_all": [round(rate, 1) for rate in prefill],
        "decode_tokens_per_s": round(statistics.median(decode), 1),
        "decode_tokens_per_s_all": [round(rate, 1) for rate in decode],
        # Shared machines distort: above the number of cores, distrust every figure here.
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    given = parser.parse_args()
    print(json.dumps(measure(given.model, given.threads, given.runs, given.prefill, given.decode), indent=2))


if __name__ == "__main__":
    main()
