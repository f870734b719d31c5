"""site/: what makes pages out of code and text. Sphinx and a browser are for `make site` and `make
check-site`.
"""

import base64
import gzip
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minidiff
from minidiff.core.process import ddim_step, to_eps
from minidiff.data import shapes
from minidiff.pipe.masks import to_latent_mask

ROOT = Path(__file__).parent.parent


def load(name: str):
    """A file of site/ under a name of its own: `site` itself is Python's."""
    spec = importlib.util.spec_from_file_location(
        f"minidiff_site_{name}", ROOT / f"tutorials/site/{name}.py"
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "tutorials/site"))  # its files import one another
beside, build, front, pages, playground, live, sweeps = (
    load(n) for n in ("beside", "build", "front", "pages", "playground", "live", "sweeps")
)
SOURCE = '''"""A file.

What it is about."""
import os  # for paths

# ---- the parts ----------

# Two lines that
# belong together.
def f(x):
    """Twice x.

    x        a number
             of any size
    """
    y = x + x
    s = "# no comment"
    return y                                                               # not x


def g():  # noqa: E731
    pass
'''
FILES = sorted(pages.code_files())


# ---- code | explanation --------------------------------------------------------------------------


def test_docstrings_and_comments_stand_beside_their_lines():
    rows, bare = beside.taken_apart(SOURCE)
    by = {bare[r.code[0] - 1].strip(): r.says for r in rows if r.code}
    assert by["import os"].startswith("A file.") and by["import os"].endswith("for paths")
    assert by["def f(x):"].startswith("Two lines that\nbelong together.\n\nTwice x.")
    assert by["return y"] == "not x" and by["def g():"] == ""
    assert [r.heading for r in rows if r.heading] == ["the parts"]


def test_a_hash_in_a_string_is_no_comment():
    rows, bare = beside.taken_apart(SOURCE)
    assert '    s = "# no comment"' in bare and not any("no comment" in r.says for r in rows)


@pytest.mark.parametrize("file", FILES)
def test_every_line_of_code_is_shown_once_and_in_order(file):
    text = (ROOT / file).read_text()
    rows, bare = beside.taken_apart(text)
    shown = [n for r in rows for n in r.code if n]
    assert shown == [n for n, line in enumerate(bare, 1) if line.strip()]
    assert len(beside.coloured(bare)) == len(bare) == len(text.splitlines())


@pytest.mark.parametrize("file", FILES)
def test_no_docstring_is_lost(file):
    text = (ROOT / file).read_text()
    rows, _ = beside.taken_apart(text)
    said = "\n".join(r.says for r in rows)
    assert all(doc in said for *_, doc in beside.docstrings(beside.ast.parse(text)))


def test_prose_keeps_the_layout_of_tables_and_escapes_the_rest():
    out = beside.prose(
        "If a < b, `x` is kept.\n\nx        a number\n         of any size\n\nSee arXiv 2208.01626."
    )
    assert "<p>If a &lt; b, <code>x</code> is kept.</p>" in out
    assert (
        '<span class="line" style="--hang:9ch">x        a number</span>' in out
        and "<p>of any" not in out
    )
    assert 'href="https://arxiv.org/abs/2208.01626"' in out


def test_sections_are_headings_of_the_page():
    page = beside.page(SOURCE, "f.py")
    assert page.index("# f.py") < page.index("## The parts") and page.count("{raw} html") == 2


# ---- pages and their links -----------------------------------------------------------------------


def test_every_technique_has_a_card_with_an_idea_and_a_page():
    found = pages.cards()
    assert [c.name for c in found] == list(pages.techniques())
    assert not [c.name for c in found if not c.idea or not c.page]
    assert {c.room for c in found} <= set(pages.ROOMS)


def test_the_gallery_escapes_and_counts():
    card = pages.Card("a", "editing", "A & B", "is x < y?", "minidiff/editing/a.py", "", "")
    out = pages.gallery([card], {card.file})
    assert "A &amp; B" in out and "x &lt; y" in out and "All <small>1</small>" in out
    assert 'href="code/editing/a.html"' in out and "no picture here" in out


