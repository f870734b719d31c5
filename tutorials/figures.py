"""Every figure of README and tutorials, drawn by the shipped model: `make figures` (about three
minutes on two cores).

    python tutorials/figures.py [NAME ...]        # default: all of them
"""

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import minidiff
from minidiff.cli.demo import demo
from minidiff.core import schedule
from minidiff.core.cfg import cfg_batched
from minidiff.core.denoise import sample
from minidiff.core.process import q_sample
from minidiff.data import shapes
from minidiff.data.shapes import Obj, Scene
from minidiff.data.toy2d import gauss_aniso
from minidiff.editing.prompt_to_prompt import prompt_to_prompt, word_maps
from minidiff.editing.sdedit import sdedit
from minidiff.editing.zecon import zecon
from minidiff.evaluate.evaluate import learning_figure
from minidiff.evaluate.metrics import masked_psnr, psnr
from minidiff.guidance.hybrid_images import hybrid_images, low_pass
from minidiff.guidance.regions import regional, row_of_windows
from minidiff.guidance.visual_anagrams import visual_anagrams
from minidiff.inversion.ddim import ddim_invert
from minidiff.io import grid, write_bytes, write_image
from minidiff.proofs.claims import draw as some_scenes
from minidiff.proofs.repaint import half_holes
from minidiff.proofs.sdedit import blobs
from minidiff.restoration.ddnm import ddnm_sample
from minidiff.restoration.ddrm import ddrm
from minidiff.restoration.operators import measure
from minidiff.restoration.repaint import repaint
from minidiff.weights.store import TINY

HERE = Path(__file__).parent / "figures"
SCENE = Scene(
    (Obj("star", "purple", "large", 1.0, -1.0, 0.05),), "center", "white", "dotted", (3.0, 5.0)
)
PROMPTS = [
    "a red circle on a blue background",
    "a large yellow star on a dotted purple background",
    "a small green cross at the top on a white background",
    "a blue diamond on a striped grey background",
    "a pink triangle on the right on a checkered green background",
    "a orange ring on a black background",
    "a green ring left of a orange square on a white background",
    "a red triangle above a blue square on a yellow background",
]


def draw_examples(pipe) -> None:
    """The picture that README's commands edit, and a mask of the place where it may change."""
    scene = Scene((Obj("circle", "red", "large", 0.0, 0.0, 0.0),), "center", "blue", "plain")
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 12:52, 12:52] = 1
    examples = HERE.parents[1] / "examples"
    write_image(shapes.render(scene)[0], examples / "red_circle.png")
    write_image(2 * mask[0].expand(3, 64, 64) - 1, examples / "red_circle_mask.png")


def draw_demo(pipe) -> None:
    """One scene, three edits, the true answers."""
    demo(HERE / "demo.png", pipe=pipe)


def draw_samples(pipe) -> None:
    """Eight prompts."""
    grid(pipe.generate(PROMPTS, seed=1), PROMPTS, 4, HERE / "samples.png", side=160)


def draw_forward(pipe) -> None:
    """A picture, its latent noised to six times, decoded."""
    z, sch = pipe.encode(shapes.render(SCENE)), pipe.schedule
    ts = (0, 200, 400, 600, 800, 1000)
    x = torch.cat([q_sample(sch, z, t, pipe.noise(1, 0)) for t in ts])
    titles = [f"t = {t}: alpha {sch.alpha[t]:.2f}, sigma {sch.sigma[t]:.2f}" for t in ts]
    grid(pipe.decode(x), titles, 6, HERE / "forward.png")


