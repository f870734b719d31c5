"""Prompts to rows of token ids: CLIP's byte pairs, and whole words for the tiny model.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv
2103.00020 (the frame).

A text tower reads a row of fixed length: the prompt's tokens between a start and an end, then
padding. A technique that edits attention must know which tokens a word became: `token_spans` says
so, for both kinds of tokenizer alike.

    row = [bos] + ids[:context - 2] + [eos] + [pad, pad, ...]

The two kinds differ only in how they spell a word. `Tokenizer.words` has one token a word and
refuses words it does not know; `Tokenizer.bpe` (bpe.py) knows every word;
`minidiff.formats.merges.clip_tokenizer` finds the list it needs.

Try: `tok.token_spans("a photo of a corgi, smiling")`, then a made-up word, and count the pieces.
Weakness: 75 tokens and the rest is lost. So a cut is never silent: a warning shows the words that
fell off.
"""

import re
import string
import warnings
from collections.abc import Collection

import torch
from torch import Tensor

from minidiff.models.bpe import END, START, STOP, BytePairs, clean, cut

NEW_WORDS = ["<new1>", "<new2>"]  # the tiny model's empty places for textual inversion and the like
PAD = {"eos": STOP, "zero": "!"}  # names of the padding token: Stable Diffusion 1, and 2
PUNCTUATION = string.punctuation + "“”‘’«»…–—"
# Unicode's; Python's has \x1c too
SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


class Words:
    """One token a word. `names[i]` is the word of id i; punctuation only separates."""

    rest = r"[^\W_]+"

    def __init__(self, names: list[str], special: dict[str, list[int]]):
        self.names = names
        self.special = special
        # nobody types <pad> <bos> <eos>
        self.id = {n: i for i, n in enumerate(names) if not n.startswith("<")}

    def spell(self, words: list[str]) -> list[list[int]]:
        ids = []
        unknown = set()
        for parts in (cut(clean(w), self.special) for w in words):
            pieces = [
                p
                for part in parts
                for p in ([part] if part in self.special else re.findall(self.rest, part))
            ]
            unknown |= {p for p in pieces if p not in self.id and p not in self.special}
            ids.append([i for p in pieces for i in self.special.get(p, [self.id.get(p, -1)])])
        if unknown:
            known = " ".join(sorted(self.id.keys() | self.special))
            raise ValueError(
                f"unknown words: {' '.join(sorted(unknown))}; this tokenizer knows: {known}"
            )
        return ids

    def read(self, ids: list[int]) -> str:
        return " ".join(self.names[i] for i in ids)


