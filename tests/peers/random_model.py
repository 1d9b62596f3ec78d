"""A small Qwen3 checkpoint with random weights, for servers that are not ours.

    random_model.py FOLDER [--seed 1]

The bundled model's tokenizer and template with heads of 32, which vLLM has a kernel for on a CPU; the bundled
model's have 48. The same seed makes the same weights. What it says means nothing, greedily it says it again.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

DEMO = Path(__file__).resolve().parents[2] / "plugins/native/demo-model"
HEAD = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    told = json.loads((DEMO / "config.json").read_text())
    torch.manual_seed(args.seed)
    config = Qwen3Config(vocab_size=told["vocab_size"], hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=HEAD, eos_token_id=told["eos_token_id"],
                         max_position_embeddings=told["max_position_embeddings"], tie_word_embeddings=False,
                         initializer_range=0.1)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    args.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.folder)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, args.folder / name)
    print(f"{args.folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
