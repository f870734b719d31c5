// Paint, or mask, and let the model draw from there. The loop is diffusion.redraw; here is the painting, and the form around it.
"use strict";

// A picture (3 planes in [-1, 1]), a mask (1 where the edit happens), and what both were before each stroke.
class Painting {
  constructor(side) {
    this.side = side;
    this.past = [];
    this.picture = new Float32Array(3 * side * side);
    this.mask = new Uint8Array(side * side);
  }

  // Another picture to begin with; `picture` is copied. The mask is empty again.
  begin(picture) {
    this.remember();
    this.picture = Float32Array.from(picture);
    this.mask.fill(0);
  }

  remember() {
    this.past.push({ picture: this.picture.slice(), mask: this.mask.slice() });
    if (this.past.length > 50) this.past.shift();
  }

  undo() {
    const before = this.past.pop();
    if (before) Object.assign(this, before);
    return Boolean(before);
  }

  // Covers every pixel whose centre is within `radius` of the line between two points, with a colour, or with the mask if
  // `colour` is null. Points are in pixels.
  line([x0, y0], [x1, y1], radius, colour) {
    const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy, n = this.side * this.side;
    for (let i = 0; i < n; i++) {
      const x = i % this.side + .5, y = Math.floor(i / this.side) + .5;
      const along = length ? Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
      if (Math.hypot(x - x0 - along * dx, y - y0 - along * dy) > radius) continue;
      if (colour === null) this.mask[i] = 1;
      else for (let c = 0; c < 3; c++) this.picture[c * n + i] = colour[c];
    }
  }

  // The picture as the reader sees it: what is masked is hatched.
  seen() {
    const n = this.side * this.side;
    return this.picture.map((value, i) => {
      const pixel = i % n, x = pixel % this.side, y = Math.floor(pixel / this.side);
      if (!this.mask[pixel]) return value;
      return .5 * value + .5 * ((x + y) % 4 < 2 ? 1 : -1);
    });
  }
}

