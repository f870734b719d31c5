"""LoRA files: every dialect gives the same weights, the formulas are their definitions, and nothing
is silently ignored.
"""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from minidiff.core.cond import Cond
from minidiff.core.schedule import scaled_linear
from minidiff.formats.files import memory_file
from minidiff.formats.lora import Delta, apply_lora, lora, merge_lora, read_lora
from minidiff.formats.lora_files import homes
from minidiff.models.text import CLIPText
from minidiff.models.tokenizer import Tokenizer
from minidiff.models.unet import UNet
from minidiff.pipe.pipe import Pipe
from minidiff.weights.store import build

RANK, ALPHA, STRENGTH = 4, 2.0, 0.75  # alpha / r is a power of two: exact in every dialect


def small(seed=0, context=32, linear=False):
    """A pipe with Stable Diffusion's plan of blocks at a tenth of the width."""
    torch.manual_seed(seed)
    tok = Tokenizer.words(["a", "red", "circle"], context=12)
    net = UNet(channels=(32, 64, 128, 128), heads=4, context=context, linear=linear)
    text = CLIPText(len(tok), context, 2, 4, 12, eos_id=tok.eos)
    pipe = Pipe(
        net=net, text=text, tokenizer=tok, schedule=scaled_linear(), shape=(4, 8, 8), name="small"
    )
    for m in (net, text):
        for p in m.eval().requires_grad_(False).parameters():
            p.add_(torch.randn_like(p) * 0.05)  # norms and biases away from 1 and 0
    return pipe


@pytest.fixture
def pipe():
    return small()


def weights(pipe):
    return {
        f"{part}.{k}": v.clone()
        for part in ("net", "text")
        for k, v in getattr(pipe, part).state_dict().items()
    }


INSIDE = {
    "net": re.compile(r".*\.(attn\d\.(to_[qkv]|to_out\.0)|ff\.net\.0\.proj)"),
    "text": re.compile(r".*\.self_attn\.(q|k|v|out)_proj"),
}


def attention_layers(pipe, part):
    names = [name for name, _ in getattr(pipe, part).named_modules()]
    return [f"{part}.{name}" for name in names if INSIDE[part].fullmatch(name)]


@pytest.fixture(scope="module")
def factors():
    """{layer: (down, up)} for the layers that LoRA files usually change: 144 of the UNet, 8 of the
    text tower.
    """
    gen, pipe, found = torch.Generator().manual_seed(1), small(), {}
    for layer in attention_layers(pipe, "net") + attention_layers(pipe, "text"):
        part, name = layer.split(".", 1)
        out, n = getattr(pipe, part).get_submodule(name).weight.shape
        found[layer] = (
            torch.randn(RANK, n, generator=gen) * n**-0.5,
            torch.randn(out, RANK, generator=gen) * 0.3,
        )
    return found


def expected(pipe, factors, strength=STRENGTH):
    """W + s (alpha / r) B A by hand, in float64, then rounded."""
    w = weights(pipe)
    return {
        k + ".weight": (
            w[k + ".weight"].double() + strength * ALPHA / RANK * b.double() @ a.double()
        ).float()
        for k, (a, b) in factors.items()
    }


# ---- the same LoRA, as each program writes it ----------------------------------------------------


def original(name):
    """Stable Diffusion's own name of a layer in a transformer, as a chain of blocks: 3 a level
    down, 3 a level up.
    """
    m = re.match(r"(down|up|mid)_block(?:s\.(\d))?\.attentions\.(\d)\.(.*)", name)
    block = {
        "down": lambda b, l: f"input_blocks.{1 + 3 * b + l}.1",
        "up": lambda b, l: f"output_blocks.{3 * b + l}.1",
        "mid": lambda b, l: "middle_block.1",
    }[m[1]](int(m[2] or 0), int(m[3]))
    return f"{block}.{m[4]}"


def spell(factors, unet, text, down, up, alpha=None):
    tensors = {}
    for layer, (a, b) in factors.items():
        part, name = layer.split(".", 1)
        theirs = unet(name) if part == "net" else text(name)
        tensors[theirs + down], tensors[theirs + up] = a, b
        if alpha:
            tensors[theirs + alpha] = torch.tensor(ALPHA)
    return tensors


