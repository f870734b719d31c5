"""Opens the playground in a real browser and fails if anything on it is wrong; check.py calls it.

    python tutorials/site/check_playground.py [SITE]               # this page alone

The sliders change picture and number, by keys, too. The model draws from given noise what Python
draws, says which words it does not know, stops, and needs at most DRAW_SECONDS for 20 steps. What
was painted or masked by hand becomes what Python makes of the same painting. A training in the page
ends with at most MOST_STRAYS, on a data set and on a letter drawn by hand. What is set is in the
address, and a page that is opened with the address is set the same; bad values are named.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRAW_SECONDS, TOLERANCE = 10, 1e-3  # of 20 steps; of pixels in [-1, 1]
MOST_STRAYS = 0.08  # of 500 samples in 20 steps, after a training
SECONDS = 180  # for what needs many steps, on a machine that does other things, too


def slides(page, url: str) -> list[str]:
    """What is wrong with the playground's sliders."""
    page.goto(url)
    wrong = []
    now = """box => { const c = getComputedStyle(box.querySelector(".cell[data-kind=now]"));
                      return [c.backgroundImage, c.backgroundPosition].join(" "); }"""
    sweeps = page.locator(".sweep")
    for i in range(sweeps.count()):
        box = sweeps.nth(i)
        name, says = box.get_attribute("id"), box.locator(".says")
        for knob in box.locator("input[type=range]").all():
            seen = []
            knob.focus()
            page.keyboard.press("Home")
            for _ in range(int(knob.get_attribute("max")) + 1):
                dot = box.locator("circle")
                seen.append(
                    (
                        box.evaluate(now),
                        dot.get_attribute("cx") + dot.get_attribute("cy"),
                        says.inner_text(),
                        knob.get_attribute("aria-valuetext"),
                    )
                )
                page.keyboard.press("ArrowRight")
            for what, values in zip(
                ("picture", "dot", "value"), (*list(zip(*seen))[:2], list(zip(*seen))[3])
            ):
                if len(set(values)) < len(values):
                    wrong.append(
                        f"{name}: the {what} does not change with every step of the slider: "
                        f"{values}"
                    )
            if len({s[2] for s in seen}) < 2 or not all(s[2] for s in seen):
                wrong.append(f"{name}: the words do not change")
        before = box.evaluate(now), says.inner_text()
        scenes = box.locator(".scenes button")
        scenes.last.click()
        if box.evaluate(now) == before[0] or scenes.last.get_attribute("aria-pressed") != "true":
            wrong.append(f"{name}: another scene is the same picture")
    broken = page.evaluate("""() => Promise.all([...document.querySelectorAll(".sweep script")].flatMap(
        s => JSON.parse(s.textContent).scenes.map(x => { const i = new Image(); i.src = `_static/playground/${x.file}`;
            return i.decode().then(() => i.naturalWidth % 64 + i.naturalHeight % 64, () => 1); })))
        .then(x => x.filter(Boolean).length)""")
    return wrong + ([f"{broken} strips do not load or are not made of cells"] if broken else [])


