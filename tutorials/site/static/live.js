// The live part of the playground: unpacks runtime and networks when asked, and ties diffusion.js to the page.
"use strict";

const live = {
  nets: null, model: null, stopped: false, busy: false,
  last: null,                                                    // the picture that was drawn last, by either form

  script(address) {
    return new Promise((done, failed) => {
      const s = document.createElement("script");
      s.src = address;
      s.onload = done;
      s.onerror = () => failed(new Error(`${address} could not be read`));
      document.head.append(s);
    });
  },

  // base64 of gzip -> bytes. Pages from files may not fetch; scripts with long strings they may load.
  async unpacked(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  },

  // Runtime and networks, once. `folder` holds runtime.js and model.js; `say` hears what is being done.
  async load(folder, say = () => {}) {
    if (this.nets) return;
    say("reading the runtime");
    await this.script(`${folder}/runtime.js`);
    const glue = await this.unpacked(minidiffRuntime.glue);
    ort.env.wasm.numThreads = 1;                                 // more need headers that a file does not have
    ort.env.wasm.wasmBinary = (await this.unpacked(minidiffRuntime.wasm)).buffer;
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([glue], { type: "text/javascript" })) };
    say("reading the networks");
    await this.script(`${folder}/model.js`);
    const { text, unet, encoder, vae, ...model } = minidiffModel;
    const called = { text: "text tower", unet: "UNet", encoder: "encoder", vae: "decoder" };
    const sessions = {};
    for (const [name, packed] of Object.entries({ text, unet, encoder, vae })) {
      say(`preparing: ${called[name]}`);
      await this.breath();
      sessions[name] = await ort.InferenceSession.create(await this.unpacked(packed), { executionProviders: ["wasm"] });
    }
    const floats = (data, shape) => new ort.Tensor("float32", data, shape);
    const longs = (data, shape) => new ort.Tensor("int64", BigInt64Array.from(data, BigInt), shape);
    const run = async (name, feeds) => (await sessions[name].run(feeds)).out.data;
    const pixels = [1, 3, ...model.shape.slice(1).map(latents => model.factor * latents)];
    this.nets = {                                                // two rows [no words, the words], but one picture
      text: ids => run("text", { ids: longs(ids, [2, model.context]) }),
      unet: (x, t, text) => run("unet", { x: floats(x, [2, ...model.shape]), t: longs([t, t], [2]),
                                          text: floats(text, [2, model.context, text.length / 2 / model.context]) }),
      encoder: picture => run("encoder", { image: floats(picture, pixels) }),
      vae: z => run("vae", { z: floats(z, [1, ...model.shape]) }),
    };
    this.model = model;
    delete globalThis.minidiffRuntime;
    delete globalThis.minidiffModel;
  },

  breath() { return new Promise(done => setTimeout(done)); },    // lets the page paint, and Stop be heard

  // As diffusion.draw, from `latents` or else from a seed; returns {picture, seconds}, picture null if stopped.
  draw({ seed = 0, latents = this.noise(seed), ...options }) {
    return this.timed(() => diffusion.draw({ latents, nets: this.nets, model: this.model, ...options }));
  },

  // As diffusion.redraw, with `noise` or else a seed; returns the same.
  redraw({ seed = 0, noise = this.noise(seed), ...options }) {
    return this.timed(() => diffusion.redraw({ noise, nets: this.nets, model: this.model, ...options }));
  },

  noise(seed) { return diffusion.noise(seed, this.model.shape.reduce((a, b) => a * b)); },

  async timed(work) {
    this.stopped = false;
    const begun = performance.now();
    const picture = await work();
    return { picture, seconds: (performance.now() - begun) / 1000 };
  },

  // Three planes in [-1, 1] onto a canvas of 64 x 64.
  paint(canvas, picture) {
    const n = canvas.width * canvas.height, image = new ImageData(canvas.width, canvas.height);
    for (let i = 0; i < n; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(127.5 * (picture[c * n + i] + 1));
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  },
};