@pytest.mark.parametrize(
    "text, want",
    [
        ("[a](ddim.md#why)", "[a](ddim.md#why)"),
        ("![f](../figures/demo.png)", "![f](../figures/demo.png)"),
        (
            "`minidiff/editing/sdedit.py`",
            "[`minidiff/editing/sdedit.py`](../code/editing/sdedit.md)",
        ),
        ("[code](../../minidiff/editing/sdedit.py)", "[code](../code/editing/sdedit.md)"),
        ("[it](../../Makefile) is", "it is"),
        ("[web](https://arxiv.org/abs/1)", "[web](https://arxiv.org/abs/1)"),
        ("[home](../../README.md)", "[home](../index.md)"),
        ("`minidiff/no/such.py`", "`minidiff/no/such.py`"),
        ("```\n`minidiff/editing/sdedit.py`\n```\n", "```\n`minidiff/editing/sdedit.py`\n```\n"),
    ],
)
def test_links_lead_to_pages_of_the_site(text, want):
    assert (
        pages.relinked(text, "tutorials/inversion/ddim.md", {"minidiff/editing/sdedit.py"}) == want
    )


# ---- the front page ------------------------------------------------------------------------------


def line_of(method: str, score: float, task: str) -> dict:
    return {
        "method": method,
        "inputs": "P",
        "score": score,
        "score_ci": [score - 0.1, score + 0.1],
        "nfe": 100,
        "task": task,
    }


def test_the_front_page_takes_from_readme_what_both_say():
    readme = (ROOT / "README.md").read_text()
    text = front.page(readme, None, {"playground.md", "write_it_yourself.md"}, set())
    assert "minidiff holds diffusion models" in text and "make demo" in text
    assert "flowedit(pipe, image" in text and "Which technique" not in text
    with pytest.raises(ValueError, match="no program in Python"):
        front.page(readme.replace("```python", "```"), None, set(), set())


def test_a_door_leads_to_pages_that_are_there():
    html = front.door(front.DOORS[0], {"playground.md"})
    assert 'href="playground.html"' in html and "leaderboard.html" not in html
    for door in front.DOORS:
        assert door.text or (ROOT / "tutorials/figures" / door.picture).is_file()


def test_the_best_are_those_told_words_alone_with_the_control_below():
    facts = {
        "methods": [
            line_of("sdedit", 0.4, pages.WORDS_ALONE[1]),
            line_of("sdedit+mask", 0.9, "told the exact mask"),
            line_of("flowedit", 0.6, pages.WORDS_ALONE[0]),
            line_of("inverted", 0.5, "controls"),
        ]
    }
    html = front.best(facts, set())
    order = [html.index(f"<code>{name}<") for name in ("flowedit", "sdedit", "inverted")]
    assert order == sorted(order) and "sdedit+mask" not in html


def test_every_page_has_a_place_in_the_navigation():
    known = {"index.md", "playground.md", "editing/sdedit.md", "new.md", "odd/page.md"}
    text = "\n".join(build.navigation(known | {"code/a.md", "notebooks/01.md"}))
    for page in known - {"index.md"}:
        assert text.count(page) == 1
    assert "code/a.md" not in text and "leaderboard.md" not in text


# ---- the leaderboard -----------------------------------------------------------------------------


def test_the_board_sorts_by_plain_numbers_and_marks_what_is_missing():
    line = {"method": "a<b", "inputs": "P", "score": 0.1, "T": 0.5, "T_ci": [0.25, 0.75]}
    out = pages.board({"methods": [line | {"seconds": None}]})
    assert '<td data-v="50">50 <small>25 to 75</small></td>' in out
    assert "a&lt;b" in out and out.count('data-v=""') == len(pages.COLUMNS) - 4


def test_the_board_has_the_best_first_and_buttons_for_its_tasks():
    methods = [line_of("copy", 0.0, "controls"), line_of("b", 0.7, "told an instruction")]
    out = pages.board({"methods": methods})
    assert out.index("<code>b<") < out.index("<em><code>copy<")
    assert pages.tasks({"methods": methods}).count("<button") == 3
    assert pages.tasks({"methods": methods[:1]}) == ""


def test_the_legend_explains_every_column():
    assert pages.legend().count("<dt>") == len(pages.COLUMNS) and all(c.says for c in pages.COLUMNS)


def test_no_bench_says_how_to_make_one():
    assert "minidiff bench --split test" in pages.leaderboard(
        None
    ) and "<table" not in pages.leaderboard(None)


# ---- the playground: what moves ------------------------------------------------------------------

SWEEPS = json.loads(playground.SWEEPS.read_text())