def draws(page, url: str) -> tuple[list[str], list[str]]:
    """(what is wrong with the model in the browser, what was measured)."""
    import minidiff

    pipe, prompt = minidiff.load("tiny"), "a red circle on a blue background"
    noise = pipe.noise(1, seed=3)
    page.goto(url)
    form, wrong, told = page.locator("#form-draw"), [], []
    status = form.locator(".status")
    if float(form.locator("[name=scale]").input_value()) != pipe.scale:
        wrong.append(f"the form begins with another guidance than the model's {pipe.scale}")
    form.locator("[name=prompt]").fill("a red dinosaur")
    form.locator("[name=prompt]").press("Enter")
    page.wait_for_selector("#form-draw.wrong")
    if not page.evaluate("Boolean(live.nets)"):
        return [f"the model does not load: {status.inner_text()}"], []
    if "dinosaur" not in status.inner_text() or "circle" not in status.inner_text():
        wrong.append(f"an unknown word is answered by: {status.inner_text()!r}")
    for steps in (50, 20):  # the first picture, in which the browser still
        got = page.evaluate(
            """async ([prompt, latents, steps]) => {       // compiles, is the slower one
            const at = [performance.now()];
            const r = await live.draw({ prompt, latents, steps, after: () => at.push(performance.now()) });
            return { picture: [...r.picture], seconds: r.seconds, step: Math.min(...at.slice(1).map((t, i) => t - at[i])) };
            }""",
            [prompt, noise.flatten().tolist(), steps],
        )
        want = pipe.generate(prompt, noise=noise, steps=steps)
        off = (want.flatten() - want.new_tensor(got["picture"])).abs().max().item()
        undisturbed = steps * got["step"] / 1000  # others may be using the machine, too
        told.append(
            f"{steps} steps in {got['seconds']:.1f} s ({undisturbed:.1f} s at the pace of the "
            "fastest step), "
            f"{off:.0e} from Python's picture"
        )
        if not off < TOLERANCE:
            wrong.append(
                f"{steps} steps from the same noise: {off:.1e} from Python's picture, "
                f"{TOLERANCE} allowed"
            )
        if steps == 20 and undisturbed > DRAW_SECONDS:
            wrong.append(
                f"20 steps take {undisturbed:.1f} s at the pace of the fastest, "
                f"{DRAW_SECONDS} s allowed"
            )
    form.locator("[name=prompt]").fill("a large yellow star on a black background")
    form.locator("[name=draw]").click()
    form.locator(".kept canvas").wait_for()
    pixels = form.evaluate("""form => { const c = form.querySelector(".stage canvas");
        return [...c.getContext("2d").getImageData(0, 0, 64, 64).data]; }""")
    picture = noise.new_tensor(pixels).view(1, 64, 64, 4).permute(0, 3, 1, 2)[:, :3] / 127.5 - 1
    from minidiff.evaluate.oracle import oracle

    found = oracle().read(picture)[0]
    if [(o["shape"], o["color"]) for o in found["objects"]] != [("star", "yellow")] or found[
        "background"
    ] != "black":
        wrong.append(f"asked for a yellow star on black, the oracle reads {found}")
    form.locator("[name=draw]").click()
    form.locator("[name=stop]").click()
    page.wait_for_function("document.querySelector('#form-draw .status').textContent === 'stopped'")
    if form.locator(".kept figure").count() != 1:
        wrong.append("a stopped picture was kept")
    return wrong, told


def painted(page, form) -> list[str]:
    """What is wrong with brush, keys, undo, clear; leaves a blot of the preset on the ground."""
    pad, wrong = form.locator("canvas.pad"), []
    picture = "form => [...form.painting.picture].join()"
    blank = form.evaluate(picture)
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 120, steps=4)
    page.mouse.up()
    by_mouse = form.evaluate(picture)
    if by_mouse == blank:
        wrong.append("the mouse does not paint")
    form.locator("[name=undo]").click()
    if form.evaluate(picture) != blank:
        wrong.append("undo does not take a whole stroke back")
    pad.focus()
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        page.keyboard.press(key)
    if form.evaluate(picture) in (blank, by_mouse):
        wrong.append("the space bar does not paint")
    form.locator("[name=clear]").click()
    if form.evaluate(picture) != blank:
        wrong.append("clear does not bring the start picture back")
    form.locator("[name=preset]").click()
    if form.evaluate(picture) == blank:
        wrong.append("the button does not paint")
    return wrong


def touched(page, url: str) -> list[str]:
    """What is wrong with painting by a finger."""
    context = page.context.browser.new_context(
        has_touch=True, viewport={"width": 390, "height": 844}
    )
    finger, wrong = context.new_page(), []
    finger.on("pageerror", lambda e: wrong.append(f"{e}"))
    finger.goto(url)
    pad = finger.locator("#form-edit canvas.pad")
    pad.scroll_into_view_if_needed()
    before = pad.evaluate("pad => [...pad.closest('form').painting.picture].join()")
    box = pad.bounding_box()
    finger.touchscreen.tap(box["x"] + 100, box["y"] + 100)
    after = pad.evaluate("pad => [...pad.closest('form').painting.picture].join()")
    context.close()
    return [*wrong, "a finger does not paint"] if before == after else wrong