def scaled(factors):
    return {k: (a, b * ALPHA / RANK) for k, (a, b) in factors.items()}


def kohya(f, folder, name=lambda n: n):
    tensors = spell(
        f,
        lambda n: "lora_unet_" + name(n).replace(".", "_"),
        lambda n: "lora_te_text_model_" + n.replace(".", "_"),
        ".lora_down.weight",
        ".lora_up.weight",
        ".alpha",
    )
    save_file(tensors, folder / "x.safetensors", {"ss_network_dim": "4", "ss_network_alpha": "2"})
    return folder / "x.safetensors"


def kohya_original(f, folder):
    return kohya(f, folder, original)


def diffusers_old(f, folder):
    """Attention processors: attention only, and no alpha."""
    only = {k: v for k, v in scaled(f).items() if "ff." not in k}
    process = lambda n: "unet." + re.sub(r"\.(to_[a-z]+)(\.0)?$", r".processor.\1", n)  # noqa: E731
    te = lambda n: "text_encoder.text_model." + re.sub(r"\.(\w+)_proj$", r".to_\1", n)  # noqa: E731
    torch.save(
        spell(only, process, te, "_lora.down.weight", "_lora.up.weight"),
        folder / "pytorch_lora_weights.bin",
    )
    return folder / "pytorch_lora_weights.bin"


def diffusers_old_bare(f, folder):
    """The first exports had only the UNet, and no prefix."""
    path = diffusers_old({k: v for k, v in f.items() if k.startswith("net.")}, folder)
    torch.save({k.removeprefix("unet."): v for k, v in torch.load(path).items()}, path)
    return path


def diffusers_tensors(f):
    return spell(
        f,
        lambda n: f"unet.{n}.lora",
        lambda n: f"text_encoder.text_model.{n}.lora_linear_layer",
        ".down.weight",
        ".up.weight",
    )


def diffusers_now(f, folder):
    tensors = diffusers_tensors(f)
    tensors |= {f"unet.{k[4:]}.alpha": torch.tensor(ALPHA) for k in f if k.startswith("net.")}
    tensors |= {
        f"text_encoder.text_model.{k[5:]}.alpha": torch.tensor(ALPHA)
        for k in f
        if k.startswith("text.")
    }
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder / "pytorch_lora_weights.safetensors"


def peft_spelled(
    f, a=".lora_A.weight", b=".lora_B.weight", unet="unet.", text="text_encoder.text_model."
):
    return spell(f, lambda n: unet + n, lambda n: text + n, a, b)


def peft_metadata(f, folder):
    settings = {
        f"{p}.{k}": v
        for p in ("unet", "text_encoder")
        for k, v in {
            "peft_type": "LORA",
            "r": RANK,
            "lora_alpha": ALPHA,
            "use_rslora": False,
            "alpha_pattern": {},
        }.items()
    }
    save_file(
        peft_spelled(f),
        folder / "x.safetensors",
        {"format": "pt", "lora_adapter_metadata": json.dumps(settings)},
    )
    return folder / "x.safetensors"


def peft_stabilised(f, folder):
    """alpha / sqrt(r): alpha is half of what it would be at alpha / r, with r = 4."""
    settings = {
        f"{p}.{k}": v
        for p in ("unet", "text_encoder")
        for k, v in {"r": RANK, "lora_alpha": ALPHA / 2, "use_rslora": True}.items()
    }
    save_file(
        peft_spelled(f), folder / "x.safetensors", {"lora_adapter_metadata": json.dumps(settings)}
    )
    return folder / "x.safetensors"


def peft_folder(f, folder):
    """`adapter_model.safetensors` with `adapter_config.json`, one alpha of its own; of the UNet
    alone, as PEFT saves it.
    """
    only = {k: v for k, v in f.items() if k.startswith("net.")}
    odd = next(iter(only))
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": RANK,
                "lora_alpha": ALPHA,
                "alpha_pattern": {odd.removeprefix("net."): 2 * ALPHA},
            }
        )
    )
    only[odd] = only[odd][0], only[odd][1] / 2
    save_file(
        peft_spelled(only, ".lora_A.default.weight", ".lora_B.default.weight", "base_model.model."),
        folder / "adapter_model.safetensors",
    )
    return folder / "adapter_model.safetensors"


