"""Prompts to token ids: CLIP's byte-pair encoding, and whole words for the tiny model.

Sennrich, Haddow, Birch 2015, "Neural Machine Translation of Rare Words with Subword Units", arXiv 1508.07909 (BPE);
Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020 (CLIP).

The idea: start from the bytes of a word and glue together, again and again, the neighbouring pair that was learned
earliest. Frequent words end as one token, rare ones as several, and nothing is ever unknown. A technique that edits
attention must know which tokens a word became: `token_spans` says so, for both kinds of tokenizer alike.

    row = [bos] + ids[:context - 2] + [eos] + [pad, pad, ...]

The two kinds differ only in how they spell a word. `Tokenizer.words` has one token a word and refuses words it does not
know; `Tokenizer.bpe` reads the merge list that comes with CLIP (`bpe_simple_vocab_16e6.txt.gz`, or `merges.txt` of a
Stable Diffusion folder: the same pairs in the same order).

Cleaning is the same on every machine, with nothing optional: HTML entities twice, Unicode NFC, one space between words,
lower case. OpenAI's tokenizer also repairs broken encodings (ftfy), which changes ids only for text that was broken.

Try: `tok.token_spans("a photo of a corgi, smiling")`, then a made-up word, and count the pieces.
Weakness: 75 tokens and the rest is lost. So a cut is never silent: a warning shows the words that fell off.
"""
import gzip
import html
import re
import string
import unicodedata
import warnings
import zlib
from itertools import pairwise
from math import inf
from pathlib import Path

import torch
from torch import Tensor

NEW_WORDS = ["<new1>", "<new2>"]  # the tiny model's empty places for textual inversion and the like
CLIP_MERGES = 48_894  # 256 bytes + 256 word-final bytes + 48,894 merges + start + end = 49,408 tokens
END = "</w>"  # marks a symbol that ends its word
PUNCTUATION = string.punctuation + "“”‘’«»…–—"


def clean(text: str) -> str:
    """Lower case, one space between words, HTML entities resolved (twice: web captions are often escaped twice)."""
    return " ".join(unicodedata.normalize("NFC", html.unescape(html.unescape(text))).lower().split())


def pieces(word: str, special: dict[str, int], rest: str) -> list[str]:
    """Cut special names out first (longest first, never from inside a longer word), then what `rest` matches."""
    edge = lambda c: r"\b" if c.isalnum() else ""  # noqa: E731
    names = [edge(n[0]) + re.escape(n) + edge(n[-1]) for n in sorted(special, key=len, reverse=True)]
    parts = re.split(f"({'|'.join(names)})", word) if names else [word]
    return [p for part in parts for p in ([part] if part in special else re.findall(rest, part))]


class Words:
    """One token a word. `names[i]` is the word of id i; punctuation only separates."""

    rest = r"[^\W_]+"

    def __init__(self, names: list[str], special: dict[str, int]):
        self.names, self.special = names, special
        self.id = {n: i for i, n in enumerate(names) if not n.startswith("<")}  # nobody types <pad> <bos> <eos>

    def spell(self, words: list[str]) -> list[list[int]]:
        known = self.id | self.special
        cut = [pieces(w, self.special, self.rest) for w in words]
        unknown = sorted({p for ps in cut for p in ps if p not in known})
        if unknown:
            raise ValueError(f"unknown words: {' '.join(unknown)}; this tokenizer knows: {' '.join(sorted(known))}")
        return [[known[p] for p in ps] for ps in cut]

    def read(self, ids: list[int]) -> str:
        return " ".join(self.names[i] for i in ids)


