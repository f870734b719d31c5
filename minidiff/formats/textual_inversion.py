"""Textual inversion files: new words for the text tower, a few kilobytes each.

Rinon Gal et al. 2022, "An Image is Worth One Word: Personalizing Text-to-Image Generation using
Textual Inversion", arXiv 2208.01618.

The idea: everything the model can draw lies somewhere in the space of its word vectors. So freeze
the network, search one vector v that makes it draw the thing in a few photographs, and give that
vector a name. Loading is adding a row:

    E <- [E; v],     "<cat>" -> the id of the new row

A word may stand for several vectors; then `<cat>` becomes as many tokens in a prompt. These layouts
occur:

    diffusers (learned_embeds.bin, .safetensors)   {"<cat>": d or n d}
    the authors (.pt)                              {"string_to_token": ..., "string_to_param":
                                                   {"*": n d}}; the word is the file's name
    web user interface (.pt)                       the same, with "name": the word
    web user interface (.safetensors)              {"emb_params": n d}; the word is the file's name
    a bare tensor                                  d or n d; the word must be told

Try: `load_embedding("learned_embeds.bin", pipe)`, then prompts "a photo of <cat>", "<cat> in the
style of <cat>". Weakness: a vector means something to one text tower only, and only its width (768,
1024, ...) can be checked.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from minidiff.formats.files import is_pickle, load_pickle, open_tensors
from minidiff.formats.lora import BASES
from minidiff.formats.mapped import finite, short
from minidiff.models.tokenizer import clean
from minidiff.pipe.pipe import Pipe


def load_embedding(path: str | Path, pipe: Pipe, token: str | None = None) -> list[str]:
    """Add the word(s) of a file to the pipe's tokenizer and
    text tower, in place; returns them as prompts spell them.

    token   the word to use instead of the file's own (lower case, no spaces, such as "<my-cat>"),
            for files with one word

    ValueError, one line with the file's name, and nothing is changed: no known layout, vectors of
    another width, NaN or infinite numbers, a word that the vocabulary has already, a model without
    text. FileNotFoundError.
    """
    path = Path(path)
    if pipe.text is None or pipe.tokenizer is None:
        raise ValueError(
            f"{path}: {pipe.name or 'this model'} reads no text, so it can learn no word"
        )
    table = pipe.text.embeddings["token_embedding"]
    if len(pipe.tokenizer) != table.num_embeddings:
        raise ValueError(
            f"{path}: the tokenizer has {len(pipe.tokenizer)} tokens, the text tower "
            f"{table.num_embeddings}; they must be of one model"
        )
    words = {}
    names = []
    for own, vectors in _words(path, token).items():
        vectors = _checked(path, own, vectors, pipe)
        word = clean(own)
        # as the tokenizer will name them
        new = [word, *(f"{word}_{i}" for i in range(1, len(vectors)))]
        if clash := set(new) & set(names):
            raise ValueError(
                f"{path} has two words that need the token {short(min(clash))}; they must differ"
            )
        names += new
        words[word] = vectors
    try:
        for name in names:
            pipe.tokenizer.check_new(name)
    except ValueError as e:
        raise ValueError(f"{path}: {e} (token=, --embedding FILE=WORD)") from e
    for word, vectors in words.items():
        pipe.tokenizer.add(word, len(vectors))
    with torch.no_grad():
        # in the order of the ids
        weight = torch.cat([table.weight, *(v.to(table.weight) for v in words.values())])
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(weight)
    return list(words)


def _words(path: Path, token: str | None) -> dict[str, Tensor]:
    """{word: its vectors, d or n d} of a file in any of the layouts."""
    if is_pickle(path):
        found = load_pickle(path)
        if isinstance(found, dict) and isinstance(found.get("string_to_param"), dict):
            name = (
                found["name"] if isinstance(found.get("name"), str) and found["name"] else path.stem
            )
            found = {name if k == "*" else k: v for k, v in found["string_to_param"].items()}
    else:
        file = open_tensors(path)
        found = {path.stem if k == "emb_params" else k: file.tensor(k) for k in file}
    if isinstance(found, Tensor):
        if token is None:
            raise ValueError(
                f"{path} is a bare tensor without a word; name one, such as token='<my-cat>' "
                "(--embedding FILE=WORD)"
            )
        found = {token: found}
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    ):
        what = (
            ", ".join(map(short, list(found)[:3]))
            if isinstance(found, dict)
            else f"a {type(found).__name__}"
        )
        raise ValueError(
            f"{path} holds {what or 'nothing'}; expected {{word: vectors}} or another such layout"
        )
    if {"clip_l", "clip_g"} & found.keys():
        raise ValueError(
            f"{path} was made for SDXL, which has two text towers (clip_l, clip_g); it is not "
            "supported"
        )
    if token is not None and len(found) > 1:
        raise ValueError(
            f"{path} has {len(found)} words ({', '.join(map(short, list(found)[:3]))}), so "
            f"token={token!r} cannot name it"
        )
    return found if token is None else {token: next(iter(found.values()))}


def _checked(path: Path, word: str, vectors: Tensor, pipe: Pipe) -> Tensor:
    """Vectors as n d, of the tower's width, finite, few enough for a prompt."""
    vectors = vectors.detach()[None] if vectors.dim() == 1 else vectors.detach()
    room = pipe.tokenizer.context - 2
    width = pipe.text.width
    if vectors.dim() != 2 or not vectors.is_floating_point() or not 0 < len(vectors) <= room:
        raise ValueError(
            f"{path}: {short(word)} is {vectors.dtype} {tuple(vectors.shape)}; expected 1 to "
            f"{room} vectors"
        )
    if vectors.shape[1] != width:
        theirs, ours = (f"{n} ({BASES.get(n, 'another model')})" for n in (vectors.shape[1], width))
        raise ValueError(
            f"{path}: {short(word)} has width {theirs}; the text tower here has {ours}"
        )
    return finite(vectors, word, path)