DIALECTS = [
    kohya,
    kohya_original,
    diffusers_old,
    diffusers_old_bare,
    diffusers_now,
    peft_metadata,
    peft_stabilised,
    peft_folder,
]


@pytest.mark.parametrize("write", DIALECTS, ids=lambda w: w.__name__)
def test_one_lora_in_every_dialect_gives_the_same_weights(write, pipe, factors, tmp_path):
    first, here = kohya(factors, tmp_path), tmp_path / "here"
    here.mkdir()
    reference, before = small(), weights(pipe)
    merge_lora(reference, first, STRENGTH)
    path = write(factors, here)
    covered = {k + ".weight" for k in read_lora(path, pipe)}
    attn = write in (diffusers_old, diffusers_old_bare)
    alone = write in (diffusers_old_bare, peft_folder)
    assert covered == {
        k + ".weight"
        for k in factors
        if not (attn and "ff." in k) and not (alone and k.startswith("text"))
    }
    merge_lora(pipe, path, STRENGTH)
    want = weights(reference)
    for k, v in weights(pipe).items():
        if k in covered:  # a product of factors that lie elsewhere in each file: rounded anew
            assert (v - want[k]).abs().max() <= 1e-6 * want[k].abs().max(), k
        else:
            assert torch.equal(v, before[k]), k


def test_merged_weights_are_the_formula(pipe, factors, tmp_path):
    want, before = expected(pipe, factors), weights(pipe)
    merge_lora(pipe, kohya(factors, tmp_path), STRENGTH)
    after = weights(pipe)
    assert max((after[k] - v).abs().max() for k, v in want.items()) < 1e-6
    assert all((after[k] - before[k]).abs().max() > 1e-3 for k in want)  # and each one moved


def test_the_merged_network_computes_what_adapters_beside_its_layers_compute(
    pipe, factors, tmp_path
):
    gen = torch.Generator().manual_seed(2)
    x, cond = (
        torch.randn(2, 4, 8, 8, generator=gen),
        Cond(text=torch.randn(2, 12, 32, generator=gen)),
    )
    t, hooks = torch.tensor([3, 700]), []
    plain = pipe.net(x, t, cond)
    for k, (a, b) in factors.items():
        if k.startswith("net."):
            hooks.append(
                pipe.net.get_submodule(k[4:]).register_forward_hook(
                    lambda m, args, out, a=a, b=b: (
                        out + STRENGTH * ALPHA / RANK * F.linear(F.linear(args[0], a), b)
                    )
                )
            )
    adapted = pipe.net(x, t, cond)
    for h in hooks:
        h.remove()
    with lora(pipe, kohya(factors, tmp_path), STRENGTH):
        merged = pipe.net(x, t, cond)
    assert (merged - adapted).abs().max() < 1e-5 * adapted.std() < 1e-3 * (adapted - plain).std()


def test_the_names_in_real_files_are_found():
    """Names as they stand in published files; SD 1 at full size, without memory."""
    where = homes(build("sd15", device="meta"))
    block = "net.down_blocks.1.attentions.0.transformer_blocks.0"
    for theirs, ours in {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0": f"{block}.attn1.to_out.0",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0": f"{block}.attn1.to_out.0",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj": f"{block}.ff.net.0.proj",
        "lora_unet_mid_block_attentions_0_proj_in": "net.mid_block.attentions.0.proj_in",
        "lora_unet_middle_block_1_proj_in": "net.mid_block.attentions.0.proj_in",
        "lora_unet_input_blocks_4_0_in_layers_2": "net.down_blocks.1.resnets.0.conv1",
        "lora_unet_output_blocks_5_2_conv": "net.up_blocks.1.upsamplers.0.conv",
        "lora_unet_down_blocks_0_downsamplers_0_conv": "net.down_blocks.0.downsamplers.0.conv",
        "lora_unet_down_blocks_1_resnets_0_time_emb_proj": "net.down_blocks.1.resnets.0.time_emb_proj",
        "lora_te_text_model_encoder_layers_11_mlp_fc1": "text.encoder.layers.11.mlp.fc1",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_v": f"{block}.attn2.to_v",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": f"{block}.attn2.to_v",
        "text_encoder.text_model.encoder.layers.0.self_attn.k_proj": "text.encoder.layers.0.self_attn.k_proj",
    }.items():
        assert where[theirs] == ours
    usual = [
        k
        for k in where
        if re.fullmatch(r"lora_unet_(down|mid|up)_.*attentions_\d_(proj|transformer)_.*", k)
    ]
    assert len({where[k] for k in usual}) == len(usual) == 192  # the default set of kohya's trainer


