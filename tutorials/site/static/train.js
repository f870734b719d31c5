// The page's training of a model of the plane: train2d.js does the work, here is the form, the picture and the loss curve.
// The work is a generator. In every frame it is continued for a few milliseconds, so that the page stays awake meanwhile.
"use strict";

const LETTERS = [                                                // strokes in hundredths of the plane: x to the right, y down
  [[[25, 85], [25, 15], [75, 85], [75, 15]]],
  [[[20, 85], [50, 15], [80, 85]], [[33, 58], [67, 58]]],
  [[[75, 25], [50, 15], [27, 25], [30, 44], [68, 56], [73, 75], [50, 86], [25, 76]]],
];
const REACH = 2;                                                 // the picture shows -2 to 2 both ways
const SLICE = 30;                                                // milliseconds of work in a frame
const EVERY = 60;                                                // steps from one drawing of samples to the next

// Strokes <-> the text that stands in the address: points "x.y" joined by "-", strokes joined by "_".
const letterText = {
  write: strokes => strokes.map(stroke => stroke.map(point => point.join(".")).join("-")).join("_"),
  read(text) {
    if (text.length > 4000 || !/^\d\d?\.\d\d?(-\d\d?\.\d\d?)*(_\d\d?\.\d\d?(-\d\d?\.\d\d?)*)*$/.test(text)) return null;
    return text.split("_").map(stroke => stroke.split("-").map(point => point.split(".").map(Number)));
  },
};

