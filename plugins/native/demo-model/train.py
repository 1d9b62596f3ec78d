"""Trains the demo model on the synthetic dialogues of generate.py, on a CPU, within a time limit.

    python train.py --out DIR --minutes 60               # from nothing
    python train.py --out DIR --minutes 60 --start DIR0  # on from another model of this shape

The curriculum (each stage a share of the time): repeated random tokens, which teach
copying; single core turns of 128 tokens; core dialogues of 384; wide dialogues of
512 and 1,024. A start model skips to the wide stage. DIR is a Hugging Face model
folder, rewritten every few minutes, so an interrupted run leaves a usable model.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

from generate import dialogue, render, short

SPECIAL_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>",
                  "<think>", "</think>", "<tool_call>", "</tool_call>"]
END_ID = SPECIAL_TOKENS.index("<|end|>")
# A space belongs to the word it precedes: then a slot value is mostly one token.
PIECES = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
STEP_TOKENS = 4096
# What a token of each kind of message counts for: the assistant's is the task; a
# little of the rest keeps the language of requests and results in the model.
ASSISTANT_WEIGHT, TOOL_WEIGHT, OTHER_WEIGHT = 1.0, 0.3, 0.02
MUON_RATE, EMBEDDING_RATE, OTHER_RATE = 0.01, 0.01, 0.003
WARM_STEPS = 50
SAVE_SECONDS = 240.0


def train_tokenizer(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    r = random.Random(7)
    tokenizer.train_from_iterator((render(dialogue(r, wide=n % 4 != 0)) for n in range(40_000)), trainer)
    return tokenizer


def new_model(vocab_size: int) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocab_size, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=48, tie_word_embeddings=False, max_position_embeddings=8192, use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, bos_token_id=None, eos_token_id=END_ID))
    into_residual = ("o_proj.weight", "down_proj.weight")
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        std = weight.shape[1] ** -0.5 * ((2 * model.config.num_hidden_layers) ** -0.5 if name.endswith(into_residual) else 1)
        torch.nn.init.normal_(weight, std={"model.embed_tokens.weight": 1.0, "lm_head.weight": 1e-3}.get(name, std))
    return model


def continue_from(start: Path, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """The start model's layers, with its embeddings carried over to the new vocabulary.

    A piece both vocabularies have keeps its vectors; a new one begins as the mean of
    the old pieces that spell it.
    """
    old = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    spell = Tokenizer.from_file(str(start / "tokenizer.json"))
    model = new_model(tokenizer.get_vocab_size())
    fresh = model.state_dict()
    carried = {name: weight for name, weight in old.state_dict().items() if fresh[name].shape == weight.shape}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = old.state_dict()[name], fresh[name].clone()
        for piece, index in tokenizer.get_vocab().items():
            known = spell.token_to_id(piece)
            text = tokenizer.decode([index], skip_special_tokens=False)
            ids = [known] if known is not None else spell.encode(text, add_special_tokens=False).ids
            if ids:
                after[index] = before[ids].mean(0)
        carried[name] = after
    model.load_state_dict(carried)
    return model


class Stream:
    """Endless packed sequences of token ids with a loss weight for each."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.tokenizer, self.r = tokenizer, random.Random(seed)
        self.ids: list[int] = []
        self.weights: list[float] = []

    def messages(self, stage: str):
        if stage == "single" or (stage == "core" and self.r.random() < 0.25):
            return short(self.r)
        return dialogue(self.r, wide=stage == "wide" and self.r.random() < 0.8)

    def append(self, stage: str) -> None:
        for message in self.messages(stage):
            ids = self.tokenizer.encode(f"<|{message.role}|>{message.text}<|end|>", add_special_tokens=False).ids
            weight = {"assistant": ASSISTANT_WEIGHT if message.learn else OTHER_WEIGHT, "tool": TOOL_WEIGHT}
            self.ids += ids
            # The role token is the template's, not the model's, to write.
            self.weights += [OTHER_WEIGHT] + [weight.get(message.role, OTHER_WEIGHT)] * (len(ids) - 1)

    def repeated(self, length: int, vocab_size: int) -> tuple[list[int], list[float]]:
        """Random tokens, a gap, the same tokens again; only the repetition counts."""
        ids, weights = [], []
        while len(ids) <= length:
            segment = [self.r.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(self.r.randint(3, 40))]
            gap = [self.r.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(self.r.randint(0, 6))]
            ids += segment + gap + segment
            weights += [0.0] * (len(segment) + len(gap) + 1) + [1.0] * (len(segment) - 1)
        return ids[: length + 1], weights[: length + 1]

    def batch(self, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        length = {"copy": 128, "single": 128, "core": 384, "wide": 1024 if self.r.random() < 0.25 else 512}[stage]
        rows = []
        for _ in range(STEP_TOKENS // length):
            if stage == "copy":
                rows.append(self.repeated(length, self.tokenizer.get_vocab_size()))
                continue
            while len(self.ids) <= length:
                self.append(stage)
            rows.append((self.ids[: length + 1], self.weights[: length + 1]))
            del self.ids[:length], self.weights[:length]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])