# ---- families ------------------------------------------------------------------------------------


def rand(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64
    )


CONV = "net.down_blocks.1.resnets.0.conv1"  # 64 x 32 x 3 x 3
LINEAR = "net.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # 64 x 32
POINT = "net.down_blocks.1.attentions.0.proj_in"  # 64 x 64 x 1 x 1


def one(pipe, layer, tensors, alpha=None):
    """The delta of a file with one layer, in float64 for comparison."""
    name = "lora_unet_" + layer.removeprefix("net.").replace(".", "_")
    found = {f"{name}.{k}": v.float() for k, v in tensors.items()}
    found |= {f"{name}.alpha": torch.tensor(alpha)} if alpha else {}
    deltas = read_lora(memory_file(found), pipe)
    assert list(deltas) == [layer]
    shape = pipe.net.get_submodule(layer.removeprefix("net.")).weight.shape
    d = deltas[layer].delta(tuple(shape))
    assert d.dtype == torch.float32 and d.shape == shape
    return deltas[layer], d.double()


def close(found, want):
    return (found - want).abs().max() < 1e-6 * want.abs().max()


@pytest.mark.parametrize(
    "layer, down, up",
    [
        (LINEAR, (5, 32), (64, 5)),
        (LINEAR, (5, 32, 1, 1), (64, 5, 1, 1)),
        (POINT, (5, 64), (64, 5)),
        (POINT, (5, 64, 1, 1), (64, 5, 1, 1)),
    ],
)
def test_linear_layers_and_pointwise_convolutions_take_matrices_and_kernels(pipe, layer, down, up):
    a, b = rand(*down), rand(*up)
    delta, d = one(pipe, layer, {"lora_down.weight": a, "lora_up.weight": b}, 3.0)
    assert delta.family == "plain" and delta.scale == 3 / 5
    assert close(d.flatten(1), 0.6 * b.flatten(1) @ a.flatten(1))


def test_a_merged_convolution_is_the_chain_of_two_convolutions(pipe):
    a, b, x = rand(5, 32, 3, 3), rand(64, 5, 1, 1), rand(2, 32, 6, 6)
    delta, d = one(pipe, CONV, {"lora_down.weight": a, "lora_up.weight": b}, 10.0)
    assert delta.family == "conv"
    assert close(F.conv2d(x, d, padding=1), 2 * F.conv2d(F.conv2d(x, a, padding=1), b))


def test_a_merged_tucker_factorisation_is_the_chain_of_three_convolutions(pipe):
    a, t, b, x = rand(5, 32, 1, 1), rand(5, 5, 3, 3), rand(64, 5, 1, 1), rand(2, 32, 6, 6)
    delta, d = one(pipe, CONV, {"lora_down.weight": a, "lora_mid.weight": t, "lora_up.weight": b})
    assert delta.family == "tucker" and delta.scale == 1
    assert close(F.conv2d(x, d, padding=1), F.conv2d(F.conv2d(F.conv2d(x, a), t, padding=1), b))


@pytest.mark.parametrize("layer, n", [(LINEAR, 32), (CONV, 288)])
def test_loha_is_the_product_number_by_number_of_two_products(pipe, layer, n):
    w = [rand(64, 3, seed=1), rand(3, n, seed=2), rand(64, 3, seed=3), rand(3, n, seed=4)]
    delta, d = one(
        pipe, layer, dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), w)), 6.0
    )
    assert delta.family == "loha" and delta.scale == 2
    want = torch.stack(
        [
            torch.stack([2 * (w[0][o] @ w[1][:, i]) * (w[2][o] @ w[3][:, i]) for i in range(n)])
            for o in range(64)
        ]
    )
    assert close(d.flatten(1), want)