function trainForm(form) {
  const part = name => form.querySelector(`[name="${name}"]`);
  const canvas = form.querySelector("canvas"), svg = form.querySelector("svg");
  const status = form.querySelector(".status"), numbers = form.querySelector(".numbers"), slider = part("back");
  const name = oneOf(form.querySelector('[data-field="data"]'), () => { otherData(); state.changed("train"); });
  const width = oneOf(form.querySelector('[data-field="width"]'), () => state.changed("train"));
  let strokes = LETTERS[0], preset = 0;                          // the letter, and which of ours it is; -1: the reader's own
  let data, run = null, work = null, states = [], strays = null, begun = 0;

  const seed = () => Number(part("seed").value);
  const toPlane = ([x, y]) => [(x / 50 - 1) * REACH, (1 - y / 50) * REACH];

  function otherData() {
    halt("");
    run = null;
    states = [];
    strays = null;
    form.querySelector(".letter").hidden = name.value() !== "letter";
    canvas.classList.toggle("pad", name.value() === "letter");
    data = train2d.data(name.value(), seed(), strokes.map(stroke => stroke.map(toPlane)));
    show();
  }

  // ---- the work ---------------------------------------------------------------------------------------------------------

  function* training() {
    const room = train2d.room(run.net, train2d.samples);
    while (run.step < train2d.steps) {
      train2d.trainStep(run);
      yield;
      if (run.step % EVERY === 0 || run.step === train2d.steps) yield* redraw(room);
    }
  }

  function* redraw(room) {
    const way = [];
    for (const x of train2d.sample(run.net, room, seed() + 3, train2d.samplingSteps)) {
      way.push(x);
      yield;
    }
    states = way;
    strays = train2d.strays(way.at(-1), data);
  }

  // One slice of `mine`, which may have been stopped, or followed by another training.
  function frame(mine) {
    if (work !== mine) return;
    const until = performance.now() + SLICE, shown = states;
    let done = false;
    while (!done && performance.now() < until) done = work.next().done;
    if (states === shown) count();
    else show();
    if (done) {
      const seconds = (performance.now() - begun) / 1000;
      halt(`${run.step} steps in ${seconds.toFixed(1)} s. Move "way back" to follow the samples.`);
    } else requestAnimationFrame(() => frame(mine));
  }

  function halt(why) {
    work = null;
    status.textContent = why;
    part("train").disabled = false;
    part("stop").disabled = true;
  }

  function train() {
    otherData();
    run = train2d.begin({ data, seed: seed(), width: Number(width.value()), rate: Number(part("rate").value) });
    work = training();
    begun = performance.now();
    status.textContent = "training";
    part("train").disabled = true;
    part("stop").disabled = false;
    slider.value = slider.max;
    state.changed("train");
    requestAnimationFrame(() => frame(work));
  }

  // ---- the picture ------------------------------------------------------------------------------------------------------

  function dots(pen, points, colour, size) {
    const scale = canvas.width / (2 * REACH);
    pen.fillStyle = colour;
    for (let i = 0; i < points.length; i += 2) {
      pen.fillRect((points[i] + REACH) * scale - size / 2, (REACH - points[i + 1]) * scale - size / 2, size, size);
    }
  }

  // Where the first few samples came from, up to the state that is shown.
  function ways(pen, last, colour) {
    const scale = canvas.width / (2 * REACH);
    pen.strokeStyle = colour;
    pen.lineWidth = 1.5;
    for (let point = 0; point < 12; point++) {
      pen.beginPath();
      for (let i = 0; i <= last; i++) {
        pen.lineTo((states[i][2 * point] + REACH) * scale, (REACH - states[i][2 * point + 1]) * scale);
      }
      pen.stroke();
    }
  }

  function show() {
    for (const range of form.querySelectorAll("input[type=range]")) {
      range.parentElement.querySelector("output").textContent = range.value;
    }
    const style = getComputedStyle(form), colour = what => style.getPropertyValue(`--color-${what}`);
    const pen = canvas.getContext("2d"), at = Number(slider.value);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    dots(pen, data, colour("foreground-border"), 3);
    if (states.length) {
      ways(pen, at, colour("problematic"));
      dots(pen, states[at], colour("brand-primary"), 5);
    }
    const time = Math.round(train2d.times * (1 - at / train2d.samplingSteps));
    part("back").parentElement.querySelector("output").textContent = `t = ${time}`;
    curve();
    count();
  }

  function count() {
    const share = strays === null ? "" : `; strays ${(100 * strays).toFixed(1)} %`;
    const loss = run && mean(run.losses.slice(-100)).toFixed(3);
    numbers.textContent = run ? `step ${run.step} of ${train2d.steps}; loss ${loss}${share}` : "not trained yet";
    numbers.dataset.strays = strays === null ? "" : strays;
  }

  const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;

  // The loss, means of 25 steps, from the lowest to the highest so far.
  function curve() {
    const means = [];
    for (let i = 0; run && i + 25 <= run.losses.length; i += 25) means.push(mean(run.losses.slice(i, i + 25)));
    const low = Math.min(...means), high = Math.max(...means);
    const points = means.map((loss, i) => {
      const x = 8 + 304 * 25 * i / train2d.steps, y = 8 + 74 * (high - loss) / (high - low || 1);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    });
    const range = means.length ? `: ${high.toFixed(2)} at the top, ${low.toFixed(2)} at the foot` : "";
    svg.nextElementSibling.textContent = `the loss, means of 25 steps${range}`;
    svg.innerHTML = `<path d="M8 82H312M8 82V8"/><polyline class="on" points="${points.join(" ")}"/>`;
  }

  // ---- a letter by hand -------------------------------------------------------------------------------------------------

  let drawing = false;

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return at.map(share => Math.min(99, Math.max(0, Math.round(100 * share))));
  }

  canvas.addEventListener("pointerdown", event => {
    if (name.value() !== "letter" || event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    strokes = preset >= 0 ? [] : strokes;                        // the first stroke takes our letter away
    preset = -1;
    drawing = true;
    strokes = [...strokes, [place(event)]];
    otherData();
  });
  canvas.addEventListener("pointermove", event => {
    if (!drawing) return;
    const stroke = strokes.at(-1), now = place(event), last = stroke.at(-1);
    if (Math.hypot(now[0] - last[0], now[1] - last[1]) < 3) return;
    stroke.push(now);
    otherData();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      if (drawing) state.changed("train");
      drawing = false;
    });
  }

  part("letter").addEventListener("click", () => {
    preset = (preset + 1) % LETTERS.length;
    strokes = LETTERS[preset];
    otherData();
    state.changed("train");
  });

  // ---- the form ---------------------------------------------------------------------------------------------------------

  state.add("train", {
    data: name.field, width: width.field, seed: state.number(part("seed")), rate: state.number(part("rate")),
    back: state.number(slider),
    letter: {
      get: () => letterText.write(strokes),
      set(text) {
        const read = letterText.read(text);
        if (!read) return "is not a letter";
        strokes = read;
        preset = -1;
        return "";
      },
    },
  }, otherData);
  form.addEventListener("submit", event => { event.preventDefault(); train(); });
  form.addEventListener("input", event => {
    if (event.target === part("seed")) otherData();
    else show();
    state.changed("train");
  });
  part("stop").addEventListener("click", () => { halt(`stopped at step ${run.step}`); show(); });
  // Another theme, other colours.
  new MutationObserver(show).observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  otherData();
}

document.querySelectorAll("#form-train").forEach(trainForm);