def loss_of(model, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids[:, :-1]).logits
    each = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


def optimizers(model, scale: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the layers' matrices, AdamW for the rest; each with its peak rate."""
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    layers = [p for p in model.parameters() if p.dim() == 2 and p is not embedding and p is not head]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    adam = dict(betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [
        (torch.optim.Muon(layers, lr=MUON_RATE, weight_decay=0.01, momentum=0.95), MUON_RATE * scale),
        (torch.optim.AdamW([embedding], lr=EMBEDDING_RATE, **adam), EMBEDDING_RATE * scale),
        (torch.optim.AdamW([head, *vectors], lr=OTHER_RATE, **adam), OTHER_RATE * scale),
    ]


def save(model, tokenizer: Tokenizer, out: Path) -> None:
    """The model folder; through a copy, because training goes on in f32."""
    out.mkdir(parents=True, exist_ok=True)
    copy = new_model(model.config.vocab_size)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    complete(out)


def complete(out: Path) -> None:
    """The small files a served model needs beside its weights; the same ones each time."""
    config = json.loads((out / "config.json").read_text())
    for key in ("transformers_version", "use_cache", "layer_types", "max_window_layers", "sliding_window", "use_sliding_window"):
        config.pop(key, None)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|end|>", "pad_token": "<|end|>",
                 "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
                 "model_max_length": config["max_position_embeddings"]}
    generation = {"eos_token_id": END_ID, "pad_token_id": END_ID, "do_sample": False, "max_new_tokens": 256}
    for name, value in (("config", config), ("tokenizer_config", tokenizer), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    template = Path(__file__).parent / "chat_template.jinja"
    if template.exists() and template.parent != out.resolve():
        shutil.copyfile(template, out / template.name)
    (out / "model.safetensors").chmod(0o644)


def stage_at(step: int, share: float, continued: bool) -> str:
    if continued:
        return "wide"
    if step < 400:
        return "copy"
    return "single" if share < 0.2 else "core" if share < 0.35 else "wide"


def train(given: argparse.Namespace) -> None:
    torch.manual_seed(given.seed)
    torch.set_num_threads(given.threads)
    tokenizer = train_tokenizer(given.vocab)
    model = continue_from(given.start, tokenizer) if given.start else new_model(tokenizer.get_vocab_size())
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    stream, peaks = Stream(tokenizer, given.seed), optimizers(model, 0.6 if given.start else 1.0)
    began = saved = time.monotonic()
    step, recent = 0, []
    while (share := (time.monotonic() - began) / (60 * given.minutes)) < 1 and step < given.steps:
        stage = stage_at(step, share, given.start is not None)
        decay = 1.0 if share < 0.3 else (1 - share) / 0.7
        for optimizer, peak in peaks:
            optimizer.param_groups[0]["lr"] = peak * decay * min(1.0, (step + 1) / WARM_STEPS)
        loss = loss_of(model, *stream.batch(stage))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in peaks:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        recent = [*recent[-49:], loss.item()]
        if step % 50 == 0:
            seconds = time.monotonic() - began
            print(f"step {step} {stage} loss {sum(recent) / len(recent):.4f} {step * STEP_TOKENS / seconds:.0f} tok/s "
                  f"{seconds / 60:.1f} min", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            save(model, tokenizer, given.out)
            saved = time.monotonic()
    save(model, tokenizer, given.out)
    facts = {"steps": step, "tokens": step * STEP_TOKENS, "minutes": round((time.monotonic() - began) / 60, 1),
             "seed": given.seed, "threads": given.threads, "torch": torch.__version__}
    (given.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    train(parser.parse_args())