def draw_doors(pipe) -> None:
    """For the front page of the site, without words: twelve prompts, and a picture on its way into
    the noise.
    """
    prompts = [
        *PROMPTS,
        "a large blue circle on a checkered yellow background",
        "a cyan triangle on a red background",
        "a purple star above a green circle on a dotted white background",
        "a small pink diamond at the bottom on a black background",
    ]
    grid(pipe.generate(prompts, seed=0), cols=4, path=HERE / "door_play.png", side=64)
    z = pipe.encode(shapes.render(SCENE))
    noise = pipe.noise(1, 0)
    states = [q_sample(pipe.schedule, z, t, noise) for t in (0, 150, 300, 450, 600, 750, 900, 1000)]
    grid(pipe.decode(torch.cat(states)), cols=4, path=HERE / "door_read.png", side=64)


def draw_sdedit(pipe) -> None:
    """Blobs to picture at six strengths, one noise."""
    image, guide, prompt = (
        shapes.render(SCENE),
        shapes.render(blobs(SCENE)),
        shapes.short_caption(SCENE),
    )
    strengths = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
    out = [sdedit(pipe, guide, prompt, strength=s, seed=2)[0] for s in strengths]
    titles = [
        f"strength {s}: {psnr(o[None], guide).item():.1f} dB to the guide"
        for s, o in zip(strengths, out)
    ]
    grid(
        [guide[0], *out, image[0]],
        ["guide: blobs", *titles, "the scene that was painted"],
        4,
        HERE / "sdedit.png",
    )


def draw_inversion(pipe) -> None:
    """Round-trip error against steps where the exact answer is known: one Gaussian."""
    sch, mix, steps = schedule.scaled_linear(), gauss_aniso(), (5, 10, 20, 50, 100, 200, 500)
    x0, denoise = mix.sample(256, seed=1), mix.denoise(sch)
    axes = (figure := Figure(figsize=(5, 3.2), dpi=150, layout="constrained")).add_subplot(
        xlabel="steps", ylabel="round-trip error (rms)", xscale="log", yscale="log"
    )
    for k in (0, 1, 3):
        error = []
        for n in steps:
            x_T = ddim_invert(denoise, sch, x0, steps=n, fixed_point=k)[-1]
            back = sample(denoise, sch, x_T, sch.timesteps(n, spacing="trailing"))
            error.append((back - x0).pow(2).mean().sqrt().item())
        axes.plot(steps, error, marker="o", markersize=3, label=f"{k} fixed-point iterations")
    axes.plot(steps, [1.5 / n for n in steps], "k:", label="1 / steps")
    axes.legend(fontsize=8)
    _save(figure, "inversion.png")


def draw_prompt_to_prompt(pipe) -> None:
    """Recolouring at nine settings; likeness to the source where nothing should change."""
    source, target = "a red cross on a blue background", "a cyan cross on a blue background"
    pictures, titles = [], []
    for self_ in (0.0, 0.4, 0.8):
        for cross in (0.0, 0.4, 0.8):
            a, b = prompt_to_prompt(pipe, source, target, cross=cross, self_=self_, seed=27)
            keep = ((a - b).abs().amax(0, keepdim=True) < 0.5).float()[None]
            pictures.append(b)
            titles.append(
                f"cross {cross}, self {self_}: {masked_psnr(b[None], a[None], keep).item():.1f} dB"
            )
    grid([a, *pictures], ["source: " + source, *titles], 5, HERE / "prompt_to_prompt.png", side=160)


def draw_word_maps(pipe) -> None:
    """Where each word was looked at."""
    image, words, maps = word_maps(
        pipe, "a large yellow star on a dotted purple background", seed=1
    )
    shown = [i for i, w in enumerate(words) if len(w) > 2]
    heat = [image[0] * 0.25 - 0.75 + 1.5 * maps[i].expand(3, -1, -1) for i in shown]
    grid(
        [image[0], *[h.clamp(-1, 1) for h in heat]],
        ["picture", *[words[i] for i in shown]],
        4,
        HERE / "word_maps.png",
    )