class BytePairs:
    """CLIP's spelling: bytes, shown as 256 printable letters, merged by rank."""

    rest = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+"  # contraction, letters, one digit, anything else

    def __init__(self, merges: list[tuple[str, str]]):
        self.letter = byte_letters()
        ends = [c + END for c in self.letter.values()]
        frame = ["<|startoftext|>", "<|endoftext|>"]
        self.names = [*self.letter.values(), *ends, *(a + b for a, b in merges), *frame]
        self.id = {n: i for i, n in enumerate(self.names)}
        self.special = {n: self.id[n] for n in frame}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.known = {}  # piece -> ids: a word is merged once

    def spell(self, words: list[str]) -> list[list[int]]:
        return [[i for p in pieces(w, self.special, self.rest) for i in self.ids_of(p)] for w in words]

    def ids_of(self, piece: str) -> list[int]:
        if piece in self.special:
            return [self.special[piece]]
        if piece not in self.known:
            self.known[piece] = [self.id[s] for run in runs(piece) for s in self.merge(run)]
        return self.known[piece]

    def merge(self, run: str) -> list[str]:
        """The symbols of one run of characters: the lowest-ranked neighbouring pair is merged until none is ranked."""
        symbols = [self.letter[b] for b in run.encode()]
        symbols[-1] += END
        while len(symbols) > 1:
            pair = min(pairwise(symbols), key=lambda p: self.rank.get(p, inf))
            if pair not in self.rank:
                break
            symbols = join(symbols, pair)
        return symbols

    def read(self, ids: list[int]) -> str:
        byte = {c: b for b, c in self.letter.items()}
        out = b""
        for name in (self.names[i] for i in ids):
            if name in self.special:
                out += name.encode() + b" "
            else:
                out += bytes(byte[c] for c in name.removesuffix(END)) + b" " * name.endswith(END)
        return out.decode(errors="replace").strip()


def byte_letters() -> dict[int, str]:
    """Byte -> printable letter, in the order of the vocabulary: 188 bytes show themselves, 68 get letters from 256."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def runs(piece: str) -> list[str]:
    """Split numerals such as the squared sign off: Python's `\\w` takes them for letters, CLIP does not."""
    if not piece[0].isalnum():
        return [piece]
    return "".join(c if c.isalpha() else f" {c} " for c in piece).split()


def join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Merge every non-overlapping occurrence of `pair`, left to right."""
    out = []
    for s in symbols:
        if out and (out[-1], s) == pair:
            out[-1] += s  # a merged symbol differs from pair[0], so it is not merged twice
        else:
            out.append(s)
    return out


def read_merges(path: str | Path, count: int) -> list[tuple[str, str]]:
    """The first `count` pairs of a merge list, plain or gzip; the first line is a version header."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no merge list at {path}; expected bpe_simple_vocab_16e6.txt.gz or merges.txt")
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no readable merge list ({e}); fetch it again") from e
    pairs = [tuple(line.split()) for line in lines[1:count + 1] if line.strip()]
    if "#version" not in lines[0] or len(pairs) < count or any(len(p) != 2 for p in pairs):
        raise ValueError(f"{path} holds {len(pairs)} lines of merges, expected a '#version' line and {count} pairs")
    return pairs