// What the two forms have in common: a main button, Stop, a status line, a bar, the last pictures. `canvas` is where they draw.
function liveForm(form, main, canvas) {
  const part = name => form.querySelector(`[name="${name}"]`);
  const status = form.querySelector(".status"), bar = form.querySelector("progress"), kept = form.querySelector(".kept");
  const say = text => { status.textContent = text; };

  // Only one picture is drawn at a time; whoever asks for a second one is told so.
  function free() {
    if (live.busy) say("A picture is being drawn: wait for it, or press its Stop.");
    return !live.busy;
  }

  // Loads the model if need be, then does `work`.
  async function run(work) {
    if (!free()) return;
    live.busy = true;
    form.classList.remove("wrong");
    part(main).disabled = true;
    try {
      await live.load(form.dataset.folder, say);
      for (const button of document.querySelectorAll("form.live [data-loaded]")) button.textContent = button.dataset.loaded;
      await work();
    } catch (error) {
      form.classList.add("wrong");
      say(error.message);
    }
    part(main).disabled = false;
    part("stop").disabled = true;
    live.busy = false;
  }

  // What happens after every step: `steps` is how many there are. Ten times on the way the model's guess is shown.
  function watch(steps) {
    const every = Math.ceil(steps / 10);
    part("stop").disabled = false;
    bar.max = steps;
    bar.value = 0;
    return async (i, guess) => {
      bar.value = i;
      say(`step ${i} of ${steps}: what the model takes it for`);
      if (i % every === 0 && i < steps) live.paint(canvas, await live.nets.vae(guess));
      await live.breath();
      return !live.stopped;
    };
  }

  // The picture is done, or null if it was stopped. `said` is what was asked for.
  function finish(picture, seconds, steps, said) {
    if (!picture) {
      say("stopped");
      return;
    }
    live.paint(canvas, picture);
    live.last = picture;
    for (const option of document.querySelectorAll("option[value=drawn]")) option.disabled = false;
    canvas.setAttribute("aria-label", `drawn: ${said}`);
    say(`${steps} steps in ${seconds.toFixed(1)} s`);
    const figure = document.createElement("figure"), copy = document.createElement("canvas");
    copy.width = copy.height = canvas.width;
    copy.getContext("2d").drawImage(canvas, 0, 0);
    const words = document.createElement("figcaption");
    words.textContent = said;
    figure.append(copy, words);
    kept.prepend(figure);
    while (kept.children.length > 8) kept.lastChild.remove();    // the last eight, to compare
  }

  // The fields of the form that go into the address, and what shows their values.
  function fields(names) {
    const out = {};
    for (const name of names) out[name] = part(name).min ? state.number(part(name)) : state.words(part(name));
    return out;
  }

  function show() {
    for (const range of form.querySelectorAll("input[type=range]")) {
      range.parentElement.querySelector("output").textContent = range.value;
    }
  }

  part("stop").addEventListener("click", () => { live.stopped = true; });
  return { part, say, free, run, watch, finish, fields, show };
}

function drawForm(form) {
  const canvas = form.querySelector("canvas");
  const { part, free, run, watch, finish, fields, show } = liveForm(form, "draw", canvas);

  function draw() {
    state.changed("draw");
    return run(async () => {
      const steps = Number(part("steps").value), scale = Number(part("scale").value), seed = Number(part("seed").value);
      const prompt = part("prompt").value, negative = part("negative").value;
      for (const words of [prompt, negative]) diffusion.tokens(words, live.model);         // complain before anything moves
      const { picture, seconds } = await live.draw({ prompt, negative, seed, steps, scale, after: watch(steps) });
      const asked = negative ? `${prompt}, away from ${negative}` : prompt;
      finish(picture, seconds, steps, `${asked}; noise ${seed}, ${steps} steps, guidance ${scale}`);
    });
  }

  state.add("draw", fields(["prompt", "negative", "steps", "scale", "seed"]), show);
  form.addEventListener("submit", event => { event.preventDefault(); draw(); });
  form.addEventListener("input", () => { show(); state.changed("draw"); });
  function drawWith(name, value) {                               // what is in the fields belongs to the picture that is drawn
    if (!free()) return;
    part(name).value = value;
    draw();
  }

  part("other").addEventListener("click", () => drawWith("seed", Math.floor(Math.random() * 1e6)));
  for (const button of form.querySelectorAll(".examples button")) {
    button.addEventListener("click", () => drawWith("prompt", button.textContent));
  }
}

document.querySelectorAll("#form-draw").forEach(drawForm);
