"""Words to ids by byte pairs: the spelling of CLIP.

Sennrich, Haddow, Birch 2015, "Neural Machine Translation of Rare Words with Subword Units", arXiv
1508.07909 (BPE); Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", arXiv 2103.00020 (CLIP).

The idea: start from the bytes of a word and glue together, again and again, the neighbouring pair
that was learned earliest. Frequent words end as one token, rare ones as several, and nothing is
ever unknown.

    ids 0..255 a byte | 256..511 a byte that ends a word | then one id a merge, in the order of the
    list | start, stop

The ids are those of `CLIPTokenizer` in transformers 5, which the published Stable Diffusion
pipelines use: Unicode NFC, each character's own lower case, Unicode's white space; no HTML entities
(to OpenAI's own code "&amp;" is one "&"), no repair of broken encodings. Where "!" is the padding
(Stable Diffusion 2), a "!" in a prompt gets the padding's id 0 as theirs does; OpenCLIP, which
trained that tower, says 256. Ours differ in three places only:
- an added word is found where it stands alone, theirs also inside a longer word, which then falls
  apart;
- combining marks younger than Unicode 9 stand in Unicode's order, theirs as typed (their tables are
  that old);
- letters and digits younger than this Python's tables (3.11: Unicode 14) count as signs.

Try: `[tok.speller.names[i] for i in tok.ids("xylobrontosaurus")]`. Weakness: pieces follow
frequency, not meaning: a rare name falls into syllables that each mean something else. The loop
below takes time with the square of a word's length: nothing for words, two seconds for 5,000
letters without a space.
"""

import re
import unicodedata
from collections.abc import Collection
from itertools import pairwise
from math import inf

START = "<|startoftext|>"
STOP = "<|endoftext|>"
END = "</w>"  # marks a symbol that ends its word


def clean(text: str) -> str:
    """Composed (NFC), then lower case character by character:
    Python alone gives the last sigma of a word another one.
    """
    return unicodedata.normalize("NFC", text).replace("Σ", "σ").lower()


def cut(text: str, names: Collection[str]) -> list[str]:
    """`text` in parts, `names` apart (the leftmost, then the
    longest; a name of letters never from inside a word).
    """
    edge = lambda c: r"\b" if c.isalnum() else ""  # noqa: E731
    found = [edge(n[0]) + re.escape(n) + edge(n[-1]) for n in sorted(names, key=len, reverse=True)]
    return [p for p in re.split(f"({'|'.join(found)})", text) if p] if found else [text]


class BytePairs:
    """CLIP's spelling: bytes, shown as 256 printable letters, merged by rank.

    `special` names become their ids wherever they stand: start, stop, padding, added words. Those
    in `exact` are looked for before cleaning, just as they are written; the others in any case.
    """

    # contraction, letters, one digit, signs
    rest = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:\W|_)+"
    framed = rf"{re.escape(START)}|{re.escape(STOP)}|{rest}"

    def __init__(
        self, merges: list[tuple[str, str]], pad: str = STOP, anycase: Collection[str] = ()
    ):
        self.letter = byte_letters()
        ends = [c + END for c in self.letter.values()]
        self.names = [*self.letter.values(), *ends, *(a + b for a, b in merges), START, STOP]
        self.id = {n: i for i, n in enumerate(self.names)}
        self.special = {n: [self.id[n]] for n in (START, STOP, pad)}
        self.exact = self.special.keys() - set(anycase)
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.known = {}  # word -> ids: a word is merged once

    def spell(self, words: list[str]) -> list[list[int]]:
        """The ids of every word; words hold no white space."""
        for word in words:
            if word not in self.known:
                parts = cut(word, self.exact)
                self.known[word] = [
                    i
                    for p in parts
                    for i in (self.special[p] if p in self.exact else self.plain(p))
                ]
        return [self.known[word] for word in words]

    def plain(self, text: str) -> list[int]:
        """Ids of a text without exact names."""
        anycase = self.special.keys() - self.exact
        ids = []
        for part in cut(clean(text), anycase):
            if part in anycase:
                ids += self.special[part]
                continue
            # a name that is not special (<|EndOfText|>) is a piece of its own,
            for piece in re.findall(self.framed, part):
                for p in re.findall(self.rest, piece):  # and then three: so do they
                    ids += [self.id[s] for run in runs(p) for s in self.merge(run)]
        return ids

    def merge(self, run: str) -> list[str]:
        """The symbols of one run of characters: the lowest-ranked
        neighbouring pair is merged until none is ranked.
        """
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
    """Byte -> printable letter, in the order of the vocabulary:
    188 bytes show themselves, 68 get letters from 256.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def runs(piece: str) -> list[str]:
    """Split numerals such as the squared sign off:
    Python's `\\w` takes them for letters, CLIP does not.
    """
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
