"""Scores a model on dialogues it has not seen: how often a whole assistant turn is right.

A turn counts if greedy decoding would give it exactly, to the end marker, with the
true conversation before it. Three sets, from seeds training does not use:

    core    six tools with fixed names (the core grammar)
    wide    many tools, names, arguments, phrasings, follow-ups
    unseen  wide, and every city and free word is one that no training text holds

    python evaluate.py MODEL_DIR [MODEL_DIR …] [--dialogues 400] [-o json]
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import words
from generate import Message, dialogue

SETS = ("core", "wide", "unseen")
SEEDS = {"core": 999_001, "wide": 999_002, "unseen": 999_003}
KINDS = ("call", "answer", "refusal", "chat")
UNSEEN_ONSETS = "sn sw kr gl fr th qu j".split()
UNSEEN_RIMES = "oy au ue ix am ek ul".split()


def unseen_word(r: random.Random) -> str:
    """A word of sounds that training's invented words do not have."""
    return "".join(r.choice(UNSEEN_ONSETS) + r.choice(UNSEEN_RIMES) for _ in range(2))


def dialogues(name: str, count: int) -> list[list[Message]]:
    r = random.Random(SEEDS[name])
    if name != "unseen":
        return [dialogue(r, wide=name == "wide") for _ in range(count)]
    with (mock.patch.object(words, "any_word", lambda r, wide: unseen_word(r)),
          mock.patch.object(words, "city", lambda r, wide: r.choice(words.UNSEEN_CITIES))):
        return [dialogue(r, wide=True) for _ in range(count)]


class Scorer:
    def __init__(self, folder: Path):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turns(self, messages: list[Message]) -> list[tuple[Message, bool, str]]:
        """Each scored assistant turn, whether it is right, and what the model says given its true beginning."""
        ids, spans = [], []
        for message in messages:
            added = self.ids(f"<|{message.role}|>{message.text}<|end|>")
            if message.role == "assistant" and message.learn:
                spans.append((len(ids) + 1, len(ids) + len(added), message))
            ids += added
        best = self.model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        return [(message, best[first - 1 : end - 1] == ids[first:end],
                 self.tokenizer.decode(best[first - 1 : end - 1], skip_special_tokens=False))
                for first, end, message in spans]


def score(folder: Path, count: int, shown: int) -> dict:
    scorer, scores = Scorer(folder), {}
    for name in SETS:
        right, total, wrong = Counter(), Counter(), []
        for messages in dialogues(name, count):
            for message, good, said in scorer.turns(messages):
                total[message.kind] += 1
                right[message.kind] += good
                if not good:
                    wrong.append((message.text, said))
        scores[name] = {kind: [right[kind], total[kind]] for kind in KINDS if total[kind]}
        scores[name]["all"] = [right.total(), total.total()]
        for text, said in wrong[:shown]:
            print(f"{name}\n  right: {text}\n  said:  {said}")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--dialogues", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print this many wrong turns of each set")
    parser.add_argument("-o", choices=("table", "json"), default="table")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    scores = {str(folder): score(folder, given.dialogues, given.show) for folder in given.folders}
    if given.o == "json":
        print(json.dumps(scores, indent=2))
        return
    for folder, sets in scores.items():
        print(folder)
        for name, kinds in sets.items():
            cells = (f"{kind} {right}/{total} ({100 * right / total:.1f} %)" for kind, (right, total) in kinds.items())
            print(f"  {name:7}", "  ".join(cells))


if __name__ == "__main__":
    main()