def edits(page, url: str) -> tuple[list[str], list[str]]:
    """(what is wrong with painting and masking, what was measured)."""
    import torch

    import minidiff
    from minidiff.core.denoise import noise
    from minidiff.editing.inpaint import inpaint
    from minidiff.editing.sdedit import sdedit
    from minidiff.evaluate.oracle import oracle

    pipe = minidiff.load("tiny")
    page.goto(url)
    form = page.locator("#form-edit")
    wrong, told = painted(page, form), []
    wrong += touched(page, url)
    status = form.locator(".status")

    def finished() -> None:
        page.wait_for_function(
            "document.querySelector('#form-edit [name=edit]').disabled === false",
            timeout=1000 * SECONDS,
        )

    def result() -> torch.Tensor:
        pixels = form.locator("canvas.result").evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, 64, 64).data]"
        )
        return torch.tensor(pixels).view(1, 64, 64, 4).permute(0, 3, 1, 2)[:, :3] / 127.5 - 1

    # a blot becomes a circle
    form.locator("[name=edit]").click()
    finished()
    found = oracle().read(result())[0]
    if [(o["shape"], o["color"]) for o in found["objects"]] != [("circle", "red")]:
        wrong.append(f"a red blot is to be a red circle, the oracle reads {found}")
    # from the same noise, as Python does
    start = torch.tensor(form.evaluate("form => [...form.painting.picture]")).view(1, 3, 64, 64)
    noises = noise((1, *pipe.shape), 3)
    prompt = "a red circle on a white background"
    redrawn = """async ([picture, mask, prompt, noise, strength, steps]) => {
        const options = { picture: Float32Array.from(picture), mask, prompt, noise, strength, steps };
        return [...(await live.redraw(options)).picture]; }"""

    def compare(what: str, want: torch.Tensor, picture, mask, words: str, strength: float) -> None:
        asked = [picture.flatten().tolist(), mask, words, noises.flatten().tolist(), strength, 25]
        got = torch.tensor(page.evaluate(redrawn, asked))
        off = (want.flatten() - got).abs().max().item()
        told.append(f"{what} {off:.0e} from Python's picture")
        if not off < TOLERANCE:
            wrong.append(f"{what}: {off:.1e} from Python's picture, {TOLERANCE} allowed")

    for strength in (0.7, 1.0):
        want = sdedit(pipe, start, prompt, strength=strength, steps=25, seed=3)
        compare(f"SDEdit at {strength}", want, start, None, prompt, strength)
    # a mask over a rendered scene
    form.locator("[name=start]").select_option("scene-1")
    form.locator("[data-field=mode] button[value=mask]").click()
    if form.locator("[name=strength]").input_value() != "1":
        wrong.append("masking does not begin at strength 1")
    form.locator("[name=edit]").click()
    page.wait_for_selector("#form-edit.wrong")
    if "masked" not in status.inner_text():
        wrong.append(f"an empty mask is answered by {status.inner_text()!r}")
    form.locator("[name=preset]").click()
    words = "a green square on a white background"
    form.locator("[name=prompt]").fill(words)
    mask = form.evaluate("form => [...form.painting.mask]")
    if not 0 < sum(mask) < len(mask):
        wrong.append(f"the preset masks {sum(mask)} pixels")
    start = torch.tensor(form.evaluate("form => [...form.painting.picture]")).view(1, 3, 64, 64)
    form.locator("[name=edit]").click()
    finished()
    outside = 1 - torch.tensor(mask, dtype=torch.float).view(1, 1, 64, 64)
    moved = ((result() - start) * outside).abs().max().item()
    if moved > 1 / 127:
        wrong.append(f"outside the mask pixels moved by {moved:.2f}")
    if ((result() - start) * (1 - outside)).abs().max().item() < 0.2:
        wrong.append("inside the mask nothing was drawn")
    inside = 1 - outside
    for strength in (0.8, 1.0):
        want = inpaint(pipe, start, words, mask=inside, strength=strength, steps=25, seed=3)
        compare(f"mask at {strength}", want, start, mask, words, strength)
    # what was drawn last can be painted on
    form.locator("[name=start]").select_option("drawn")
    taken = torch.tensor(form.evaluate("form => [...form.painting.picture]")).view(1, 3, 64, 64)
    if (taken - result()).abs().max().item() > 1 / 127:
        wrong.append("the picture drawn last is not what is painted on")
    if form.locator(".kept figure").count() != 2:
        wrong.append(f"{form.locator('.kept figure').count()} results are kept, of 2")
    return wrong, told


