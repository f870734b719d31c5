// Even numbers in [0, 1) that depend on the seed alone (mulberry32), and unit Gaussians made of them (Box and Muller).
// torch draws others: the same seed is another noise there.
"use strict";

function chance(seed) {
  let state = seed >>> 0;
  const even = () => {
    state = (state + 0x6D2B79F5) >>> 0;
    let r = Math.imul(state ^ (state >>> 15), state | 1);
    r ^= r + Math.imul(r ^ (r >>> 7), r | 61);
    return ((r ^ (r >>> 14)) >>> 0) / 2 ** 32;
  };
  const bell = () => Math.sqrt(-2 * Math.log(1 - even())) * Math.cos(2 * Math.PI * even());
  return { even, bell };
}