def draw_magicmix(pipe) -> None:
    """Injection range x mixing factor, with what of it is a ghost and what of the layout is
    kept.
    """
    from minidiff.editing.magicmix import choose, ghosting, layout_likeness, magicmix

    scene = Scene(
        (Obj("square", "red", "large", -1.0, 1.0, 0.1),), "left", "white", "plain", (3.0, 5.0)
    )
    image, target, run = (
        shapes.render(scene),
        "a green star on a white background",
        dict(steps=25, seed=3),
    )
    free = magicmix(pipe, image, target, kmax=1.0, nu=1.0, **run)

    def facts(x):
        return (
            f"ghost {ghosting(x, image, free).item():.2f}, layout "
            f"{layout_likeness(x, image).item():.2f}"
        )

    double = (image + free) / 2
    pictures, titles = (
        [image[0], free[0], double[0]],
        ["source", "prompt alone", f"alpha blend: {facts(double)}"],
    )
    (best,), chosen = choose(pipe, image, target, **run)
    pictures.append(chosen[0])
    titles.append(f"chosen {best}: {facts(chosen)}")
    for kmin, kmax in ((0.1, 0.6), (0.1, 0.9), (0.3, 0.9)):
        for nu in (0.5, 0.65, 0.8, 0.95):
            x = magicmix(pipe, image, target, kmin=kmin, kmax=kmax, nu=nu, **run)
            pictures.append(x[0])
            titles.append(f"{kmax} to {kmin}, nu {nu}: {facts(x)}")
    grid(pictures, titles, 4, HERE / "magicmix.png", side=180)


def draw_hybrid(pipe) -> None:
    """A yellow circle from afar, a red star from nearby: as drawn, and as seen from afar."""
    afar = "a large yellow circle on a blue background"
    nearby = "a small red star on a blue background"
    pictures, titles = [pipe.generate(afar, steps=25)[0]], [afar]
    for cut in (1 / 32, 1 / 24, 1 / 16, 1 / 8):
        pictures.append(hybrid_images(pipe, afar, nearby, cut=cut, steps=25)[0])
        titles.append(f"both, cut 1/{1 / cut:.0f}")
    pictures.append(pipe.generate(nearby, steps=25)[0])
    titles.append(nearby)
    distant = [low_pass(x[None], 6)[0].clamp(-1, 1) for x in pictures]
    grid(
        [*pictures, *distant],
        [*titles, *["from afar"] * len(distant)],
        len(pictures),
        HERE / "hybrid.png",
        side=128,
    )


def draw_anagram(pipe) -> None:
    """Pictures whose negatives are pictures: what tiny-pixel drew, and below it the same times -1,
    each under the class that was asked for.
    """
    pixel = minidiff.load("tiny-pixel")
    opposite = {"red": "cyan", "yellow": "blue", "orange": "blue", "green": "pink"}
    pairs = [
        (color, other, shape) for color, other in opposite.items() for shape in ("circle", "star")
    ]
    above = [f"{color} {shape}" for color, _, shape in pairs]
    below = [f"{other} {shape}" for _, other, shape in pairs]
    seen, upright = visual_anagrams(pixel, above, below, view="negative", steps=25).chunk(2)
    grid(torch.cat([upright, seen]), [*above, *below], len(above), HERE / "anagram.png", side=128)


def draw_regions(pipe) -> None:
    """Canvases three times as wide as the model's own, with an object for each of four windows."""
    asked = (
        ("white", ("red circle", "yellow star", "green square", "purple ring")),
        ("black", ("orange triangle", "blue cross", "pink diamond", "cyan circle")),
        ("grey", ("red square", "green ring", "orange star", "yellow triangle")),
        ("white", ("purple star", "yellow diamond", "pink cross", "cyan square")),
    )
    guided = cfg_batched(pipe.eps, pipe.null(), pipe.scale)
    pictures = []
    for i, (ground, objects) in enumerate(asked):
        said = [f"a large {o} in the center on a plain {ground} background" for o in objects]
        windows = row_of_windows([pipe.embed(text) for text in said], 16, 48)
        x = pipe.start(1, i, size=(64, 192))
        x = sample(regional(guided, windows, (16, 48)), pipe.schedule, x, pipe.timesteps(12))
        pictures.append(pipe.decode(x)[0])
    grid(pictures, None, 1, HERE / "regions.png", side=384)


