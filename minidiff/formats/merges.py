"""CLIP's tokenizer for a model: where its merge list and its settings come from.

Every Stable Diffusion reads prompts by one list of 48,894 merges (bpe.py says what they do); only
the padding differs. The list is looked for in this order, and a tokenizer folder also tells the
padding and the words that somebody added:

    a folder    tokenizer/ of a published model: merges.txt, checked against vocab.json; else
                tokenizer.json. The padding is in its settings
    a file      merges.txt or bpe_simple_vocab_16e6.txt(.gz): its first 48,894 lines after the
                header. The padding is `pad`
    None        the user's cache, else fetched once from URLS, if its SHA-256 is right. The padding
                is `pad`

Settings are special_tokens_map.json over tokenizer_config.json, unless the latter lists
`added_tokens_decoder`: newer files, and it stands alone. Stable Diffusion 1 pads with the end
token, 2 with "!", the token of id 0.

Try: `clip_tokenizer().ids("a photo of a corgi")`.
Weakness: the first call without a file needs the network once.
"""

import gzip
import hashlib
import os
import sys
from pathlib import Path

from minidiff.data.download import download
from minidiff.formats.fields import read_json
from minidiff.formats.mapped import LIMIT, refusing, short
from minidiff.models.tokenizer import PAD, START, STOP, Tokenizer, clean

URLS = (
    "https://openaipublic.blob.core.windows.net/clip/bpe_simple_vocab_16e6.txt.gz",
    "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
)
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
COUNT = 48_894  # the list of OpenAI goes on, but CLIP uses no more


def clip_tokenizer(
    source: str | Path | None = None, *, pad: str | None = None, context: int = 77
) -> Tokenizer:
    """The tokenizer of a CLIP text tower, from a `tokenizer/`
    folder, a file of merges, or (None) the user's cache.

    pad   "eos" (Stable Diffusion 1) or "zero" (Stable Diffusion 2); None: what the folder says,
          else "eos"

    FileNotFoundError: nothing there. ValueError: not a list of CLIP's kind, or settings that no
    Stable Diffusion has. OSError: the list is not in the cache and could not be fetched.
    """
    path = cached() if source is None else Path(source)
    if not path.is_dir():
        merges = read_merges(path)
        if len(merges) != COUNT:
            raise ValueError(
                f"{path} holds {len(merges)} merges, CLIP has {COUNT}; it was cut off or is "
                "another model's"
            )
        return Tokenizer.bpe(merges, context, pad or "eos")
    whole = read_json(path / "tokenizer.json")
    config = read_json(path / "tokenizer_config.json")
    vocab = read_json(path / "vocab.json")
    words = read_json(path / "added_tokens.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(path / "special_tokens_map.json")
    merges = (
        None if whole and not (path / "merges.txt").is_file() else read_merges(path / "merges.txt")
    )
    with refusing(path, "tokenizer folder"):
        merges = pairs(whole["model"]["merges"]) if merges is None else merges
        own, anycase = frame(config, whole)
        vocab = vocab or whole.get("model", {}).get("vocab")
        words |= {token["content"]: i for i, token in listed(config, whole)}
    tokenizer = Tokenizer.bpe(merges, context, pad or own, anycase)
    with refusing(path, "tokenizer folder"):
        check_vocabulary(tokenizer, vocab)
        add_words(tokenizer, words)
    return tokenizer


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a merge list, plain or gzip, at most as
    many as CLIP has; the first line is a version header.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no merge list at {path}; expected a tokenizer folder, merges.txt or "
            f"{Path(URLS[0]).name}"
        )
    with refusing(path, "merge list"):
        with open(path, "rb") as f:
            packed = f.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as f:
            raw = f.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise ValueError(f"it has more than {LIMIT} bytes")
        head, *lines = raw.decode().split("\n")
        if "#version" not in head:
            raise ValueError("its first line has no '#version'")
        return pairs([line for line in lines if line.strip()])


def pairs(rows: list[str] | list[list[str]]) -> list[tuple[str, str]]:
    """["a b", ...] or [["a", "b"], ...] as pairs."""
    found = [tuple(row.split() if isinstance(row, str) else row) for row in rows[:COUNT]]
    odd = next((row for row, pair in zip(rows, found) if len(pair) != 2), None)
    if odd is not None:
        raise ValueError(f"{short(odd)} is no pair of symbols")
    return found