def test_every_sweep_is_told_and_every_told_one_is_there():
    assert [s["name"] for s in SWEEPS] == list(playground.TOLD)
    assert all((ROOT / t.page).is_file() for t in playground.TOLD.values())


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda s: s["name"])
def test_a_strip_holds_a_cell_for_every_setting(sweep):
    columns, rows = playground.shape(sweep, playground.TOLD[sweep["name"]])
    values = [len(k["values"]) for k in sweep["knobs"]]
    for scene in sweep["scenes"]:
        assert Image.open(playground.SWEEPS.parent / scene["file"]).size == (
            64 * columns,
            64 * rows,
        )
        assert [len(row) for row in scene["frames"]] == [values[0]] * (
            values[1] if len(values) > 1 else 1
        )
        assert all(f["says"] and f["y"] == f["y"] for row in scene["frames"] for f in row)


def test_neighbouring_settings_are_different_pictures():
    for sweep in SWEEPS:
        for scene in sweep["scenes"]:
            strip = Image.open(playground.SWEEPS.parent / scene["file"]).convert("RGB")
            n = len(sweep["knobs"][0]["values"])
            cells = [strip.crop((64 * i, 0, 64 * i + 64, 64)).tobytes() for i in range(n)]
            assert all(a != b for a, b in pairwise(cells)), scene["file"]


@pytest.mark.parametrize(
    "name, column, scenes",
    [
        ("noise", 0, "SCENES"),
        ("steps", 1, "SCENES"),
        ("guidance", 0, "SCENES"),
        ("inversion", 0, "SCENES"),
        ("strength", 0, "EDITED"),
        ("injection", 0, "EDITED"),
    ],
)
def test_the_truth_beside_the_pictures_is_the_render(name, column, scenes):
    """A palette must not lose the colour of the one thing that differs."""
    files = [x["file"] for x in next(s for s in SWEEPS if s["name"] == name)["scenes"]]
    for file, scene in zip(files, getattr(sweeps, scenes)):
        strip = torch.from_numpy(
            np.array(Image.open(playground.SWEEPS.parent / file).convert("RGB"))
        ).permute(2, 0, 1)
        shown = strip[:, -64:, 64 * column : 64 * column + 64] / 127.5 - 1
        assert (shown - shapes.render(scene)[0]).abs().max() < 2 * 16 / 255


def test_the_strips_are_small():
    assert sum(f.stat().st_size for f in playground.SWEEPS.parent.iterdir()) < 600_000


def test_the_page_begins_at_the_settings_it_names_and_says_their_words():
    page = playground.page(SWEEPS, "", set(pages.code_files()))
    for s in SWEEPS:
        block = page[page.index(f'id="sweep-{s["name"]}"') :]
        at = [k["start"] for k in s["knobs"]]
        said = s["scenes"][0]["frames"][at[1] if len(at) > 1 else 0][at[0]]["says"]
        assert f">{playground.html.escape(said)}</p>" in block
        assert (
            f'--column:{at[0]};--row:{at[1] if len(at) > 1 else 0}"'
            in block[: block.index("</figure>")]
        )
    # and two of the form that draws, three of the one that edits, two of the one that trains
    assert page.count('type="range"') == sum(len(s["knobs"]) for s in SWEEPS) + 2 + 3 + 2
    for form in ("draw", "edit", "train"):
        assert f'id="form-{form}"' in page
    for script in playground.SCRIPTS.split("_static/")[1:]:
        assert (ROOT / "tutorials/site/static" / script.split('"')[0]).is_file()


def test_the_page_names_the_guidance_of_its_pictures_and_of_the_model():
    """The model's own guidance may change; the pictures of the sweeps keep what they were drawn
    with.
    """
    page = playground.page(SWEEPS, "", set(pages.code_files()))
    default = f"{minidiff.load('tiny').scale:g}"
    ranges = re.findall(r'<input name="scale"[^>]* value="([^"]*)"', page)
    assert ranges == [default, default]
    assert f"1 is the model itself, {default} the default" in page
    other = [s | {"scale": 4.5} if s["name"] == "steps" else s for s in SWEEPS]
    assert "more steps, at guidance 4.5." in playground.page(other, "", set(pages.code_files()))
    assert "{" not in "".join(
        t.does.format(scale="1", default="2") for t in playground.TOLD.values()
    )