def draw_zecon(pipe) -> None:
    """Plain white grounds that are to become striped: three pulls, the last without contrast."""
    scenes = [
        Scene((Obj("square", "cyan", "medium", 0.0, 0.0, 0.05),), "center", "white"),
        Scene((Obj("diamond", "purple", "large", 0.0, 0.0, 0.1),), "center", "white"),
        Scene((Obj("ring", "orange", "large", 0.0, 0.0),), "right", "white"),
    ]
    image = shapes.render(scenes)
    before = [shapes.caption(s, size=False, position=False, texture=True) for s in scenes]
    after = [caption.replace("plain", "striped") for caption in before]
    pulls = {
        "weak pull": {"style": 2.0, "content": 0.2, "mse": 0.2},
        "the defaults": {},
        "no contrast": {"content": 0.0, "mse": 0.0},
    }
    pictures = [image]
    titles = ["source"] * len(scenes)
    for name, weights in pulls.items():
        pictures.append(zecon(pipe, image, before, after, steps=15, seed=0, **weights))
        titles += [name] * len(scenes)
    grid(torch.cat(pictures), titles, len(scenes), HERE / "zecon.png", side=128)


def draw_sige(pipe) -> None:
    """A repainted object: what is computed, and how far that is from computing everything."""
    from minidiff.editing.sige import compare

    scene = Scene(
        (Obj("star", "purple", "medium"), Obj("square", "green", "small", 0.0, 1.0, 0.1)),
        "left",
        "white",
        "dotted",
        (3.0, 5.0),
    )
    after = shapes.edit(scene, "color", "orange", index=1)
    image, changed = shapes.render(scene), shapes.render(after)
    pictures, titles = [image[0], changed[0]], ["before", "the square is painted over"]
    source, target = shapes.short_caption(scene), shapes.short_caption(after)
    for tile in (1, 2, 4):
        r = compare(pipe, image, source, target, changed=changed, tile=tile, steps=25)
        pictures.append(r["sparse"][0])
        like = psnr(r["sparse"], r["dense"]).item()
        titles.append(f"tile {tile}: {r['macs']:.0%} of the multiply-adds, {like:.1f} dB to dense")
    cells = torch.nn.functional.interpolate(r["mask"], image.shape[-2:])[0] * 2 - 1
    grid(
        [*pictures, r["dense"][0], cells.expand(3, -1, -1)],
        [*titles, "dense", "what is computed"],
        4,
        HERE / "sige.png",
        side=180,
    )


def draw_restoration(pipe) -> None:
    """What was lost, and what two methods make of it, nothing told: tiny-pixel, one scene; likeness
    to the original.
    """
    pipe, image = minidiff.load("tiny-pixel"), shapes.render(SCENE, 32)
    mask = half_holes([SCENE], 32)
    pictures, titles = [], []
    for task, sigma in (("sr4", 0.0), ("grey", 0.0), ("blur", 0.0), ("inpaint", 0.0), ("sr2", 0.2)):
        given = dict(task=task, mask=mask if task == "inpaint" else None, sigma_y=sigma, seed=3)
        op, y = measure(pipe, image, **given)
        seen, by_ddrm = ddrm(pipe, image, **given)
        rows = {
            f"{task}{', noise ' + str(sigma) if sigma else ''}": seen,
            "DDRM, 20 steps": by_ddrm,
        }
        if sigma:
            told = {"DDNM, noise not told": 0.0, "DDNM+": sigma}
            rows |= {
                name: ddnm_sample(pipe, y, op, sigma_y=value, seed=3)[0]
                for name, value in told.items()
            }
        else:
            rows |= {
                f"DDNM, walked {n}x": ddnm_sample(pipe, y, op, repeats=n, seed=3)[0] for n in (1, 3)
            }
        pictures += [image[0], *rows.values()]
        titles += [
            "original",
            *(f"{k}: {psnr(x[None].clamp(-1, 1), image).item():.1f} dB" for k, x in rows.items()),
        ]
    grid(pictures, titles, 5, HERE / "restoration.png", side=128)