function editForm(form) {
  const facts = JSON.parse(form.querySelector("script").textContent);
  const [canvas, result] = form.querySelectorAll("canvas");
  const { part, say, run, watch, finish, fields, show } = liveForm(form, "edit", result);
  const painting = new Painting(canvas.width), n = painting.side ** 2;
  const group = name => form.querySelector(`[data-field="${name}"]`);
  const mode = oneOf(group("mode"), changeMode);
  const colour = oneOf(group("colour"), () => state.changed("edit"));
  const brush = oneOf(group("brush"), () => state.changed("edit"));
  let cursor = null;                                             // the pixel that the arrow keys are at
  let pen = null;                                                // the point that the pointer came from, while it is down

  // ---- what is painted on -----------------------------------------------------------------------------------------------

  function startPicture(name) {
    if (name === "drawn") return live.last;
    if (Object.hasOwn(facts.grounds, name)) {
      return Float32Array.from({ length: 3 * n }, (_, i) => facts.grounds[name][Math.floor(i / n)]);
    }
    const bytes = atob(facts.scenes[name]);                      // 3 planes of bytes
    return Float32Array.from({ length: 3 * n }, (_, i) => bytes.charCodeAt(i) / 127.5 - 1);
  }

  function begin() {
    painting.begin(startPicture(part("start").value));
    paint();
  }

  function paint() {
    live.paint(canvas, painting.seen());
    if (!cursor) return;
    const pen2d = canvas.getContext("2d");
    pen2d.strokeStyle = "#fff";
    pen2d.strokeRect(cursor[0] - 1, cursor[1] - 1, 3, 3);
    pen2d.strokeStyle = "#000";
    pen2d.strokeRect(cursor[0] - 2, cursor[1] - 2, 5, 5);
  }

  function stroke(from, to) {
    painting.line(from, to, Number(brush.value()), mode.value() === "mask" ? null : facts.colours[colour.value()]);
    paint();
  }

  // ---- pointer and keys -------------------------------------------------------------------------------------------------

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * painting.side, (event.clientY - box.top) / box.height * painting.side];
  }

  canvas.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    cursor = null;
    painting.remember();
    pen = place(event);
    stroke(pen, pen);
  });
  canvas.addEventListener("pointermove", event => {
    if (!pen) return;
    const now = place(event);
    stroke(pen, now);
    pen = now;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { pen = null; });

  canvas.addEventListener("keydown", event => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (!way && event.key !== " ") return;
    event.preventDefault();
    if (!cursor) cursor = [painting.side / 2, painting.side / 2];
    else if (way) cursor = cursor.map((at, axis) => Math.min(painting.side - 1, Math.max(0, at + 2 * way[axis])));
    if (event.key === " ") {
      painting.remember();
      stroke(cursor, cursor);
    }
    paint();
  });
  canvas.addEventListener("blur", () => { cursor = null; paint(); });

  // A stroke, or a mask, for those who do not draw.
  function preset() {
    painting.remember();
    const middle = painting.side / 2;
    if (mode.value() === "mask") {
      for (let y = middle - 12; y <= middle + 12; y += 4) painting.line([middle - 12, y], [middle + 12, y], 4, null);
    } else {
      painting.line([middle - 6, middle], [middle + 6, middle], 11, facts.colours[colour.value()]);
    }
    paint();
  }

  // ---- the form ---------------------------------------------------------------------------------------------------------

  function showMode() {
    const masking = mode.value() === "mask";
    group("colour").hidden = masking;
    part("preset").textContent = masking ? "Mask the middle" : "Paint a blot for me";
  }

  function changeMode() {                                        // a mask forgets what was there, a stroke must not be forgotten
    part("strength").value = mode.value() === "mask" ? 1 : form.dataset.strength;
    showMode();
    show();
    state.changed("edit");
  }

  function edit() {
    state.changed("edit");
    return run(async () => {
      const masking = mode.value() === "mask", picture = painting.picture.slice();
      const mask = masking ? Float32Array.from(painting.mask) : null;
      if (masking && !mask.includes(1)) throw new Error("Nothing is masked yet: paint over what is to be drawn anew.");
      const [strength, steps, scale, seed] = ["strength", "steps", "scale", "seed"].map(name => Number(part(name).value));
      const prompt = part("prompt").value;
      diffusion.tokens(prompt, live.model);
      const taken = Math.trunc(steps * strength);
      const settings = { picture, mask, prompt, strength, steps, scale, seed };
      const { picture: drawn, seconds } = await live.redraw({ ...settings, after: watch(taken) });
      const how = masking ? "inside the mask" : "over the painting";
      finish(drawn, seconds, taken, `${prompt}, ${how}; strength ${strength}, noise ${seed}, guidance ${scale}`);
    });
  }

  const starts = [...part("start").options].map(option => option.value);
  const start = state.choice(starts, () => part("start").value, name => { part("start").value = name; begin(); });
  const field = {
    mode: mode.field, colour: colour.field, brush: brush.field,
    start: { ...start, set: name => name === "drawn" && !live.last ? "nothing is drawn yet" : start.set(name) },
    ...fields(["prompt", "strength", "steps", "scale", "seed"]),
  };
  state.add("edit", field, () => { showMode(); show(); paint(); });
  form.addEventListener("submit", event => { event.preventDefault(); edit(); });
  form.addEventListener("input", () => { show(); state.changed("edit"); });
  part("start").addEventListener("change", begin);
  part("preset").addEventListener("click", preset);
  part("undo").addEventListener("click", () => { say(painting.undo() ? "taken back" : "nothing to take back"); paint(); });
  part("clear").addEventListener("click", begin);
  form.painting = painting;                                      // for `make check-site`
  begin();
  painting.past.length = 0;
  showMode();
}

document.querySelectorAll("#form-edit").forEach(editForm);