class Tokenizer:
    """Prompts to rows of ids. Make one with `Tokenizer.words(vocab)` or `Tokenizer.bpe(merges)`.

    `tok(prompts)` gives a LongTensor (b, context); `tok.bos`, `tok.eos`, `tok.pad` are ids;
    `len(tok)` counts tokens.
    """

    def __init__(
        self, speller: Words | BytePairs, context: int, bos: int, eos: int, pad: int, cuts: bool
    ):
        if context < 3:
            raise ValueError(f"context is {context}; expected at least 3 (start, one token, end)")
        self.speller = speller
        self.context = context
        self.cuts = cuts
        self.bos = bos
        self.eos = eos
        self.pad = pad

    @classmethod
    def words(cls, vocab: list[str], context: int = 20) -> "Tokenizer":
        """Word level: <pad> <bos> <eos> are 0 1 2, then
        `vocab` in its order, then the two reserved new words.
        """
        bad = [w for w in vocab if clean(w) != w or re.findall(Words.rest, w) != [w]]
        if bad or len(set(vocab)) < len(vocab):
            twice = sorted({w for w in vocab if vocab.count(w) > 1})
            raise ValueError(
                f"vocabulary must be distinct lower-case single words; not so: {bad or twice}"
            )
        names = ["<pad>", "<bos>", "<eos>", *vocab, *NEW_WORDS]
        return cls(
            Words(names, {w: [names.index(w)] for w in NEW_WORDS}),
            context,
            bos=1,
            eos=2,
            pad=0,
            cuts=False,
        )

    @classmethod
    def bpe(
        cls,
        merges: list[tuple[str, str]],
        context: int = 77,
        pad: str = "eos",
        anycase: Collection[str] = (),
    ) -> "Tokenizer":
        """CLIP's BPE. `merges`: pairs of symbols, the first learned first. `pad`: "eos" repeats the
        end token (Stable Diffusion 1), "zero" is id 0, "!" (Stable Diffusion 2). `anycase`: which
        names of the frame count in a prompt however they are written; the others only as they are,
        so that <|EndOfText|> is text.
        """
        if pad not in PAD:
            raise ValueError(
                f'pad is {pad!r}; expected "eos" (Stable Diffusion 1) or "zero" (Stable '
                "Diffusion 2)"
            )
        speller = BytePairs(merges, PAD[pad], anycase)
        bos = speller.id[START]
        eos = speller.id[STOP]
        return cls(speller, context, bos=bos, eos=eos, pad=speller.id[PAD[pad]], cuts=True)

    def __len__(self) -> int:
        return len(self.speller.names)

    def __call__(self, prompts: str | list[str]) -> Tensor:
        """Framed rows, (b, context) int64. Too long:
        ValueError for words, a warning and a cut for BPE.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = []
        for prompt in prompts:
            if not self.ids(prompt) and prompt.strip():
                warnings.warn(
                    f"prompt {prompt!r} holds no word that this tokenizer reads: it counts as the "
                    "empty prompt",
                    stacklevel=2,
                )
            row = [self.bos, *self._fit(self.ids(prompt)), self.eos]
            rows.append(row + [self.pad] * (self.context - len(row)))
        return torch.tensor(rows, dtype=torch.long).view(-1, self.context)  # b n

    def ids(self, text: str) -> list[int]:
        """Ids without frame, never cut."""
        return [i for _, ids in self._spelled(text) for i in ids]

    def length(self, text: str) -> int:
        """Tokens of `text` with its frame, before any
        cut: it fits when this is at most `tok.context`.
        """
        return len(self.ids(text)) + 2

    def decode(self, ids: list[int] | Tensor) -> str:
        """Text of one row (framed or not): the start is
        skipped and reading stops at the first end token.
        """
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return self.speller.read([i for i in ids if i != self.bos])

    def token_spans(self, text: str) -> list[tuple[str, list[int]]]:
        """(word, its positions in the framed row) for every
        word, split at spaces, its outer punctuation trimmed.

        A comma's token belongs to the word it is written at. Words that own no position (cut off,
        or a lone dash for the word tokenizer) are left out.
        """
        spans = []
        at = 1
        end = self.context - 1
        for word, ids in self._spelled(text):
            spans.append((self._trim(word), list(range(at, min(at + len(ids), end)))))
            at += len(ids)
        return [(w, positions) for w, positions in spans if positions]

    def words_of(self, text: str) -> list[str]:
        """The words of `token_spans`, in order."""
        return [w for w, _ in self.token_spans(text)]

    def add(self, word: str, count: int = 1) -> int:
        """A new token for `word` at the end of the vocabulary (textual inversion); returns its id.

        With `count` > 1 the word stands for so many tokens in a row, ids from the returned one on,
        named word, word_1, word_2, ... ValueError: not one lower-case word, or taken; then nothing
        was added.
        """
        names = [word, *(f"{word}_{i}" for i in range(1, count))]
        for name in names:
            self.check_new(name)
        first = len(self)
        speller = self.speller
        speller.special |= {name: [first + i] for i, name in enumerate(names)} | {
            word: [*range(first, first + count)]
        }
        speller.names += names
        if isinstance(speller, BytePairs):
            speller.known.clear()  # words spelled before may hold the new one
        return first

    def check_new(self, word: str) -> None:
        """ValueError if `word` cannot be added: it must
        be one lower-case word, and not yet a token.
        """
        if clean(word) != word or not word or SPACE.search(word):
            raise ValueError(
                f"new word {word!r} must be lower case without spaces, such as '<my-cat>'"
            )
        if word in self.speller.special or word in self.speller.id or word + END in self.speller.id:
            raise ValueError(f"new word {word!r} is taken; choose another name")

    def _spelled(self, text: str) -> list[tuple[str, list[int]]]:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a str, got {type(text).__name__}")
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(
                f"prompt {text!r} holds half a character (a lone surrogate); expected Unicode text"
            )
        words = [w for w in SPACE.split(text) if w]
        return list(zip(map(clean, words), self.speller.spell(words)))

    def _trim(self, word: str) -> str:
        # a padding "!" names no word
        names = [n for n in self.speller.special if n not in PUNCTUATION]
        return next((p for p in cut(word, names) if p in names), word.strip(PUNCTUATION) or word)

    def _fit(self, ids: list[int]) -> list[int]:
        room = self.context - 2
        if len(ids) <= room:
            return ids
        lost = self.speller.read(ids[room:])
        if not self.cuts:
            raise ValueError(
                f"prompt has {len(ids)} tokens, {room} fit; drop some words (too much: {lost!r})"
            )
        warnings.warn(f"prompt has {len(ids)} tokens, {room} fit; cut off: {lost!r}", stacklevel=3)
        return ids[:room]
