// Text to picture, all of it: words -> tokens -> noise -> DDIM with guidance -> picture; and the same from a given picture.
// The four networks are given. The same formulas as minidiff/core/process.py, minidiff/core/cfg.py, minidiff/editing/sdedit.py
// and minidiff/editing/inpaint.py; `make check-site` compares the pictures.
"use strict";

const diffusion = {

  // A prompt as a framed row of ids. The model knows 41 words; any other is an error that lists them.
  tokens(prompt, model) {
    const said = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];
    const known = model.words.filter(w => !w.startsWith("<"));
    const unknown = [...new Set(said.filter(w => !known.includes(w)))];
    if (unknown.length) {
      throw new Error(`The model does not know ${unknown.map(w => `"${w}"`).join(", ")}. It knows: ${known.join(" ")}.`);
    }
    if (said.length > model.context - 2) {
      throw new Error(`${said.length} words, but ${model.context - 2} fit. Leave some out.`);
    }
    const row = [model.bos, ...said.map(w => model.words.indexOf(w)), model.eos];
    return [...row, ...Array(model.context - row.length).fill(model.pad)];
  },

  // n unit Gaussians that depend on the seed alone.
  noise(seed, n) {
    const { bell } = chance(seed);
    return Float32Array.from({ length: n }, bell);
  },

  // steps + 1 times from T to 0 in even steps ("trailing"). Halves are rounded to the even neighbour, as Python does.
  times(steps, T) {
    const round = x => x % 1 === .5 ? 2 * Math.round(x / 2) : Math.round(x);
    return [...Array.from({ length: steps }, (_, i) => round(T - i * T / steps)), 0];
  },

  // The noise in x at time t, for [no words, the words] at once: the network answers in v, which is read as eps.
  async eps(x, t, text, nets, model) {
    const n = x.length, both = new Float32Array(2 * n);
    both.set(x);
    both.set(x, n);
    const v = await nets.unet(both, t - 1, text);                // the network counts times from 0
    const a = model.alpha[t], s = model.sigma[t];
    return [0, n].map(row => x.map((value, i) => s * value + a * v[row + i]));
  },

  // Classifier-free guidance: from what the model would do unasked, `scale` times the way to what the words ask.
  guided([unasked, asked], scale) {
    return unasked.map((e, i) => e + scale * (asked[i] - e));
  },

  // What the picture would be if eps were all the noise there is: the model's guess at time t.
  guess(x, eps, t, model) {
    return x.map((value, i) => (value - model.sigma[t] * eps[i]) / model.alpha[t]);
  },

  // From time t to time s < t: DDIM, eq. 12, without new noise.
  step(x, eps, t, s, model) {
    const a = model.alpha[s] / model.alpha[t], b = model.sigma[s] - a * model.sigma[t];
    return x.map((value, i) => a * value + b * eps[i]);
  },

  // The loop. `after(i, guess)` is awaited after every step and ends the drawing by returning false: then null.
  // Returns the picture: 3 planes of 64 x 64 numbers in [-1, 1].
  async draw({ prompt, negative = "", latents, steps = 20, nets, model, scale = model.scale, after }) {
    const text = await nets.text([...this.tokens(negative, model), ...this.tokens(prompt, model)]);
    const ts = this.times(steps, model.alpha.length - 1);
    let x = Float32Array.from(latents);
    for (let i = 0; i < steps; i++) {
      const [t, s] = [ts[i], ts[i + 1]];
      const eps = this.guided(await this.eps(x, t, text, nets, model), scale);
      if (after && await after(i + 1, this.guess(x, eps, t, model)) === false) return null;
      x = this.step(x, eps, t, s, model);
    }
    return nets.vae(x);
  },

  // The forward process: a clean x at time t, with the noise n. x_t = alpha_t x + sigma_t n.
  noised(x, t, n, model) {
    return x.map((value, i) => model.alpha[t] * value + model.sigma[t] * n[i]);
  },

  // A mask of pixels (1 where the edit happens) as one of latents: a latent is edited if any of its pixels is.
  latentMask(mask, model) {
    const [channels, rows, columns] = model.shape, side = model.factor;
    const coarse = new Float32Array(channels * rows * columns);
    for (let i = 0; i < coarse.length; i++) {
      const row = Math.floor(i / columns) % rows, column = i % columns;
      for (let y = side * row; y < side * (row + 1); y++) {
        for (let x = side * column; x < side * (column + 1); x++) {
          coarse[i] = Math.max(coarse[i], mask[y * side * columns + x]);
        }
      }
    }
    return coarse;
  },

  // a inside the mask, b outside.
  blend(a, b, mask) {
    return a.map((value, i) => mask[i] * value + (1 - mask[i]) * b[i]);
  },

  // A picture drawn again. Without a mask this is SDEdit: noise it to a middle time, come down with other words. With one it
  // is inpainting: the outside is put back after every step, noised to the time at which x is now; in the end its own pixels.
  async redraw({ picture, mask = null, prompt, negative = "", noise, strength = .6, steps = 20, nets, model,
                 scale = model.scale, after }) {
    const ts = this.times(steps, model.alpha.length - 1).slice(steps - Math.trunc(steps * strength));
    if (ts.length < 2) throw new Error(`Strength ${strength} of ${steps} steps is less than one step. Raise one of them.`);
    const text = await nets.text([...this.tokens(negative, model), ...this.tokens(prompt, model)]);
    const kept = await nets.encoder(picture);
    const inside = mask && this.latentMask(mask, model);
    let x = mask && strength === 1 ? Float32Array.from(noise) : this.noised(kept, ts[0], noise, model);
    for (let i = 0; i + 1 < ts.length; i++) {
      const [t, s] = [ts[i], ts[i + 1]];
      const eps = this.guided(await this.eps(x, t, text, nets, model), scale);
      if (after && await after(i + 1, this.guess(x, eps, t, model)) === false) return null;
      x = this.step(x, eps, t, s, model);
      if (inside) x = this.blend(x, this.noised(kept, s, noise, model), inside);
    }
    const drawn = await nets.vae(x);
    return mask ? this.blend(drawn, picture, Float32Array.from(drawn, (_, i) => mask[i % mask.length])) : drawn;
  },
};
