"""A model folder with a larger vocabulary, for front ends that need a tokenizer and a template.

    make_model.py FOLDER [--vocabulary 32000]

Byte-level BPE, learnt from this repository's own text, with the bundled model's template, special tokens and
splitting; about twice the bytes a token of the bundled one. There are no weights: only mock engines can run it.
"""

import argparse
import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, trainers

from conversations import ROOT, Corpus

DEMO = ROOT / "plugins/native/demo-model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=int, default=32_000, help="at most; this text gives some 19,000")
    args = parser.parse_args()
    demo = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    corpus = Corpus(demo)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = demo.pre_tokenizer, decoders.ByteLevel()
    specials = [AddedToken(token.content, special=token.special) for token in demo.get_added_tokens_decoder().values()]
    # Every second line: a vocabulary that had read all of the text would fit it too well.
    trainer = trainers.BpeTrainer(vocab_size=args.vocabulary, special_tokens=specials, show_progress=False,
                                  initial_alphabet=sorted(set(demo.get_vocab()) & set(bytes_as_text())))
    tokenizer.train_from_iterator(corpus.code[::2] + corpus.prose[::2], trainer)
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.folder / "tokenizer.json"))
    for name in ("chat_template.jinja", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, args.folder / name)
    config = json.loads((DEMO / "config.json").read_text())
    config["vocab_size"] = tokenizer.get_vocab_size()
    (args.folder / "config.json").write_text(json.dumps(config, indent=2))
    text = "\n".join(corpus.code[1::200] + corpus.prose[1::200])
    print(f"{tokenizer.get_vocab_size()} tokens, {len(text.encode()) / len(tokenizer.encode(text).ids):.2f} bytes a token "
          f"(the bundled one: {len(text.encode()) / len(demo.encode(text).ids):.2f})")


def bytes_as_text() -> list[str]:
    """The letters in which byte-level BPE writes bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    return ByteLevel.alphabet()


if __name__ == "__main__":
    main()