def test_loha_with_cores(pipe):
    w = {
        f"hada_{k}": rand(*s, seed=i)
        for i, (k, s) in enumerate(
            dict(
                w1_a=(3, 64),
                w1_b=(3, 32),
                w2_a=(3, 64),
                w2_b=(3, 32),
                t1=(3, 3, 3, 3),
                t2=(3, 3, 3, 3),
            ).items()
        )
    }
    _, d = one(pipe, CONV, w, 3.0)
    halves = [
        torch.einsum("mnkl,mo,ni->oikl", w[f"hada_t{i}"], w[f"hada_w{i}_a"], w[f"hada_w{i}_b"])
        for i in (1, 2)
    ]
    assert close(d, halves[0] * halves[1])


def kron(w1, w2):
    """By the definition: entry (o, i) is w1 of the cell times w2 inside the cell; the kernel is
    w2's.
    """
    o2, i2 = w2.shape[:2]
    return torch.stack(
        [
            torch.stack(
                [w1[o // o2, i // i2] * w2[o % o2, i % i2] for i in range(w1.shape[1] * i2)]
            )
            for o in range(len(w1) * o2)
        ]
    )


@pytest.mark.parametrize("split", ["none", "first", "second", "both"])
@pytest.mark.parametrize("layer", [LINEAR, CONV, POINT])
def test_lokr_is_the_kronecker_product(pipe, layer, split):
    kernel = {LINEAR: (), CONV: (3, 3), POINT: (1, 1)}[layer]
    i2, k = (16 if layer == POINT else 8), 9 if layer == CONV else 1
    a, b, c, e = rand(8, 2, seed=1), rand(2, 4, seed=2), rand(8, 2, seed=3), rand(2, i2 * k, seed=4)
    w1, w2 = a @ b, (c @ e).reshape(8, i2, *kernel)
    t = {"lokr_w1": w1} if split in ("none", "second") else {"lokr_w1_a": a, "lokr_w1_b": b}
    t |= {"lokr_w2": w2} if split in ("none", "first") else {"lokr_w2_a": c, "lokr_w2_b": e}
    delta, d = one(pipe, layer, t, 6.0)
    # whole matrices: alpha says nothing
    assert delta.family == "lokr" and delta.scale == (1 if split == "none" else 3)
    assert close(d, delta.scale * kron(w1, w2))


def test_lokr_with_a_core_scales_by_the_rank_of_the_core(pipe):
    t, a, b = rand(2, 2, 3, 3), rand(2, 8, seed=1), rand(2, 8, seed=2)
    delta, d = one(
        pipe, CONV, {"lokr_w1": rand(8, 4), "lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}, 6.0
    )
    assert delta.scale == 3
    assert close(d, 3 * kron(rand(8, 4), torch.einsum("mnkl,mo,ni->oikl", t, a, b)))


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_after_the_block_every_weight_is_the_old_one_to_the_last_bit(
    pipe, factors, tmp_path, dtype
):
    pipe, path = pipe.to(dtype=dtype), kohya(factors, tmp_path)
    before = weights(pipe)
    with lora(pipe, path, 0.8) as inside:
        assert inside is pipe
        changed = weights(pipe)
        assert all(not torch.equal(changed[k + ".weight"], before[k + ".weight"]) for k in factors)
        assert all(v.dtype == dtype for v in changed.values())
    assert all(torch.equal(v, before[k]) for k, v in weights(pipe).items())
    with pytest.raises(KeyError), lora(pipe, path, 0.8):
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in weights(pipe).items())


def test_words_are_read_differently_inside_the_block_only(pipe, factors, tmp_path):
    plain = pipe.embed("a red circle").text
    with lora(pipe, kohya(factors, tmp_path)):
        assert (pipe.embed("a red circle").text - plain).abs().max() > 1e-3
    assert torch.equal(pipe.embed("a red circle").text, plain)


def test_the_order_of_several_loras_does_not_matter(pipe, factors, tmp_path):
    first = read_lora(kohya(factors, tmp_path), pipe)
    other = {
        k: Delta("plain", {"down": torch.randn_like(d.factors["down"]), "up": d.factors["up"]}, 0.3)
        for k, d in list(first.items())[::3]
    }
    with apply_lora(pipe, first, 0.5), apply_lora(pipe, other, -1.2):
        one = weights(pipe)
    with apply_lora(pipe, other, -1.2), apply_lora(pipe, first, 0.5):
        two = weights(pipe)
    assert max((one[k] - two[k]).abs().max() for k in one) < 1e-6
    stacked = {
        k: Delta(
            "plain",
            {
                "down": torch.cat(
                    [
                        0.5 * first[k].scale * first[k].factors["down"],
                        -1.2 * 0.3 * d.factors["down"],
                    ]
                ),
                "up": torch.cat([first[k].factors["up"], d.factors["up"]], 1),
            },
            1.0,
        )
        for k, d in other.items()
    }  # two of rank r are one of rank 2 r
    with apply_lora(pipe, stacked):
        three = weights(pipe)
    assert max((three[k + ".weight"] - one[k + ".weight"]).abs().max() for k in stacked) < 1e-6


def test_strength_zero_is_off_and_strength_minus_one_the_opposite(pipe, factors, tmp_path):
    deltas, before = read_lora(kohya(factors, tmp_path), pipe), weights(pipe)
    with apply_lora(pipe, deltas, 0.0):
        assert all(torch.equal(v, before[k]) for k, v in weights(pipe).items())
    with apply_lora(pipe, deltas, 1.0):
        up = weights(pipe)
    with apply_lora(pipe, deltas, -1.0):
        assert max((up[k] + v - 2 * before[k]).abs().max() for k, v in weights(pipe).items()) < 1e-6


def test_a_delta_for_a_layer_that_is_not_there_leaves_all_as_it_was(pipe):
    good = Delta("plain", {"down": torch.ones(2, 32), "up": torch.ones(64, 2)}, 1.0)
    before = weights(pipe)
    for name in ("net.nowhere.to_q", "vae.conv_in", "conv_in"):
        with (
            pytest.raises(ValueError, match="has no layer"),
            apply_lora(pipe, {LINEAR: good, name: good}),
        ):
            pass
    with (
        pytest.raises(ValueError, match=r"do not multiply|give"),
        apply_lora(pipe, {LINEAR: good, CONV: good}),
    ):
        pass
    assert all(torch.equal(v, before[k]) for k, v in weights(pipe).items())


# ---- refusals ------------------------------------------------------------------------------------


def refused(source, pipe, *words):
    with pytest.raises(ValueError) as e:
        read_lora(source, pipe)
    text = str(e.value)
    assert "\n" not in text and all(w in text for w in words), text
    assert len(text) < 400
    return text


def test_names_without_a_home_are_refused_with_their_number_and_the_first_few(
    pipe, factors, tmp_path
):
    tensors = {f"lora_unet_nowhere_{i}.lora_up.weight": torch.zeros(2, 2) for i in range(7)}
    save_file(diffusers_tensors(factors) | tensors, tmp_path / "x.safetensors")
    refused(
        tmp_path / "x.safetensors",
        pipe,
        "x.safetensors: 7 name(s) have no home in small (152 layer(s) have one)",
        "lora_unet_nowhere_0",
        "lora_unet_nowhere_2",
        "...",
    )


def test_a_file_without_any_lora_is_refused(pipe, tmp_path):
    refused(
        memory_file({"conv_in.weight": torch.zeros(3)}),
        pipe,
        "1 name(s) have no home",
        "0 layer(s)",
    )
    refused(memory_file({}), pipe, "holds no LoRA")
    with pytest.raises(FileNotFoundError):
        read_lora(tmp_path / "absent.safetensors", pipe)


@pytest.mark.parametrize(
    "name, note",
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k.lora_down.weight", "SDXL"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "a transformer"),
        ("lora_unet_mid_block_attentions_0_norm.w_norm", "LyCORIS algorithms other than"),
    ],
)
def test_what_a_homeless_name_suggests_is_said(pipe, name, note):
    refused(memory_file({name: torch.zeros(2, 2)}), pipe, "have no home", note)


def test_a_text_part_without_a_text_tower_is_refused(factors, tmp_path):
    text_only = {k: v for k, v in factors.items() if k.startswith("text")}
    pipe = small()
    pipe.text = None
    refused(kohya(text_only, tmp_path), pipe, "there is no text tower")


@pytest.mark.parametrize(
    "made_for, size, base, own",
    [
        ("sd21", "sd15", "Stable Diffusion 2 (text width 1024)", "768"),
        ("sd15", "sd21", "Stable Diffusion 1 (text width 768)", "1024"),
    ],
)
@pytest.mark.parametrize("part", ["unet", "text", "both"])
def test_a_lora_for_the_other_stable_diffusion_is_refused_in_one_line(
    made_for, size, base, own, part
):
    theirs, tensors = build(made_for, device="meta"), {}
    for layer in ([] if part == "text" else attention_layers(theirs, "net")) + (
        [] if part == "unet" else attention_layers(theirs, "text")
    ):
        where, name = layer.split(".", 1)
        out, n = getattr(theirs, where).get_submodule(name).weight.shape[:2]
        full = ("lora_unet_" if where == "net" else "lora_te_text_model_") + name.replace(".", "_")
        tensors |= {
            f"{full}.lora_down.weight": torch.zeros(1, n),
            f"{full}.lora_up.weight": torch.zeros(out, 1),
        }
    refused(
        memory_file(tensors),
        build(size, device="meta"),
        "was made for " + base,
        f"{size} has text width {own}",
    )


def test_linear_projections_of_stable_diffusion_2_take_the_same_file_as_convolutions(factors):
    conv, linear = small(), small(linear=True)
    tensors = {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": rand(2, 128).float(),
        "unet.mid_block.attentions.0.proj_in.lora_B.weight": rand(128, 2).float(),
    }
    a, b = (
        read_lora(memory_file(tensors), p)["net.mid_block.attentions.0.proj_in"]
        for p in (conv, linear)
    )
    assert torch.equal(a.delta((128, 128, 1, 1))[..., 0, 0], b.delta((128, 128)))


DOWN, UP = (
    "unet.mid_block.attentions.0.proj_in.lora_A.weight",
    "unet.mid_block.attentions.0.proj_in.lora_B.weight",
)


@pytest.mark.parametrize(
    "tensors, words",
    [
        (
            {DOWN: torch.zeros(2, 128), UP: torch.zeros(128, 3)},
            ("do not multiply", "(2, 128)", "(128, 3)", "net.mid_block"),
        ),
        ({DOWN: torch.zeros(2, 128), UP: torch.zeros(128, 1)}, ("do not multiply",)),
        (
            {DOWN: torch.zeros(2, 64), UP: torch.zeros(128, 2)},
            ("give (128, 64)", "the weight is (128, 128, 1, 1)"),
        ),
        ({DOWN: torch.zeros(2, 128)}, ("has only down", "expected one of")),
        ({DOWN: torch.zeros(2, 128), UP: torch.zeros(128)}, ("expected matrices",)),
        (
            {DOWN: torch.full((2, 128), torch.nan), UP: torch.zeros(128, 2)},
            ("NaN or infinite", DOWN),
        ),
        ({DOWN: torch.zeros(2, 128), UP: torch.full((128, 2), torch.inf)}, ("NaN or infinite", UP)),
        (
            {DOWN: torch.zeros(2, 128, dtype=torch.int8), UP: torch.zeros(128, 2)},
            ("torch.int8", "floating-point"),
        ),
        (
            {
                DOWN: torch.zeros(2, 128),
                UP: torch.zeros(128, 2),
                UP[:-13] + "lora_magnitude_vector.weight": torch.zeros(128),
            },
            ("DoRA", "not implemented"),
        ),
        (
            {
                DOWN: torch.zeros(2, 128),
                UP: torch.zeros(128, 2),
                DOWN.replace("unet.", ""): torch.zeros(2, 128),
            },
            ("a second 'down'",),
        ),
        (
            {
                DOWN: torch.zeros(2, 128),
                UP: torch.zeros(128, 2),
                DOWN[:-14] + ".alpha": torch.zeros(3),
            },
            ("alpha", "one number"),
        ),
    ],
    ids=[
        "ranks differ",
        "a rank of one is not stretched",
        "another width",
        "half a pair",
        "a vector",
        "nan",
        "inf",
        "integers",
        "dora",
        "twice",
        "alpha",
    ],
)
def test_factors_that_cannot_be_are_refused(pipe, tensors, words):
    refused(memory_file(tensors), pipe, "<memory>", *words)


def test_the_two_halves_of_loha_are_never_stretched_to_fit(pipe):
    name = "lora_unet_" + LINEAR.removeprefix("net.").replace(".", "_")
    w = {"hada_w1_a": (64, 2), "hada_w1_b": (2, 32), "hada_w2_a": (1, 2), "hada_w2_b": (2, 32)}
    refused(
        memory_file({f"{name}.{k}": torch.zeros(s) for k, s in w.items()}),
        pipe,
        "loha",
        "do not multiply",
    )


@pytest.mark.parametrize(
    "settings, words",
    [
        ("{", "not readable"),
        ("[]", "not readable"),
        ('{"lora_alpha": "8"}', "expected a number"),
        ('{"alpha_pattern": {"nowhere.to_q": 8}}', "'nowhere.to_q' names no layer"),
        ('{"peft_type": "VERA"}', "'VERA' is not implemented"),
        ('{"unet.use_dora": true}', "DoRA is not implemented"),
    ],
)
def test_settings_of_peft_that_cannot_be_followed_are_refused(pipe, settings, words):
    pair = {DOWN: torch.zeros(2, 128), UP: torch.zeros(128, 2)}
    refused(memory_file(pair, {"lora_adapter_metadata": settings}), pipe, words)


def test_a_rank_of_zero_is_refused(pipe):
    pair = {DOWN: torch.zeros(0, 128), UP: torch.zeros(128, 0)}
    refused(memory_file(pair), pipe, "rank 0")


def test_the_text_tower_of_stable_diffusion_1_may_be_called_the_first(pipe, factors, tmp_path):
    path = kohya(factors, tmp_path)
    tensors = load_file(path)
    numbered = {k.replace("lora_te_", "lora_te1_"): v for k, v in tensors.items()}
    assert read_lora(memory_file(numbered), pipe).keys() == read_lora(path, pipe).keys()


def test_names_from_a_compiled_network_and_a_stray_tensor_that_is_dropped(pipe, factors, tmp_path):
    path = peft_folder(factors, tmp_path)
    tensors = load_file(path)
    compiled = {k.replace("down_blocks.", "_orig_mod.down_blocks."): v for k, v in tensors.items()}
    save_file(compiled | {"left.over": torch.ones(1)}, path)
    refused(path, pipe, "1 name(s) have no home", "left.over")
    assert len(read_lora(path, pipe, drop=["left.*"])) == len(tensors) // 2


def test_settings_beside_another_file_are_not_its_own(pipe, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 64}')
    save_file({DOWN: torch.zeros(2, 128), UP: torch.zeros(128, 2)}, tmp_path / "style.safetensors")
    assert [d.scale for d in read_lora(tmp_path / "style.safetensors", pipe).values()] == [1]


@pytest.mark.parametrize("save_as", ["x.safetensors", "x.pt"])
def test_layers_by_number_are_refused_by_name(pipe, save_as, tmp_path):
    path = tmp_path / save_as
    if path.suffix == ".pt":
        torch.save([torch.zeros(3, 2), torch.zeros(2, 3)], path)
        refused(path, pipe, "type list; expected a dictionary of tensors")
    else:
        save_file({"unet:0:up": torch.zeros(3, 2), "unet:0:down": torch.zeros(2, 3)}, path)
        refused(path, pipe, "'unet:0:", "numbers its layer")


def test_a_strength_that_is_no_number_is_refused(pipe, factors, tmp_path):
    with pytest.raises(ValueError, match="strength=nan"):
        merge_lora(pipe, kohya(factors, tmp_path), float("nan"))


def test_alphas_in_a_pickle_that_are_no_tensors_are_not_passed_over(pipe, tmp_path):
    torch.save(
        {DOWN: torch.zeros(2, 128), UP: torch.zeros(128, 2), DOWN[:-14] + ".alpha": 8.0},
        tmp_path / "x.bin",
    )
    refused(tmp_path / "x.bin", pipe, "1 name(s) have no home", ".alpha")
