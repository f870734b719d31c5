// A diffusion model of points in the plane, whole: data, noise, network, gradient, Adam, DDIM. No library;
// random numbers come from chance.js.
// The network is that of notebook 01, a little smaller: two hidden layers that are given waves of the place and of the time.
// What the page does with it is in train.js; tests/test_site.py compares the gradient with finite differences.
"use strict";

const train2d = {
  times: 200,                    // index 0 is clean, 200 is noise
  placeWaves: 4,                 // sin and cos of pi, 2 pi, 3 pi and 4 pi times each coordinate
  timeWaves: 7,
  batch: 128,
  steps: 2500,                   // of one training
  samples: 500,                  // drawn again and again while it trains
  samplingSteps: 20,
  points: 2000,                  // in a data set
  strayDistance: 0.15,           // a sample farther than this from every point of the data is a stray; the picture is 4 wide

  // ---- data: flat arrays x, y, x, y, ... of about unit variance ---------------------------------------------------------

  moons({ even, bell }) {
    const upper = even() < 0.5;
    const angle = Math.PI * even();
    const x = upper ? Math.cos(angle) - 0.5 : 0.5 - Math.cos(angle);
    const y = upper ? Math.sin(angle) - 0.25 : 0.25 - Math.sin(angle);
    return [1.1 * x + 0.05 * bell(), 1.5 * y + 0.05 * bell()];
  },

  spiral({ even, bell }) {
    const along = Math.sqrt(even());                             // the root spreads the points evenly along the arm
    const angle = 3 * Math.PI * along;                           // one turn and a half
    const radius = 0.15 + 1.6 * along;
    return [radius * Math.cos(angle) + 0.04 * bell(), radius * Math.sin(angle) + 0.04 * bell()];
  },

  checkerboard({ even }) {
    const row = Math.floor(4 * even());
    const column = 2 * Math.floor(2 * even()) + row % 2;
    return [0.85 * (column - 2 + even()), 0.85 * (row - 2 + even())];
  },

  // A letter is a list of strokes, a stroke a list of points [x, y]; a place on it is drawn by length.
  letter({ even, bell }, strokes) {
    const pieces = [];
    for (const stroke of strokes) {
      pieces.push({ from: stroke[0], to: stroke[0], length: 0 });      // a stroke may be a dot
      for (let i = 1; i < stroke.length; i++) {
        const [from, to] = [stroke[i - 1], stroke[i]];
        pieces.push({ from, to, length: Math.hypot(to[0] - from[0], to[1] - from[1]) });
      }
    }
    let left = even() * pieces.reduce((sum, piece) => sum + piece.length, 0);
    let i = 0;
    while (i < pieces.length - 1 && left > pieces[i].length) left -= pieces[i++].length;
    const { from, to, length } = pieces[i];
    const share = length > 0 ? left / length : 0;
    return [0, 1].map(axis => from[axis] + share * (to[axis] - from[axis]) + 0.04 * bell());
  },

  data(name, seed, strokes = []) {
    const drawn = chance(seed);
    const points = new Float64Array(2 * this.points);
    for (let i = 0; i < this.points; i++) points.set(this[name](drawn, strokes), 2 * i);
    return points;
  },

  // ---- the forward process: x_t = alpha_t x_0 + sigma_t eps -------------------------------------------------------------

  // alpha is a cosine and sigma a sine. The end stops short of alpha = 0, where eps would say nothing about x_0.
  alpha(t) { return Math.cos(0.48 * Math.PI * t / this.times); },
  sigma(t) { return Math.sin(0.48 * Math.PI * t / this.times); },

  // ---- the network ------------------------------------------------------------------------------------------------------

  // out (rows x columns) += a (rows x inner) times b (inner x columns): a[row, i] is at row aRow + i aInner, b[i, column] at
  // i bInner + column bColumn, so that transposed ones are served as well. Eight sums are kept at once, which makes it
  // three times as fast; so rows must be a multiple of 4 and columns of 2.
  addProduct(out, a, b, rows, inner, columns, aRow, aInner, bInner, bColumn) {
    for (let r = 0; r < rows; r += 4) {
      for (let c = 0; c < columns; c += 2) {
        let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
        let atA = r * aRow, atB = c * bColumn;
        for (let i = 0; i < inner; i++) {
          const left = b[atB], right = b[atB + bColumn];
          let value = a[atA];
          s00 += value * left;
          s01 += value * right;
          value = a[atA + aRow];
          s10 += value * left;
          s11 += value * right;
          value = a[atA + 2 * aRow];
          s20 += value * left;
          s21 += value * right;
          value = a[atA + 3 * aRow];
          s30 += value * left;
          s31 += value * right;
          atA += aInner;
          atB += bInner;
        }
        const o = r * columns + c;
        out[o] += s00;
        out[o + 1] += s01;
        out[o + columns] += s10;
        out[o + columns + 1] += s11;
        out[o + 2 * columns] += s20;
        out[o + 2 * columns + 1] += s21;
        out[o + 3 * columns] += s30;
        out[o + 3 * columns + 1] += s31;
      }
    }
  },

  // All weights lie in one array, and all gradients in another; a layer has views into both.
  network(width, seed) {
    const inputs = 2 + 4 * this.placeWaves + 2 * this.timeWaves;
    const sizes = [inputs, width, width, 2];
    let count = 0;
    for (let k = 1; k < sizes.length; k++) count += (sizes[k - 1] + 1) * sizes[k];
    const net = { sizes, weights: new Float64Array(count), gradient: new Float64Array(count), layers: [] };
    const { even } = chance(seed);
    let start = 0;
    for (let k = 1; k < sizes.length; k++) {
      const [rows, columns] = [sizes[k - 1], sizes[k]];
      const end = start + rows * columns;
      net.layers.push({
        rows, columns,
        weight: net.weights.subarray(start, end), bias: net.weights.subarray(end, end + columns),
        weightGradient: net.gradient.subarray(start, end), biasGradient: net.gradient.subarray(end, end + columns),
      });
      const reach = 1 / Math.sqrt(rows);                         // as torch begins a linear layer
      for (let i = start; i < end + columns; i++) net.weights[i] = reach * (2 * even() - 1);
      start = end + columns;
    }
    return net;
  },

  // Room for what the layers compute of `rows` points: made once and used at every step.
  room(net, rows) {
    const arrays = () => net.sizes.map(size => new Float64Array(rows * size));
    return { rows, before: arrays(), gate: arrays(), after: arrays(), slope: arrays() };
  },

  // What the network is given of point i: its place, waves of the place, waves of the time.
  look(room, points, ts) {
    const inputs = room.after[0], size = inputs.length / room.rows;
    for (let i = 0; i < room.rows; i++) {
      let at = i * size;
      for (let axis = 0; axis < 2; axis++) {
        const place = points[2 * i + axis];
        inputs[at++] = place;
        for (let k = 1; k <= this.placeWaves; k++) {
          inputs[at++] = Math.sin(Math.PI * k * place);
          inputs[at++] = Math.cos(Math.PI * k * place);
        }
      }
      const time = ts[i] / this.times;
      for (let k = 0; k < this.timeWaves; k++) {
        const pitch = Math.exp(2 * k / (this.timeWaves - 1));
        inputs[at++] = Math.sin(pitch * time);
        inputs[at++] = Math.cos(pitch * time);
      }
    }
  },

  // eps for points (x, y, x, y, ...) at times ts; everything on the way stays in `room` for `backward`.
  forward(net, room, points, ts) {
    this.look(room, points, ts);
    const last = net.layers.length;
    for (let k = 1; k <= last; k++) {
      const { weight, bias, rows, columns } = net.layers[k - 1];
      const before = room.before[k], gate = room.gate[k], after = room.after[k];
      for (let i = 0; i < room.rows; i++) before.set(bias, i * columns);
      this.addProduct(before, room.after[k - 1], weight, room.rows, rows, columns, rows, 1, columns, 1);
      if (k === last) break;
      for (let i = 0; i < before.length; i++) {                  // SiLU: x times the logistic curve of x
        gate[i] = 1 / (1 + Math.exp(-before[i]));
        after[i] = before[i] * gate[i];
      }
    }
    return room.before[last];
  },

  // The loss, the mean of (eps_hat - eps)^2, and its gradient in every weight: the chain rule, from the last layer to the first.
  backward(net, room, eps) {
    const last = net.layers.length, guess = room.before[last], slope = room.slope[last];
    let loss = 0;
    for (let i = 0; i < eps.length; i++) {
      const off = guess[i] - eps[i];
      loss += off * off / eps.length;
      slope[i] = 2 * off / eps.length;
    }
    net.gradient.fill(0);
    for (let k = last; k >= 1; k--) {
      const { weight, weightGradient, biasGradient, rows, columns } = net.layers[k - 1];
      const slope = room.slope[k];                               // of the loss, in what the layer computed before its SiLU
      this.addProduct(weightGradient, room.after[k - 1], slope, rows, room.rows, columns, 1, rows, columns, 1);
      for (let i = 0; i < slope.length; i += columns) {
        for (let c = 0; c < columns; c++) biasGradient[c] += slope[i + c];
      }
      if (k === 1) break;
      const below = room.slope[k - 1], before = room.before[k - 1], gate = room.gate[k - 1];
      below.fill(0);
      this.addProduct(below, slope, weight, room.rows, columns, rows, columns, 1, 1, columns);
      for (let i = 0; i < below.length; i++) {
        below[i] *= gate[i] * (1 + before[i] * (1 - gate[i]));   // the derivative of SiLU
      }
    }
    return loss;
  },

  // ---- training ---------------------------------------------------------------------------------------------------------

  // A training at its beginning. `data` is what `data()` gave.
  begin({ data, seed = 0, width = 64, rate = 0.01 }) {
    const net = this.network(width, seed + 1);
    const zeros = () => new Float64Array(net.weights.length);
    return {
      net, data, rate, step: 0, losses: [], chance: chance(seed + 2), mean: zeros(), square: zeros(),
      room: this.room(net, this.batch), x: new Float64Array(2 * this.batch),
      eps: new Float64Array(2 * this.batch), ts: new Float64Array(this.batch),
    };
  },

  // One step: noise a few points, guess the noise, follow the gradient. Returns the loss.
  trainStep(run) {
    const { even, bell } = run.chance;
    for (let i = 0; i < this.batch; i++) {
      const t = 1 + Math.floor(this.times * even());
      const point = Math.floor(run.data.length / 2 * even());
      run.ts[i] = t;
      for (let axis = 0; axis < 2; axis++) {
        const eps = bell();
        run.eps[2 * i + axis] = eps;
        run.x[2 * i + axis] = this.alpha(t) * run.data[2 * point + axis] + this.sigma(t) * eps;
      }
    }
    this.forward(run.net, run.room, run.x, run.ts);
    const loss = this.backward(run.net, run.room, run.eps);
    this.adam(run);
    run.losses.push(loss);
    return loss;
  },

  // Adam, with a rate that falls to nothing in a straight line.
  adam(run) {
    const { net: { weights, gradient }, mean, square } = run;
    const rate = run.rate * (1 - run.step / this.steps);
    run.step += 1;
    const meanShare = 1 - 0.9 ** run.step, squareShare = 1 - 0.999 ** run.step;
    for (let i = 0; i < weights.length; i++) {
      mean[i] += 0.1 * (gradient[i] - mean[i]);
      square[i] += 0.001 * (gradient[i] * gradient[i] - square[i]);
      weights[i] -= rate * (mean[i] / meanShare) / (Math.sqrt(square[i] / squareShare) + 1e-8);
    }
  },

  // ---- the way back -----------------------------------------------------------------------------------------------------

  // DDIM from noise to data in even steps; a generator, so that the page can do something else between two steps.
  // Yields the states: noise first, samples last.
  *sample(net, room, seed, steps) {
    const { bell } = chance(seed);
    let x = Float64Array.from({ length: 2 * room.rows }, bell);
    yield x;
    const ts = new Float64Array(room.rows);
    for (let i = steps; i > 0; i--) {
      const t = Math.round(this.times * i / steps), s = Math.round(this.times * (i - 1) / steps);
      const eps = this.forward(net, room, x, ts.fill(t));
      const a = this.alpha(s) / this.alpha(t), b = this.sigma(s) - a * this.sigma(t);
      x = x.map((value, j) => a * value + b * eps[j]);           // DDIM eq. 12
      yield x;
    }
  },

  // The share of samples that lie farther than strayDistance from every point of the data.
  strays(samples, data) {
    const limit = this.strayDistance ** 2;
    let far = 0;
    for (let i = 0; i < samples.length; i += 2) {
      let near = false;
      for (let j = 0; j < data.length && !near; j += 2) {
        near = (samples[i] - data[j]) ** 2 + (samples[i + 1] - data[j + 1]) ** 2 <= limit;
      }
      far += !near;
    }
    return far / (samples.length / 2);
  },
};