def draw_repaint(pipe) -> None:
    """Half of an object is gone: RePaint with more and more jumps, told nothing; then told the
    caption.
    """
    scenes = [SCENE, *some_scenes(2, seed=7)]
    image, mask = shapes.render(scenes), half_holes(scenes)
    ways = [(1, 25), (2, 45), (3, 65), (5, 105)]
    out = [repaint(pipe, image, mask=mask, repeats=r, seed=7) for r, _ in ways]
    captions = [shapes.short_caption(s) for s in scenes]
    out += [repaint(pipe, image, captions, mask=mask, repeats=2, scale=3.0, seed=7)]
    pictures = [
        x for i in range(3) for x in (image[i], image[i] * (1 - mask[i]), *(o[i] for o in out))
    ]
    titles = ["original", "half of it", *(f"repeats {r}: {n} evaluations" for r, n in ways)]
    titles += ["repeats 2, told the caption, scale 3: 90"]
    grid(pictures, titles * 3, 7, HERE / "repaint.png", side=128)


def draw_learning(pipe) -> None:
    """What the shipped model learned when, from the figures stored beside its weights."""
    learning_figure(TINY / "learning.json", HERE / "learning.png")


def draw_binding(pipe) -> None:
    """What it costs the network, in % of its error, when the two shapes of a caption change
    places.
    """
    rows = [json.loads(line) for line in (TINY / "early.log.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "binding" in r]  # of the second leg, which learned the pairs
    figure = Figure(figsize=(6, 3.2), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        xlabel="training pictures since the tower was told", ylabel="excess error (%)"
    )
    for key, label in (
        ("binding", "the two shapes exchanged"),
        ("gain", "a wrong shape (single objects)"),
    ):
        axes.plot(
            [r["images"] for r in rows],
            [r[key] for r in rows],
            marker="o",
            markersize=3,
            label=label,
        )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _save(figure, "binding.png")


def draw_locality(pipe) -> None:
    """How well three networks find an object in the noise, against the pictures seen; two of the
    trainings lie in locality.json, the third is the shipped transformer's.
    """
    rows = [json.loads(line) for line in (TINY / "dit.log.jsonl").read_text().splitlines()]
    lines = json.loads((HERE / "locality.json").read_text())
    lines["DiT with local filters, 3.5 million (tiny-dit)"] = [
        (r["images"], r["gain"]) for r in rows if "gain" in r
    ]
    figure = Figure(figsize=(6, 3.2), dpi=150, layout="constrained")
    axes = figure.add_subplot(
        xlabel="training pictures seen", ylabel="excess error, wrong shape (%)"
    )
    for label, points in lines.items():
        axes.plot(*zip(*points), marker="o", markersize=3, label=label)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _save(figure, "locality.png")


def draw_fid(pipe) -> None:
    """What moves a Frechet distance although no model changed: the number of samples, and how the
    pictures were kept.
    """
    import numpy as np

    from minidiff.evaluate.metrics import frechet, frechet_gaussians
    from minidiff.evaluate.oracle import oracle

    figure = Figure(figsize=(11, 3.4), dpi=130, layout="constrained")
    bias, rank, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    g = torch.Generator().manual_seed(0)
    draw = lambda n, d: torch.randn(n, d, generator=g, dtype=torch.float64)  # noqa: E731
    for d in (8, 32, 128):
        ns = [n for n in (32, 64, 128, 256, 512, 1024, 2048, 4096) if n >= d]
        got = [sum(frechet(draw(n, d), draw(n, d)) for _ in range(4)) / 4 for n in ns]
        (line,) = bias.loglog(ns, got, "o", markersize=4, label=f"{d} features")
        bias.loglog(ns, [d * (d + 5) / (2 * n) for n in ns], color=line.get_color(), linewidth=1)
    bias.set(title="two samples of ONE Gaussian", xlabel="n of each", ylabel="Frechet distance")
    d, ns = 64, (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    shift, still, eye = (
        torch.zeros(d).index_fill(0, torch.tensor(0), 0.3**0.5),
        torch.zeros(d),
        torch.eye(d),
    )
    for name, scale, move, true in (
        ("A: shifted", 1.0, shift, 0.3),
        ("B: too narrow", 0.9, still, 0.64),
    ):
        samples = [[draw(n, d) * scale + move for _ in range(4)] for n in ns]
        got = [
            sum(frechet_gaussians(x.mean(0), x.T.cov(), still, eye) for x in xs) / 4
            for xs in samples
        ]
        (line,) = rank.loglog(ns, got, "o-", markersize=4, label=name)
        rank.axhline(true, color=line.get_color(), linestyle=":")
    rank.set(title="which model is better?", xlabel="n (exact reference)")
    rngs = [
        (np.random.default_rng(1), "test"),
        (np.random.default_rng(2), "test"),
        (np.random.default_rng(3), "train"),
    ]
    a, other, train = (
        shapes.render([shapes.scene(r, objects=1, split=s) for _ in range(384)]) for r, s in rngs
    )
    size = torch.nn.functional.interpolate
    half = lambda **how: size(size(a, (32, 32), **how), (64, 64), mode="bicubic").clamp(-1, 1)  # noqa: E731
    kept = {
        "8 bits, cut off": ((a + 1) * 127.5).floor() / 127.5 - 1,
        "halved: means": half(mode="area"),
        "halved: bicubic, smoothed": half(mode="bicubic", antialias=True),
        "halved: bilinear, smoothed": half(mode="bilinear", antialias=True),
        "halved: nearest": half(mode="nearest"),
        "JPEG 95": _jpeg(a, 95),
        "JPEG 75": _jpeg(a, 75),
        "JPEG 50": _jpeg(a, 50),
        "OTHER renders, same law": other,
        "the half of them nearest the mean": None,
        "training scenes": train,
    }
    f = {k: oracle().features(x) for k, x in {"": a, **kept}.items() if x is not None}
    near = f["OTHER renders, same law"]
    f["the half of them nearest the mean"] = near[(near - near.mean(0)).norm(dim=1).argsort()[:192]]
    share = {k: 100 * frechet(f[k], f[""]) / f[""].double().var(0).sum().item() for k in kept}
    bars.barh(list(share), list(share.values()))
    bars.bar_label(bars.containers[0], [f"{v:.2g}" for v in share.values()], fontsize=7, padding=2)
    bars.set(
        title="384 renders against themselves",
        xscale="log",
        xlabel="% of the features' variance",
        xlim=(1e-4, 60),
    )
    bars.tick_params(axis="y", labelsize=7)
    bars.invert_yaxis()
    for axes in (bias, rank):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    _save(figure, "fid.png")


def _jpeg(x: torch.Tensor, quality: int) -> torch.Tensor:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    out = []
    for picture in x:
        array = ((picture.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(array).save(b := BytesIO(), "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(b))).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(out)


def _save(figure: Figure, name: str) -> None:
    from io import BytesIO

    figure.savefig(buffer := BytesIO(), format="png")
    write_bytes(buffer.getvalue(), HERE / name)


DRAW = {name[5:]: fn for name, fn in list(globals().items()) if name.startswith("draw_")}

if __name__ == "__main__":
    if unknown := [n for n in sys.argv[1:] if n not in DRAW]:
        sys.exit(f"no figure called {', '.join(unknown)}; there are: {', '.join(DRAW)}")
    model = minidiff.load("tiny")
    for name in sys.argv[1:] or DRAW:
        DRAW[name](model)
        print(name)