def trains(page, url: str) -> tuple[list[str], list[str]]:
    """(what is wrong with the training in the page, what was measured)."""
    page.goto(url)
    form, wrong, told = page.locator("#form-train"), [], []
    status, numbers = form.locator(".status"), form.locator(".numbers")
    picture = "form => form.querySelector('canvas').toDataURL()"
    page.evaluate("""() => { let last = performance.now(); globalThis.longest = 0;
        const look = now => { longest = Math.max(longest, now - last); last = now; requestAnimationFrame(look); };
        requestAnimationFrame(look); }""")

    def trained(what: str) -> None:
        form.locator("[name=train]").click()
        page.wait_for_function(
            "document.querySelector('#form-train .status').textContent.includes('steps in')",
            timeout=1000 * SECONDS,
        )
        strays = float(numbers.get_attribute("data-strays"))
        told.append(f"{what}: {status.inner_text().split(' Move')[0]} {100 * strays:.1f} % strays")
        if strays > MOST_STRAYS:
            wrong.append(f"{what}: {strays:.3f} strays after training, {MOST_STRAYS} allowed")

    form.locator("[name=train]").click()
    page.wait_for_function("document.querySelector('#form-train .numbers').dataset.strays !== ''")
    early = float(numbers.get_attribute("data-strays"))
    form.locator("[name=stop]").click()
    stopped = numbers.inner_text()
    page.wait_for_timeout(200)
    if numbers.inner_text() != stopped or "stopped" not in status.inner_text():
        wrong.append("Stop does not stop the training")
    trained("two moons")
    told.append(f"the longest time between two frames was {page.evaluate('longest'):.0f} ms")
    if early < 2 * float(numbers.get_attribute("data-strays")):
        wrong.append(f"the strays do not fall: {early} at the beginning")
    points = form.locator("polyline").get_attribute("points").split()
    if len(points) != 100:
        wrong.append(f"the loss curve has {len(points)} points, of 100")
    back = form.locator("[name=back]")
    seen = {form.evaluate(picture)}
    back.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
        seen.add(form.evaluate(picture))
    if len(seen) != 21:
        wrong.append(f"the way back shows {len(seen)} pictures, of 21")
    # a letter by hand: an L
    form.locator("button[value=letter]").click()
    pad = form.locator("canvas")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    ours = form.evaluate("form => state.sections.train.fields.letter.get()")

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    page.mouse.move(*at(0.3, 0.15))
    page.mouse.down()
    page.mouse.move(*at(0.3, 0.85), steps=12)
    page.mouse.move(*at(0.75, 0.85), steps=8)
    page.mouse.up()
    if form.evaluate("form => state.sections.train.fields.letter.get()") == ours:
        wrong.append("the pointer does not draw a letter")
    trained("a letter by hand")
    return wrong, told


def shown(page) -> dict:
    """What every section of the page is set to."""
    return page.evaluate("""() => Object.fromEntries(Object.entries(state.sections).map(([place, { fields }]) =>
        [place, Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.get()]))]))""")


