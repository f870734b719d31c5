"""What must hold on every page of the site, whatever it shows: nothing is wider than the window, no
Markdown is left as text, every text can be told from its ground, every picture has a description.

`faults(page, address)` opens one page and looks at it in every view. The rules run in the browser,
for only there is known how wide, how large and on which ground a text stands.
"""

from collections.abc import Iterator

VIEWS = (
    (1400, "light"),
    (390, "light"),
    (1400, "dark"),
    (390, "dark"),
)
# a page that breaks every rule, on which all of them must speak
BAD = """<!doctype html><meta charset="utf-8"><body style="background: #fff">
<div style="width: 5000px">wide</div><p>**bold** is left</p><p style="color: #ccc">pale</p>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">"""
SHOWN = 3  # of the texts that break a rule; the rest are counted

# WCAG 2.2, success criterion 1.4.3 (AA): 4.5 : 1, and 3 : 1 for large text, which is at least 24 px
# high, or 18.66 px and bold
RULES = r"""
() => {
  const root = document.documentElement;
  const found = { over: root.scrollWidth - root.clientWidth, markdown: [], contrast: [], nameless: [] };

  const channel = value => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parsed = color => {
    const numbers = color.match(/[\d.]+/g).map(Number);
    return { rgb: numbers.slice(0, 3), alpha: numbers.length > 3 ? numbers[3] : 1 };
  };
  const over = (top, alpha, below) => below.map((c, i) => alpha * top[i] + (1 - alpha) * c);
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.backgroundImage !== "none") return null;          // a picture: nobody can tell
      const { rgb, alpha } = parsed(style.backgroundColor);
      if (alpha > 0) layers.push([rgb, alpha]);
      if (alpha === 1) break;
    }
    let color = [255, 255, 255];
    for (const [rgb, alpha] of layers.reverse()) color = over(rgb, alpha, color);
    return color;
  };
  const fine = element => {
    const style = getComputedStyle(element);
    const below = ground(element);
    if (below === null) return true;
    const ink = parsed(style.color);
    const color = over(ink.rgb, ink.alpha, below);
    const [light, dark] = [luminance(color), luminance(below)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    return (light + 0.05) / (dark + 0.05) >= (large ? 3 : 4.5);
  };

  const literal = "pre, code, script, style, noscript, math, svg, textarea";
  const left = /(^|\s)\*\*\S|\]\(|```|^\s*#{1,6} |^\s*\|.*\|\s*$|\{\{|\$\$|<\/?(?:a|b|br|code|details|div|em|i|img|li|p|pre|small|span|strong|sub|summary|sup|t[dhr]|ul)\b[^>]*>/m;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.textContent.trim();
    const element = node.parentElement;
    if (!text || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const box = element.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue;                // for screen readers alone
    if (left.test(text) && !element.closest(literal)) found.markdown.push(text.slice(0, 60));
    if (!element.closest("math, svg, :disabled") && !fine(element)) {
      found.contrast.push(`${getComputedStyle(element).color}: ${text.slice(0, 40)}`);
    }
  }
  for (const image of document.images) {
    if (!image.hasAttribute("alt")) found.nameless.push(image.getAttribute("src").slice(0, 60));
  }
  return found;
}
"""


def faults(page, address: str) -> Iterator[str]:
    """Open one page, and say what is wrong with it in each view."""
    page.goto(address)
    for width, scheme in VIEWS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(RULES)
        view = f"{width} px, {scheme}"
        if found["over"] > 1:
            yield f"{view}: {found['over']} pixels wider than the window"
        yield from listed(found["markdown"], f"{view}: Markdown is left as text")
        yield from listed(found["contrast"], f"{view}: too little contrast")
        yield from listed(found["nameless"], f"{view}: a picture without a description")


def listed(texts: list[str], what: str) -> Iterator[str]:
    if texts:
        more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        yield f"{what}: {'; '.join(repr(t) for t in texts[:SHOWN])}{more}"