def frame(config: dict, whole: dict) -> tuple[str, set[str]]:
    """(padding "eos" or "zero", names of the frame
    that count in a prompt however they are written).
    """
    tokens = {}
    for role, usual in (("bos", START), ("eos", STOP), ("unk", STOP), ("pad", STOP)):
        token = config.get(f"{role}_token", usual)
        tokens[role] = token if isinstance(token, dict) else {"content": token}
    start, stop, padding = (tokens[role]["content"] for role in ("bos", "eos", "pad"))
    if start != START or stop != STOP:
        raise ValueError(f"it frames with {short(start)} and {short(stop)}, CLIP does not")
    pad = next((kind for kind, name in PAD.items() if name == padding), None)
    if pad is None:
        raise ValueError(
            f"it pads with {short(padding)}; Stable Diffusion 1 does with {STOP}, 2 with !"
        )
    anycase = {}  # a name met twice: the last word counts
    for token in [*tokens.values(), *(token for _, token in listed(config, whole))]:
        anycase[token["content"]] = token.get("normalized", False)
    return pad, {name for name in (START, STOP, PAD[pad]) if anycase[name]}


def listed(config: dict, whole: dict) -> list[tuple[int, dict]]:
    """(id, token) of the lists that newer versions of the settings hold."""
    decoder = config.get("added_tokens_decoder", {})
    settings = [(int(i), token) for i, token in decoder.items()]
    return settings + [(token["id"], token) for token in whole.get("added_tokens", [])]


def check_vocabulary(tokenizer: Tokenizer, vocab: dict[str, int] | None) -> None:
    """ValueError if a vocabulary gives other ids than follow
    from the merges; without one, these must be CLIP's.
    """
    own = tokenizer.speller.id
    if vocab is None:
        if len(own) != COUNT + 514:
            raise ValueError(
                f"{len(own) - 514} merges, CLIP has {COUNT}, and no vocab.json tells of another "
                "size"
            )
    elif vocab != own:
        odd = vocab.keys() ^ own.keys() or {n for n in own if vocab[n] != own[n]}
        name = min(odd, key=lambda n: own.get(n, len(own)))
        raise ValueError(
            f"its vocabulary has {len(vocab)} tokens, its merges make {len(own)}; they differ at "
            f"{short(name)}: id {vocab.get(name)}, expected {own.get(name)}"
        )


def add_words(tokenizer: Tokenizer, words: dict[str, int]) -> None:
    """Add the words whose ids come after CLIP's. "<cat>",
    "<cat>_1", ... are one word of several tokens.
    """
    first = len(tokenizer)
    names = sorted((name for name, i in words.items() if i >= first), key=words.get)
    if [words[name] for name in names] != list(range(first, first + len(names))):
        few = ", ".join(f"{short(name)} {words[name]}" for name in names[:3])
        raise ValueError(f"the ids of its added words have gaps: {few}")
    while names:
        count = 1
        while names[count:] and names[count] == f"{names[0]}_{count}":
            count += 1
        tokenizer.add(clean(names[0]), count)
        del names[:count]


def cached() -> Path:
    """CLIP's list in the user's cache, fetched if it is not
    there. A file that differs from the public one is refused.
    """
    path = cache() / Path(URLS[0]).name
    if path.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{path} is not CLIP's merge list (its SHA-256 differs); delete it")
        return path
    failed = []
    for url in URLS:
        try:
            return download(url, path, SHA256, progress=False)
        except (OSError, ValueError) as e:
            failed.append(str(e))
    raise OSError(
        f"no merge list of CLIP: {'; '.join(failed)}; put {path.name} into {path.parent} by hand, "
        "or name a file"
    )


def cache() -> Path:
    """The folder of fetched files: MINIDIFF_CACHE,
    else `minidiff` where this system keeps caches.
    """
    if own := os.environ.get("MINIDIFF_CACHE"):
        return Path(own).expanduser()
    usual = {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(sys.platform, ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / usual) / "minidiff"