class Tokenizer:
    """Prompts to rows of ids. Make one with `Tokenizer.words(vocab)` or `Tokenizer.bpe(merges_path)`.

    `tok(prompts)` gives a LongTensor (b, context); `tok.bos`, `tok.eos`, `tok.pad` are ids; `len(tok)` counts tokens.
    """

    def __init__(self, speller: Words | BytePairs, context: int, bos: int, eos: int, pad: int, cuts: bool):
        if context < 3:
            raise ValueError(f"context is {context}; expected at least 3 (start, one token, end)")
        self.speller, self.context, self.cuts = speller, context, cuts
        self.bos, self.eos, self.pad = bos, eos, pad

    @classmethod
    def words(cls, vocab: list[str], context: int = 20) -> "Tokenizer":
        """Word level: <pad> <bos> <eos> are 0 1 2, then `vocab` in its order, then the two reserved new words."""
        bad = [w for w in vocab if clean(w) != w or re.findall(Words.rest, w) != [w]]
        if bad or len(set(vocab)) < len(vocab):
            twice = sorted({w for w in vocab if vocab.count(w) > 1})
            raise ValueError(f"vocabulary must be distinct lower-case single words; not so: {bad or twice}")
        names = ["<pad>", "<bos>", "<eos>", *vocab, *NEW_WORDS]
        return cls(Words(names, {w: names.index(w) for w in NEW_WORDS}), context, bos=1, eos=2, pad=0, cuts=False)

    @classmethod
    def bpe(cls, merges_path: str | Path, context: int = 77, pad: str = "eos", merges=CLIP_MERGES) -> "Tokenizer":
        """CLIP's BPE. `pad`: "eos" repeats the end token (Stable Diffusion 1), "zero" is id 0 (Stable Diffusion 2)."""
        if pad not in ("eos", "zero"):
            raise ValueError(f'pad is {pad!r}; expected "eos" (SD 1) or "zero" (SD 2, OpenAI)')
        speller = BytePairs(read_merges(merges_path, merges))
        eos = len(speller.names) - 1
        return cls(speller, context, bos=eos - 1, eos=eos, pad=eos if pad == "eos" else 0, cuts=True)

    def __len__(self) -> int:
        return len(self.speller.names)

    def __call__(self, prompts: str | list[str]) -> Tensor:
        """Framed rows, (b, context) int64. Too long: ValueError for words, a warning and a cut for BPE."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = []
        for prompt in prompts:
            row = [self.bos, *self._fit(self.ids(prompt)), self.eos]
            rows.append(row + [self.pad] * (self.context - len(row)))
        return torch.tensor(rows, dtype=torch.long).view(-1, self.context)  # b n

    def ids(self, text: str) -> list[int]:
        """Ids without frame, never cut."""
        return [i for _, ids in self._spelled(text) for i in ids]

    def length(self, text: str) -> int:
        """Tokens of `text` with its frame, before any cut: it fits when this is at most `tok.context`."""
        return len(self.ids(text)) + 2

    def decode(self, ids: list[int] | Tensor) -> str:
        """Text of one row (framed or not): the start is skipped and reading stops at the first end token."""
        ids = [int(i) for i in ids]
        ids = ids[:ids.index(self.eos)] if self.eos in ids else ids
        return self.speller.read([i for i in ids if i != self.bos])

    def token_spans(self, text: str) -> list[tuple[str, list[int]]]:
        """(word, its positions in the framed row) for every word, split at spaces, its outer punctuation trimmed.

        A comma's token belongs to the word it is written at. Words that own no position (cut off, or a lone dash
        for the word tokenizer) are left out.
        """
        spans, at, end = [], 1, self.context - 1
        for word, ids in self._spelled(text):
            spans.append((self._trim(word), list(range(at, min(at + len(ids), end)))))
            at += len(ids)
        return [(w, positions) for w, positions in spans if positions]

    def words_of(self, text: str) -> list[str]:
        """The words of `token_spans`, in order."""
        return [w for w, _ in self.token_spans(text)]

    def add(self, word: str) -> int:
        """A new token for `word` at the end of the vocabulary (textual inversion); returns its id."""
        if clean(word) != word or not word or " " in word:
            raise ValueError(f"new word {word!r} must be lower case without spaces, such as '<my-cat>'")
        if word in self.speller.special or word in self.speller.id or word + END in self.speller.id:
            raise ValueError(f"new word {word!r} is taken; choose another name")
        self.speller.names.append(word)
        self.speller.special[word] = len(self) - 1
        return len(self) - 1

    def _spelled(self, text: str) -> list[tuple[str, list[int]]]:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a str, got {type(text).__name__}")
        words = clean(text).split()
        return list(zip(words, self.speller.spell(words)))

    def _trim(self, word: str) -> str:
        return next((s for s in self.speller.special if s in word), word.strip(PUNCTUATION) or word)

    def _fit(self, ids: list[int]) -> list[int]:
        room = self.context - 2
        if len(ids) <= room:
            return ids
        lost = self.speller.read(ids[room:])
        if not self.cuts:
            raise ValueError(f"prompt has {len(ids)} tokens, {room} fit; drop some words (too much: {lost!r})")
        warnings.warn(f"prompt has {len(ids)} tokens, {room} fit; cut off: {lost!r}", stacklevel=3)
        return ids[:room]