def test_the_scenes_one_can_paint_on_are_the_renders():
    form = playground.edit_form()
    facts = json.loads(form.split('<script type="application/json">')[1].split("</script>")[0])
    for i, scene in enumerate(sweeps.SCENES):
        pixels = np.frombuffer(base64.b64decode(facts["scenes"][f"scene-{i + 1}"]), dtype=np.uint8)
        picture = torch.tensor(pixels.copy()).view(3, 64, 64) / 127.5 - 1
        assert (picture - shapes.render(scene)[0]).abs().max() <= 1 / 255 + 1e-6
    red = torch.tensor(facts["colours"]["red"])
    assert torch.allclose(red, 2 * torch.tensor(shapes.COLORS["red"]) - 1, atol=1e-4)


def test_a_build_without_the_model_says_why():
    page = playground.page(SWEEPS, "npm was <not> found", set())
    assert "npm was &lt;not&gt; found" in page
    assert "form-draw" not in page and "form-edit" not in page
    assert 'id="form-train"' in page  # which needs no model


# ---- the playground: what draws ------------------------------------------------------------------


def test_the_words_on_the_page_are_the_worlds():
    named = set(re.findall(r"[a-z]+", " ".join(which for _, which in playground.WORDS)))
    assert named | {"a", "background"} == set(shapes.VOCAB)
    tok = minidiff.load("tiny").tokenizer
    assert all(tok.length(e) <= tok.context for e in playground.EXAMPLES)


def test_a_package_with_another_hash_is_refused():
    right = base64.b64encode(hashlib.sha512(b"archive").digest()).decode()
    assert live.checked(b"archive", right) == b"archive"
    with pytest.raises(ValueError, match="expected"):
        live.checked(b"archivE", right)


def test_the_runtime_is_packed_out_of_the_archive_without_npm(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / f"{live.PACKAGE}-{live.VERSION}.tgz", "w:gz") as tar:
        for name in (live.API, live.GLUE, live.WASM):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(live, "checked", lambda archive: archive)
    monkeypatch.setattr(shutil, "which", lambda name: pytest.fail("npm is not needed"))
    text = live.runtime(tmp_path)
    packed = json.loads(text.split("globalThis.minidiffRuntime = ")[1].rstrip(";\n"))
    assert (
        text.startswith(live.API)
        and gzip.decompress(base64.b64decode(packed["wasm"])).decode() == live.WASM
    )


def test_without_npm_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(live.Missing, match="npm was not found"):
        live.make(tmp_path)


needs_node = pytest.mark.skipif(
    not shutil.which("node"), reason="no Node.js here; `make check-site` runs the same in a browser"
)


