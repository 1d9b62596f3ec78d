"""Writes golden.json: what the shipped weights answer, greedily, according to `transformers`.

For an engine to be held against on meaningful text, and for the chat template: each
entry has the messages and tools as a client sends them, the prompt they become, its
token ids, and the ids and text of the answer (f32 arithmetic on the stored bf16
weights; the end marker is the last id). `min_margin` is the smallest lead of the best
token over the second: where it is large, rounding cannot change the answer.

    python make_golden.py [MODEL_DIR]
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ANSWER_TOKENS_MAX = 128


def tool(name: str, description: str, **properties: str) -> dict:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()},
              "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def called(name: str, **arguments) -> dict:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def asked(text: str) -> dict:
    return {"role": "user", "content": text}


TOOLS = [
    tool("get_weather", "Current weather for a city", city="string"),
    tool("read_file", "Read a text file", path="string"),
    tool("run_tests", "Run the tests of a module", target="string"),
    tool("search", "Search the documentation", query="string"),
    tool("list_files", "List the files in a directory", dir="string"),
    tool("add", "Add two numbers", a="number", b="number"),
]
OSLO = asked("What is the weather in Oslo?")
SKY = {"role": "tool", "tool_call_id": "call_1", "content": '{"city": "Oslo", "temp_c": -4, "sky": "snowy"}'}
CASES = {
    "greeting": ([asked("Hello!")], []),
    "weather call": ([OSLO], TOOLS),
    "weather answer": ([OSLO, called("get_weather", city="Oslo"), SKY], TOOLS),
    "second request": ([OSLO, called("get_weather", city="Oslo"), SKY,
                        {"role": "assistant", "content": "It is -4 degrees and snowy in Oslo."},
                        asked("Run the tests for cache::index.")], TOOLS),
    "path copied": ([asked("Read the file src/router/cache.rs.")], TOOLS),
    "tools listed": ([asked("Which tools do you have?")], TOOLS),
    "tool missing": ([asked("What is 3 plus 4?")], TOOLS[:3]),
    "name remembered": ([asked("My name is Lena."), {"role": "assistant", "content": "Nice to meet you, Lena."},
                         asked("What is my name?")], TOOLS),
}


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    golden = []
    for name, (messages, tools) in CASES.items():
        prompt = tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True, tokenize=False)
        ids, answer, margin = tokenizer.encode(prompt, add_special_tokens=False), [], float("inf")
        while len(answer) < ANSWER_TOKENS_MAX and answer[-1:] != [model.config.eos_token_id]:
            best = model(torch.tensor([ids + answer])).logits[0, -1].topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            answer.append(best.indices[0].item())
        text = tokenizer.decode(answer, skip_special_tokens=False)
        print(f"{name}: {text} (margin {margin:.2f})")
        golden.append({"name": name, "messages": messages, "tools": tools, "prompt": prompt, "prompt_ids": ids,
                       "answer": text, "answer_ids": answer, "min_margin": round(margin, 3)})
    lines = ",\n".join(json.dumps(entry) for entry in golden)
    (folder / "golden.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
