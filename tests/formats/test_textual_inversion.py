"""Textual inversion files: every layout adds the same rows, prompts find them, and what does not
fit changes nothing.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minidiff.core.schedule import scaled_linear
from minidiff.formats.textual_inversion import load_embedding
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.pipe.pipe import Pipe
from minidiff.weights.store import build

WIDTH = 32
MERGES = [("a", "</w>"), ("c", "a"), ("ca", "t</w>"), ("o", "f</w>")]


def small(kind="bpe", context=16):
    torch.manual_seed(0)
    tok = (
        Tokenizer.bpe(MERGES, context)
        if kind == "bpe"
        else Tokenizer.words(["a", "photo", "of", "cat"], context)
    )
    text = (
        CLIPText(len(tok), WIDTH, 2, 4, context, eos_id=tok.eos, project_dim=8)
        .eval()
        .requires_grad_(False)
    )
    net = UNet(channels=(32, 32), layers=1, attention=("cross", None), heads=4, context=WIDTH)
    for p in text.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    return Pipe(
        net=net, text=text, tokenizer=tok, schedule=scaled_linear(), shape=(4, 8, 8), name="small"
    )


def vectors(n=3, width=WIDTH, seed=1):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def table(pipe):
    return pipe.text.embeddings["token_embedding"]


# ---- the same vectors, as each program writes them -----------------------------------------------


def diffusers_bin(v, folder):
    torch.save({"<thing>": v}, folder / "learned_embeds.bin")
    return folder / "learned_embeds.bin"


def diffusers_safetensors(v, folder):
    save_file({"<thing>": v}, folder / "learned_embeds.safetensors")
    return folder / "learned_embeds.safetensors"


def diffusers_old(v, folder):
    torch.save(
        {"<thing>": nn.Parameter(v)},
        folder / "learned_embeds.bin",
        _use_new_zipfile_serialization=False,
    )
    return folder / "learned_embeds.bin"


def authors(v, folder):
    """No name in it, and a ParameterDict, which torch's own safe reader refuses."""
    torch.save(
        {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": nn.ParameterDict({"*": nn.Parameter(v)}),
        },
        folder / "<thing>.pt",
    )
    return folder / "<thing>.pt"


def web_pt(v, folder):
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": v},
            "name": "<thing>",
            "step": 999,
            "sd_checkpoint": "81761151",
            "sd_checkpoint_name": "v1-5-pruned-emaonly",
        },
        folder / "thing-1000.pt",
    )
    return folder / "thing-1000.pt"


def web_safetensors(v, folder):
    save_file({"emb_params": v}, folder / "<thing>.safetensors")
    return folder / "<thing>.safetensors"


LAYOUTS = [
    diffusers_bin,
    diffusers_safetensors,
    diffusers_old,
    authors,
    web_pt,
    web_safetensors,
]


@pytest.mark.parametrize("kind", ["bpe", "words"])
@pytest.mark.parametrize("write", LAYOUTS, ids=lambda w: w.__name__)
def test_every_layout_adds_the_same_rows_and_the_word_means_them(write, kind, tmp_path):
    pipe, v = small(kind), vectors()
    before, n = table(pipe).weight.clone(), len(pipe.tokenizer)
    assert load_embedding(write(v, tmp_path), pipe) == ["<thing>"]
    assert (
        torch.equal(table(pipe).weight, torch.cat([before, v]))
        and table(pipe).num_embeddings == n + 3
    )
    assert len(pipe.tokenizer) == n + 3 and not table(pipe).weight.requires_grad
    assert pipe.tokenizer.ids("<thing>") == [n, n + 1, n + 2]


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH)])
def test_one_vector_is_one_token(shape, tmp_path):
    pipe = small()
    n = len(pipe.tokenizer)
    load_embedding(diffusers_bin(vectors(1).view(shape), tmp_path), pipe)
    assert pipe.tokenizer.ids("<thing>") == [n] and len(pipe.tokenizer) == n + 1


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_a_prompt_with_the_word_gives_the_states_of_its_vectors_in_its_place(kind, tmp_path):
    pipe, v = small(kind), vectors()
    row = pipe.tokenizer("a photo of a cat")
    old = pipe.embed("a cat").text
    load_embedding(web_pt(v, tmp_path), pipe)
    assert torch.equal(pipe.embed("a cat").text, old) and torch.equal(
        pipe.tokenizer("a photo of a cat"), row
    )
    ids, found = pipe.tokenizer("a <thing>"), pipe.embed("a <thing>").text
    vecs = pipe.text.token_embeds(pipe.tokenizer("a"))
    eos = vecs[:, -1:] if kind == "bpe" else vecs[:, 2:3]
    by_hand = torch.cat(
        [vecs[:, :2], v[None], eos, vecs[:, -1:].expand(-1, pipe.text.context - 6, -1)], 1
    )
    assert (found - pipe.text(None, embeds=by_hand)).abs().max() < 1e-6
    assert pipe.tokenizer.token_spans("a <thing>") == [("a", [1]), ("<thing>", [2, 3, 4])]
    assert ids.shape == (1, pipe.text.context)