def restores(page, url: str) -> list[str]:
    """What is wrong with the settings in the address."""
    wrong = []
    page.goto(url)
    untouched = shown(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    # change something everywhere
    for box in page.locator(".sweep").all():
        box.locator(".scenes button").last.click()
        for knob in box.locator("input[type=range]").all():
            knob.focus()
            page.keyboard.press("End")
    draw = page.locator("#form-draw")
    if draw.count():
        draw.locator("[name=negative]").fill("dotted & 50% + #")
        draw.locator("[name=seed]").fill("123")
        edit = page.locator("#form-edit")
        edit.locator("[data-field=colour] button[value=blue]").click()
        edit.locator("[data-field=mode] button[value=mask]").click()
        edit.locator("[data-field=brush] button[value='9']").click()
        edit.locator("[name=start]").select_option("scene-2")
        edit.locator("[name=prompt]").fill("a ring")
    train = page.locator("#form-train")
    train.locator("button[value=letter]").click()
    train.locator("[name=letter]").click()
    train.locator("[data-field=width] button[value='96']").click()
    train.locator("[name=rate]").focus()
    page.keyboard.press("ArrowLeft")
    train.locator("[name=seed]").fill("7")
    page.locator(".link-bar button").click()
    page.wait_for_function("document.querySelector('.link-bar span').textContent !== ''")
    link, set_to = page.evaluate("location.href"), shown(page)
    if page.evaluate("navigator.clipboard.readText()") != link:
        wrong.append("Copy link does not copy the address")
    if set_to == untouched or "seed=7" not in link:
        wrong.append(f"the address does not say what is set: {link}")
    page.goto("about:blank")  # else the browser only moves on the page
    page.goto(link)
    if shown(page) != set_to:
        wrong.append(f"{link} opens with {shown(page)} instead of {set_to}")
    if page.locator(".link-bar span").inner_text():
        wrong.append(f"a good link is answered by {page.locator('.link-bar span').inner_text()!r}")
    # bad values: left out, or moved to the nearest, and said
    bad = (
        "#train?seed=-5&width=9999&rate=much&sweep-steps.steps=4000&sweep-steps.scene=12&nonsense=1"
        "&letter=<b>&__proto__.x=1&data=%E0%A4%A"
    )
    page.goto("about:blank")
    page.goto(url + bad)
    says, now = page.locator(".link-bar span").inner_text(), shown(page)
    named = ("seed", "width", "rate", "sweep-steps.steps", "scene", "nonsense", "letter", "data")
    if missing := [name for name in named if name not in says]:
        wrong.append(f"of a bad link {missing} are not named: {says!r}")
    if now["train"] != untouched["train"] or now["sweep-steps"]["steps"] != "50":
        wrong.append(f"bad values are taken: {now['train']}, {now['sweep-steps']}")
    # a place, with settings and without
    for address in ("#train", "#train?seed=3"):
        page.goto("about:blank")
        page.goto(url + address)
        page.wait_for_timeout(2500)  # the theme scrolls smoothly
        top = page.evaluate("document.getElementById('train').getBoundingClientRect().top")
        if not -5 <= top <= 200 or page.locator(".link-bar span").inner_text():
            wrong.append(f"{address} leads to a place {top:.0f} pixels from the top")
    return wrong


def weight(site: Path) -> list[str]:
    """Whether the page names the right size of what it loads."""
    size = sum((site / f"_static/live/{name}.js").stat().st_size for name in ("runtime", "model"))
    named = f"Load {size / 1e6:.0f} MB"
    text = (site / "playground.html").read_text()
    return [] if named in text else [f"runtime.js and model.js are {size / 1e6:.1f} MB"]


def checks(page, site: Path) -> list[str]:
    """What is wrong with the playground; prints what was measured."""
    url = (site / "playground.html").resolve().as_uri()
    wrong = slides(page, url) + restores(page, url)
    more, told = trains(page, url)
    print("the playground trains:", "; ".join(told))
    wrong += more
    if 'id="form-draw"' not in (site / "playground.html").read_text():
        print("the playground of this build does not draw; its page says why")
        return wrong
    wrong += weight(site)
    more, told = draws(page, url)
    print("the playground draws:", "; ".join(told))
    wrong += more
    more, told = edits(page, url)
    print("the playground edits:", "; ".join(told))
    return wrong + more


def main() -> int:
    from check import chromium
    from playwright.sync_api import sync_playwright

    p = argparse.ArgumentParser(description="check the playground of the built site in a browser")
    p.add_argument("site", type=Path, nargs="?", default=ROOT / "out/site")
    site, wrong = p.parse_args().site.resolve(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.on(
            "console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None
        )
        context.on("weberror", lambda e: wrong.append(f"error: {e.error}"))
        page = context.new_page()
        page.set_default_timeout(60000)
        wrong += checks(page, site)
        browser.close()
    for w in wrong:
        print("WRONG", w)
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