def in_node(scripts: tuple[str, ...], program: str, before: str = "") -> dict:
    """What `program` prints, as JSON, after these scripts of the page."""
    texts = [(ROOT / f"tutorials/site/static/{name}.js").read_text() for name in scripts]
    done = subprocess.run(
        ["node", "-"],
        input="\n".join([before, *texts, program]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def told(pipe) -> dict:
    """What the page tells the loop of a model: its words and its schedule."""
    return {
        "words": pipe.tokenizer.speller.names,
        "bos": 1,
        "eos": 2,
        "pad": 0,
        "context": pipe.tokenizer.context,
        "alpha": pipe.schedule.alpha.tolist(),
        "sigma": pipe.schedule.sigma.tolist(),
    }


@needs_node
def test_the_loop_in_javascript_is_ours():
    """Tokens, times, guidance and steps of diffusion.js, around a made up network, against
    Python's.
    """
    pipe = minidiff.load("tiny")
    prompt, negative, steps, scale = "A small, red circle on the left!", "star", 16, 2.5
    x = pipe.noise(1, seed=5)
    model = told(pipe)
    script = (
        (ROOT / "tutorials/site/static/chance.js").read_text()
        + (ROOT / "tutorials/site/static/diffusion.js").read_text()
        + f"""
        const model = {json.dumps(model)};
        const nets = {{ text: async ids => ids,                               // v = a row's own share of x, times and words
                        unet: async (x, t, ids) => x.map((v, i) => {{
                          const row = i < x.length / 2 ? 0 : 1, words = ids.slice(20 * row, 20 * row + 20);
                          return v * (t / 1000 - .3) + words.reduce((a, b) => a + b) / 100; }}),
                        vae: async z => z }};
        let failure = "";
        try {{ diffusion.tokens("a red dinosaur", model); }} catch (e) {{ failure = e.message; }}
        diffusion.draw({{ prompt: {json.dumps(prompt)}, negative: "{negative}", latents: {x.flatten().tolist()},
                          steps: {steps}, scale: {scale}, nets, model }})
          .then(z => console.log(JSON.stringify({{
            z: [...z], failure, tokens: diffusion.tokens({json.dumps(prompt)}, model),
            noise: [...diffusion.noise(7, 20000)], same: diffusion.noise(7, 3)[2] === diffusion.noise(7, 5)[2] }})));
        """
    )
    got = json.loads(
        subprocess.run(
            ["node", "-"], input=script, capture_output=True, text=True, check=True
        ).stdout
    )
    ids = pipe.tokenizer([negative, prompt])
    assert (
        got["tokens"] == ids[1].tolist()
        and "dinosaur" in got["failure"]
        and "circle" in got["failure"]
    )
    ts = pipe.timesteps(steps)
    for t, s in pairwise(ts):
        e0, e1 = (
            to_eps(pipe.schedule, x, x * ((t - 1) / 1000 - 0.3) + row.sum() / 100, t, "v")
            for row in ids
        )
        x = ddim_step(pipe.schedule, x, e0 + scale * (e1 - e0), t, s)
    assert torch.allclose(torch.tensor(got["z"]), x.flatten(), atol=1e-4)
    noise = torch.tensor(got["noise"])
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03 and got["same"]


@needs_node
@pytest.mark.parametrize(
    "strength, masked", [(0.58, False), (1.0, False), (0.58, True), (1.0, True)]
)
def test_redrawing_in_javascript_is_ours(strength, masked):
    """SDEdit and inpainting of diffusion.js, around made up networks, against Python's steps."""
    pipe = minidiff.load("tiny")
    steps, scale = 50, 2.0  # .58 of 50 are 28 steps
    noise, kept = pipe.noise(1, seed=5), pipe.noise(1, seed=6)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 10:31, 20:50] = 1
    picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    numbers = told(pipe) | {
        "shape": pipe.shape,
        "factor": pipe.factor,
        "scale": scale,
    }
    given = {
        "picture": picture.flatten().tolist(),
        "mask": mask.flatten().tolist() if masked else None,
        "noise": noise.flatten().tolist(),
        "strength": strength,
        "steps": steps,
        "prompt": "star",
    }
    got = in_node(
        ("chance", "diffusion"),
        f"""
        const model = {json.dumps(numbers)}, kept = {json.dumps(kept.flatten().tolist())};
        const nets = {{ text: async ids => ids, encoder: async picture => Float32Array.from(kept),
                        unet: async (x, t) => x.map((v, i) => v * (t / 1000 - (i < x.length / 2 ? .3 : .4))),
                        vae: async z => Float32Array.from({{ length: 3 * 64 * 64 }}, (_, i) => z[i % z.length]) }};
        diffusion.redraw({{ ...{json.dumps(given)}, nets, model }}).then(z => console.log(JSON.stringify([...z])));
        """,
    )
    ts = pipe.timesteps(steps, strength)
    x = noise if masked and strength == 1 else pipe.noised(kept, ts[0], noise)
    inside = to_latent_mask(mask, pipe)
    assert 0 < inside.mean() < 1
    for t, s in pairwise(ts):
        e0, e1 = (
            to_eps(pipe.schedule, x, x * ((t - 1) / 1000 - less), t, "v") for less in (0.3, 0.4)
        )
        x = ddim_step(pipe.schedule, x, e0 + scale * (e1 - e0), t, s)
        if masked:
            x = inside * x + (1 - inside) * pipe.noised(kept, s, noise)
    want = x.flatten().repeat(12).view(1, 3, 64, 64)
    if masked:
        want = mask * want + (1 - mask) * picture
    assert torch.allclose(torch.tensor(got).view_as(want), want, atol=1e-4)


@needs_node
def test_redrawing_less_than_a_step_is_refused():
    said = in_node(
        ("chance", "diffusion"),
        """diffusion.redraw({ strength: .05, steps: 10, model: { alpha: Array(1001) }, picture: [] })
             .catch(error => console.log(JSON.stringify(error.message)));""",
    )
    assert "less than one step" in said


# ---- the playground: what is set, in the address -------------------------------------------------


@needs_node
def test_settings_go_into_the_address_and_come_back():
    program = """
        const input = (value, min, max, step) => ({ value, min, max, step });
        const [scale, seed, words] = [input("2", "0", "12", "0.5"), input("0", "0", "99", "1"), { value: "a" }];
        let mode = "stroke";
        state.add("draw", { prompt: state.words(words), scale: state.number(scale) });
        state.add("edit", { seed: state.number(seed),
                            mode: state.choice(["stroke", "mask"], () => mode, name => { mode = name; }) });
        const out = { untouched: state.hash() };
        words.value = "a & b=#%?";
        scale.value = "3.5";
        mode = "mask";
        state.place = "draw";
        out.hash = state.hash();
        [words.value, scale.value, mode] = ["a", "2", "stroke"];
        out.wrong = state.read(out.hash);
        out.back = [words.value, scale.value, seed.value, mode];
        out.bad = state.read("#edit?seed=1e9&mode=both&draw.scale=2.7&draw.scal=1&__proto__.x=1&constructor=2");
        out.then = [scale.value, seed.value, mode];
        out.place = [state.read("#edit"), state.read("#elsewhere?x=1"), state.read("")];
        console.log(JSON.stringify(out));
    """
    page = "globalThis.addEventListener = () => {}; globalThis.document = { getElementById: () => ({ scrollIntoView() {} }) };"
    got = in_node(("state",), program, page)
    assert got["untouched"] == "#"
    assert got["hash"].startswith("#draw?prompt=a+") and "edit.mode=mask" in got["hash"]
    assert "seed" not in got["hash"]  # what stands as it was is left out
    assert got["wrong"] == [] and got["back"] == ["a & b=#%?", "3.5", "0", "mask"]
    assert len(got["bad"]) == 6 and got["then"] == ["2.5", "99", "mask"]
    assert [len(wrong) for wrong in got["place"]] == [0, 1, 0]


# ---- the playground: a model of the plane --------------------------------------------------------

LETTER = "[[[-1.2, -1.4], [-1.2, 1.4], [1.2, -1.4], [1.2, 1.4]]]"


@needs_node
def test_the_gradient_in_javascript_is_that_of_finite_differences():
    """Every weight of a small network, at every layer."""
    got = in_node(
        ("chance", "train2d"),
        """
        const net = train2d.network(4, 1), room = train2d.room(net, 8);
        const { bell } = chance(3), draw = n => Float64Array.from({ length: n }, bell);
        const [x, eps, ts] = [draw(16), draw(16), Float64Array.from({ length: 8 }, (_, i) => 1 + 25 * i)];
        const loss = () => { train2d.forward(net, room, x, ts); return train2d.backward(net, room, eps); };
        loss();
        const exact = [...net.gradient], around = exact.map((_, i) => {
          const here = net.weights[i], h = 1e-5;
          net.weights[i] = here + h;
          const above = loss();
          net.weights[i] = here - h;
          const below = loss();
          net.weights[i] = here;
          return (above - below) / (2 * h);
        });
        console.log(JSON.stringify({ exact, around, layers: net.layers.map(l => l.weight.length + l.bias.length) }));
        """,
    )
    exact, around = torch.tensor(got["exact"]), torch.tensor(got["around"])
    assert len(exact) == sum(got["layers"]) and (exact.abs() > 1e-6).double().mean() > 0.95
    assert (exact - around).abs().max() < 1e-7 * max(1, exact.abs().max())


@needs_node
@pytest.mark.parametrize("data", ["moons", "spiral", "checkerboard", "letter"])
def test_a_training_in_javascript_leaves_few_strays(data):
    """About ten seconds of a busy core: what the page does when one presses Train."""
    got = in_node(
        ("chance", "train2d"),
        f"""
        const data = train2d.data("{data}", 0, {LETTER}), run = train2d.begin({{ data }});
        const room = train2d.room(run.net, train2d.samples);
        const strays = () => train2d.strays([...train2d.sample(run.net, room, 3, train2d.samplingSteps)].at(-1), data);
        const before = strays();
        while (run.step < train2d.steps) train2d.trainStep(run);
        const mean = values => values.reduce((a, b) => a + b) / values.length;
        console.log(JSON.stringify({{ before, after: strays(), first: mean(run.losses.slice(0, 25)),
                                      last: mean(run.losses.slice(-250)), own: train2d.strays(data, data) }}));
        """,
    )
    print(data, got)
    assert got["own"] == 0 and got["before"] > 0.3
    assert got["after"] < 0.08
    assert got["last"] < 0.8 * got["first"]  # it cannot fall to 0
