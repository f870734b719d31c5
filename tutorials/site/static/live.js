// The live part of the playground: unpacks runtime and networks when asked, and ties diffusion.js to the page.
"use strict";

const live = {
  nets: null, model: null, stopped: false,

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
    const { text, unet, vae, ...model } = minidiffModel;
    const sessions = {};
    for (const [name, packed] of Object.entries({ text, unet, vae })) {
      say(`preparing: ${{ text: "text tower", unet: "UNet", vae: "decoder" }[name]}`);
      await this.breath();
      sessions[name] = await ort.InferenceSession.create(await this.unpacked(packed), { executionProviders: ["wasm"] });
    }
    const floats = (data, shape) => new ort.Tensor("float32", data, shape);
    const longs = (data, shape) => new ort.Tensor("int64", BigInt64Array.from(data, BigInt), shape);
    const run = async (name, feeds) => (await sessions[name].run(feeds)).out.data;
    this.nets = {                                                // two rows [no words, the words], but one picture
      text: ids => run("text", { ids: longs(ids, [2, model.context]) }),
      unet: (x, t, text) => run("unet", { x: floats(x, [2, ...model.shape]), t: longs([t, t], [2]),
                                          text: floats(text, [2, model.context, text.length / 2 / model.context]) }),
      vae: z => run("vae", { z: floats(z, [1, ...model.shape]) }),
    };
    this.model = model;
    delete globalThis.minidiffRuntime;
    delete globalThis.minidiffModel;
  },

  breath() { return new Promise(done => setTimeout(done)); },    // lets the page paint, and Stop be heard

  // As diffusion.draw, from `latents` or else from a seed; returns {picture, seconds}, picture null if stopped.
  async draw({ seed = 0, latents, ...options }) {
    this.stopped = false;
    const begun = performance.now(), size = this.model.shape.reduce((a, b) => a * b);
    const picture = await diffusion.draw({ latents: latents || diffusion.noise(seed, size), nets: this.nets,
                                           model: this.model, ...options });
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

function liveForm(form) {
  const part = name => form.querySelector(`[name="${name}"]`), canvas = form.querySelector("canvas");
  const status = form.querySelector(".status"), bar = form.querySelector("progress"), kept = form.querySelector(".kept");
  const say = text => { status.textContent = text; };
  let busy = false;

  async function draw() {
    if (busy) return;
    busy = true;
    form.classList.remove("wrong");
    part("draw").disabled = true;
    try {
      if (!live.nets) {
        await live.load(form.dataset.folder, say);
        part("draw").textContent = "Draw";
        form.classList.add("loaded");
      }
      const steps = Number(part("steps").value), scale = Number(part("scale").value), seed = Number(part("seed").value);
      const prompt = part("prompt").value, negative = part("negative").value, every = Math.ceil(steps / 10);
      for (const words of [prompt, negative]) diffusion.tokens(words, live.model);         // complain before anything moves
      part("stop").disabled = false;
      bar.max = steps;
      bar.value = 0;
      const { picture, seconds } = await live.draw({ prompt, negative, seed, steps, scale, after: async (i, guess) => {
        bar.value = i;
        say(`step ${i} of ${steps}: what the model takes it for`);
        if (i % every === 0 && i < steps) live.paint(canvas, await live.nets.vae(guess));
        await live.breath();
        return !live.stopped;
      } });
      if (picture) {
        live.paint(canvas, picture);
        canvas.setAttribute("aria-label", `drawn: ${prompt}`);
        say(`${steps} steps in ${seconds.toFixed(1)} s`);
        keep(negative ? `${prompt}, away from ${negative}` : prompt, seed, steps, scale);
      } else say("stopped");
    } catch (error) {
      form.classList.add("wrong");
      say(error.message);
    }
    part("draw").disabled = false;
    part("stop").disabled = true;
    busy = false;
  }

  function keep(said, seed, steps, scale) {                    // the last eight, to compare
    const figure = document.createElement("figure"), copy = document.createElement("canvas");
    copy.width = copy.height = canvas.width;
    copy.getContext("2d").drawImage(canvas, 0, 0);
    const words = document.createElement("figcaption");
    words.textContent = `${said}; noise ${seed}, ${steps} steps, guidance ${scale}`;
    figure.append(copy, words);
    kept.prepend(figure);
    while (kept.children.length > 8) kept.lastChild.remove();
  }

  form.addEventListener("submit", event => { event.preventDefault(); draw(); });
  part("stop").addEventListener("click", () => { live.stopped = true; });
  part("other").addEventListener("click", () => { part("seed").value = Math.floor(Math.random() * 1e6); draw(); });
  for (const b of form.querySelectorAll(".examples button")) {
    b.addEventListener("click", () => { part("prompt").value = b.textContent; draw(); });
  }
  for (const range of form.querySelectorAll("input[type=range]")) {
    range.addEventListener("input", () => { range.nextElementSibling.textContent = range.value; });
  }
}

document.querySelectorAll("form.live").forEach(liveForm);