def test_the_pooled_state_is_still_that_of_the_end_token(tmp_path):
    """The new ids are larger than the end's: who looks for the largest id would pool the new
    word.
    """
    pipe = small()
    load_embedding(diffusers_bin(vectors(), tmp_path), pipe)
    ids = pipe.tokenizer(["a <thing>", "<thing> <thing> cat"])
    states = pipe.text(ids)
    ends = [5, 1 + 6 + 1]
    assert [
        row.index(pipe.tokenizer.eos) for row in ids.tolist()
    ] == ends and ids.max() > pipe.tokenizer.eos
    want = pipe.text.text_projection(torch.stack([states[i, e] for i, e in enumerate(ends)]))
    assert torch.equal(pipe.text.pooled(states, ids), want)


def test_a_prompt_that_its_words_make_too_long_is_cut_with_a_warning(tmp_path):
    pipe = small()
    load_embedding(diffusers_bin(vectors(8), tmp_path), pipe)
    with pytest.warns(UserWarning, match="16 tokens, 14 fit"):
        ids = pipe.tokenizer("<thing> <thing>")
    assert ids[0, -1] == pipe.tokenizer.eos


def test_the_word_can_be_chosen_and_is_spelled_in_lower_case(tmp_path):
    pipe = small()
    assert load_embedding(diffusers_bin(vectors(), tmp_path), pipe, token="<My-Cat>") == [
        "<my-cat>"
    ]
    assert len(pipe.tokenizer.ids("<My-Cat>")) == 3
    torch.save(vectors(2), tmp_path / "bare.pt")
    assert load_embedding(tmp_path / "bare.pt", pipe, token="<other>") == ["<other>"]


def test_several_words_of_one_file_are_all_loaded(tmp_path):
    pipe, a, b = small(), vectors(2), vectors(1, seed=2)
    save_file({"<one>": a, "<two>": b}, tmp_path / "x.safetensors")
    n = len(pipe.tokenizer)
    words = load_embedding(tmp_path / "x.safetensors", pipe)
    assert sorted(words) == ["<one>", "<two>"]
    rows = {w: table(pipe).weight[pipe.tokenizer.ids(w)] for w in words}
    assert (
        torch.equal(rows["<one>"], a)
        and torch.equal(rows["<two>"], b)
        and len(pipe.tokenizer) == n + 3
    )


def test_rows_take_the_dtype_of_the_text_tower(tmp_path):
    pipe = small().to(dtype=torch.bfloat16)
    load_embedding(diffusers_bin(vectors().half(), tmp_path), pipe)
    assert table(pipe).weight.dtype == torch.bfloat16
    assert torch.equal(table(pipe).weight[-3:], vectors().half().bfloat16())


# ---- refusals ------------------------------------------------------------------------------------


def refused(path, pipe, *words, token=None):
    before, n = (table(pipe).weight.clone(), len(pipe.tokenizer)) if pipe.text else (None, None)
    with pytest.raises(ValueError) as e:
        load_embedding(path, pipe, token)
    text = str(e.value)
    assert "\n" not in text and str(path) in text and all(w in text for w in words), text
    if pipe.text:
        assert (
            torch.equal(table(pipe).weight, before)
            and len(pipe.tokenizer) == n == table(pipe).num_embeddings
        )


@pytest.mark.parametrize(
    "width, base",
    [
        (768, "Stable Diffusion 1"),
        (1024, "Stable Diffusion 2"),
        (128, "the tiny model"),
        (1280, "SDXL"),
        (48, "another model"),
    ],
)
def test_vectors_of_another_width_are_refused_naming_the_base(width, base, tmp_path):
    refused(diffusers_bin(vectors(2, width), tmp_path), small(), f"width {width} ({base}", "has 32")


def test_the_tiny_model_says_what_it_is(tmp_path):
    path = diffusers_bin(vectors(1, 768), tmp_path)
    refused(path, build("tiny"), "width 768 (Stable Diffusion 1)", "128 (the tiny model)")


@pytest.mark.parametrize("token", ["cat", "<|endoftext|>", "a"])
def test_a_word_of_the_vocabulary_is_refused(token, tmp_path):
    refused(diffusers_bin(vectors(), tmp_path), small(), "is taken", token=token)


