"""The closed vocabulary of the grammar: what slots are filled with.

Most slots hold words of these lists because a model this small learns to copy
single tokens first. The rest are invented on the spot (see `invented`), so that
copying a string never seen before is practised too. The cities of `UNSEEN_CITIES`
never occur in training: evaluation uses them.
"""

import random

LEXICON = """
router cache block token worker engine plugin kernel raft index scheduler queue prefix hash radix tree page
pool tier host disk remote copy stream batch chunk prefill decode sampler logits tensor matrix vector norm rope
attention layer model config loader parser lexer server client proxy gateway session tenant quota policy lease
pin event trace metric log audit store snapshot commit leader follower vote term shard replica region zone node
cluster link socket frame codec proto schema table row column key value map set list ring heap stack graph edge
path file folder archive backup restore migrate deploy build test bench fuzz lint format doc guide tutorial
example demo sample fixture mock stub agent tool prompt answer reason plan memory context window budget limit
retry backoff timeout deadline signal watch poll fetch push pull merge split join filter sort search scan probe
check verify sign seal lock guard gate alpha beta gamma delta omega bridge canal river stone cloud storm wind
rain snow sun moon star light shade green blue red gold silver copper iron steel glass paper wood leaf root
branch seed fruit apple pear plum lemon berry bread honey sugar salt pepper clock wheel motor pump valve pipe
tank lamp mirror camera lens radio phone screen printer pencil brush hammer anvil ladder basket bottle carpet
castle tower harbor island valley forest meadow garden desert planet comet rocket pilot captain sailor doctor
baker farmer hunter painter singer writer teacher student lawyer judge king queen knight dragon tiger lion panda
zebra otter falcon eagle raven robin salmon turtle rabbit hedgehog squirrel badger
""".split()

CITIES = """
Paris London Tokyo Berlin Madrid Rome Oslo Cairo Lima Delhi Seoul Sydney Boston Chicago Denver Austin Lisbon
Vienna Prague Dublin Helsinki Zurich Geneva Athens Warsaw Nairobi Toronto Havana Quito Bogota
""".split()
MORE_CITIES = """
Hamburg Milan Porto Lyon Krakow Riga Sofia Munich Naples Seville Kyoto Osaka Hanoi Manila Mumbai Dakar Accra
Tunis Montreal Seattle Dallas Phoenix Miami Santiago Caracas Brussels Bergen Malmo Leeds Bristol
""".split()
UNSEEN_CITIES = "Tallinn Utrecht Zagreb Bremen Kigali Perth Nagoya Austerlitz Odense Cardiff".split()

PEOPLE = "Ana Ben Clara David Elena Finn Greta Hugo Ida Jonas Kim Lena Mara Nils Olga Paul Rosa Sven Tara Vera".split()
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear")
EXTENSIONS = ("rs", "py", "toml", "md", "txt", "cu")
MORE_EXTENSIONS = ("js", "ts", "go", "c", "h", "json", "yaml", "csv", "html", "sh")

ONSETS = "b c d f g h k l m n p r s t v w z br cl dr gr pl st tr".split()
RIMES = "a e i o u ai ea oo an en in on ar er or el il".split()


def word(r: random.Random) -> str:
    return r.choice(LEXICON)


def invented(r: random.Random) -> str:
    """A pronounceable word that is in no list."""
    return "".join(r.choice(ONSETS) + r.choice(RIMES) for _ in range(r.choice((2, 2, 3))))


def any_word(r: random.Random, wide: bool) -> str:
    return invented(r) if wide and r.random() < 0.2 else word(r)


def city(r: random.Random, wide: bool) -> str:
    if not wide or r.random() < 0.5:
        return r.choice(CITIES)
    return r.choice(MORE_CITIES) if r.random() < 0.6 else invented(r).capitalize()


def person(r: random.Random) -> str:
    return r.choice(PEOPLE) if r.random() < 0.7 else invented(r).capitalize()


def file_name(r: random.Random, wide: bool) -> str:
    extension = r.choice(MORE_EXTENSIONS if wide and r.random() < 0.4 else EXTENSIONS)
    return f"{any_word(r, wide)}.{extension}"


def path(r: random.Random, wide: bool) -> str:
    if r.random() < 0.5:
        return file_name(r, wide)
    parts = [r.choice(("src", "tests", "docs", "kernels", "control", "plugins", word(r)))]
    if r.random() < 0.3:
        parts.append(word(r))
    stem = any_word(r, wide) + r.choice(("", "_" + word(r)))
    parts.append(f"{stem}.{r.choice(MORE_EXTENSIONS if wide and r.random() < 0.4 else EXTENSIONS)}")
    return ("/" if wide and r.random() < 0.1 else "") + "/".join(parts)


def folder(r: random.Random, wide: bool) -> str:
    return r.choice(("src", "tests", "docs", any_word(r, wide)))


def module(r: random.Random, wide: bool) -> str:
    return any_word(r, wide) + (f"::{word(r)}" if r.random() < 0.5 else "")


def phrase(r: random.Random, wide: bool, most: int = 2) -> str:
    return " ".join(any_word(r, wide) for _ in range(r.randint(1, most)))


def joined(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