def test_a_word_is_loaded_once(tmp_path):
    pipe, path = small(), diffusers_bin(vectors(), tmp_path)
    load_embedding(path, pipe)
    refused(path, pipe, "'<thing>' is taken")
    refused(path, pipe, "is taken", token="<thing>_1")


def test_one_bad_word_of_several_leaves_all_out(tmp_path):
    save_file({"<one>": vectors(), "cat": vectors()}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", small(), "'cat' is taken")
    save_file({"<one>": vectors(), "<ONE>": vectors()}, tmp_path / "y.safetensors")
    refused(tmp_path / "y.safetensors", small(), "two words")
    save_file({"<one>": vectors(), "<one>_1": vectors()}, tmp_path / "z.safetensors")
    refused(tmp_path / "z.safetensors", small(), "'<one>_1'")


@pytest.mark.parametrize(
    "name, save, token, words",
    [
        ("x.safetensors", {"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, None, ("SDXL",)),
        ("x.safetensors", {"<x>": torch.full((1, WIDTH), torch.nan)}, None, ("NaN or infinite",)),
        (
            "x.safetensors",
            {"<x>": torch.zeros(1, WIDTH, dtype=torch.int32)},
            None,
            ("torch.int32", "expected 1 to 14 vectors"),
        ),
        ("x.safetensors", {"<x>": torch.zeros(0, WIDTH)}, None, ("expected 1 to 14 vectors",)),
        (
            "x.safetensors",
            {"<x>": torch.zeros(15, WIDTH)},
            None,
            ("(15, 32)", "expected 1 to 14 vectors"),
        ),
        ("x.safetensors", {"<x>": torch.zeros(1, 1, WIDTH)}, None, ("expected 1 to 14 vectors",)),
        ("x.safetensors", {"<x>": vectors(), "<y>": vectors()}, "<z>", ("2 words", "token='<z>'")),
        ("x.safetensors", {"two words": vectors()}, None, ("without spaces", "token=")),
        ("x.pt", vectors(), None, ("bare tensor", "token='<my-cat>'")),
        ("x.pt", [vectors()], None, ("a list", "expected {word: vectors}")),
        ("x.pt", {"step": 3}, None, ("'step'", "expected {word: vectors}")),
        ("x.pt", {"string_to_param": {"*": 3}, "name": "<x>"}, None, ("expected {word: vectors}",)),
        ("x.pt", {}, None, ("nothing",)),
    ],
)
def test_what_is_no_embedding_is_refused(name, save, token, words, tmp_path):
    (save_file if name.endswith("safetensors") else torch.save)(save, tmp_path / name)
    refused(tmp_path / name, small(), *words, token=token)


def test_damaged_and_missing_files_are_named(tmp_path):
    path = diffusers_safetensors(vectors(), tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, small())
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load_embedding(tmp_path / "absent.pt", small())


def test_a_model_without_text_is_refused(tmp_path):
    refused(diffusers_bin(vectors(), tmp_path), build("tiny-pixel"), "reads no text")


def test_a_tokenizer_of_another_tower_is_refused(tmp_path):
    pipe = small()
    pipe.tokenizer.add("<loose>")
    with pytest.raises(ValueError, match="they must be of one model"):
        load_embedding(diffusers_bin(vectors(), tmp_path), pipe)


@pytest.mark.oracle
def test_states_equal_those_of_transformers_with_the_same_rows(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (development extra)"
    )
    pipe, v = small(), vectors()
    size = dict(
        vocab_size=len(pipe.tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        hidden_act="quick_gelu",
        projection_dim=8,
        bos_token_id=pipe.tokenizer.bos,
        eos_token_id=pipe.tokenizer.eos,
        pad_token_id=pipe.tokenizer.pad,
    )
    theirs = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**size)).eval()
    own = pipe.text.state_dict()
    theirs.load_state_dict({k: own[k.removeprefix("text_model.")] for k in theirs.state_dict()})
    theirs.resize_token_embeddings(len(pipe.tokenizer) + 3, mean_resizing=False)
    with torch.no_grad():
        theirs.get_input_embeddings().weight[-3:] = v
        load_embedding(diffusers_bin(v, tmp_path), pipe)
        ids = pipe.tokenizer(["a photo of <thing>", "<thing>"])
        want, states = theirs(ids), pipe.text(ids)
        assert (states - want.last_hidden_state).abs().max() < 1e-5
        assert (pipe.text.pooled(states, ids) - want.text_embeds).abs().max() < 1e-5
