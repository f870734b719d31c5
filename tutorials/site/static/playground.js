// The playground's sliders: a setting is a cell of a strip. Pictures, numbers and words are in the page already.
"use strict";

function sweep(box) {
  const facts = JSON.parse(box.querySelector("script").textContent);
  const ranges = [...box.querySelectorAll("input[type=range]")], buttons = [...box.querySelectorAll(".scenes button")];
  const cells = [...box.querySelectorAll(".cell")], svg = box.querySelector("svg");
  let scene = facts.scenes[0];

  function show() {
    const [column, row = 0] = ranges.map(r => Number(r.value)), frame = scene.frames[row][column];
    ranges.forEach((range, i) => {
      const value = facts.knobs[i].values[range.value];
      range.setAttribute("aria-valuetext", value);
      range.parentElement.querySelector("output").textContent = value;
    });
    for (const cell of cells) {
      if (cell.dataset.kind !== "ref") cell.style.setProperty("--column", column);
      if (cell.dataset.kind === "now") cell.style.setProperty("--row", row);
      cell.style.backgroundImage = `url(_static/playground/${scene.file})`;
    }
    box.querySelector(".says").textContent = frame.says;
    curve(row, column);
  }

  // All frames' numbers, a line for each value of the second knob; a dot where the sliders are.
  function curve(row, column) {
    const ys = scene.frames.flat().map(f => f.y), low = Math.min(...ys), high = Math.max(...ys);
    const n = scene.frames[0].length, left = 8, wide = 304, top = 8, tall = 74;
    const x = i => left + wide * (n > 1 ? i / (n - 1) : .5), y = v => top + tall * (1 - (v - low) / (high - low || 1));
    const lines = scene.frames.map((frames, r) => `<polyline class="${r === row ? "on" : ""}" points="${
      frames.map((f, i) => `${x(i).toFixed(1)},${y(f.y).toFixed(1)}`).join(" ")}"/>`);
    svg.innerHTML = `${lines.join("")}<circle cx="${x(column)}" cy="${y(scene.frames[row][column].y)}" r="4.5"/>`;
    svg.nextElementSibling.textContent = `${facts.curve}: ${low.toFixed(1)} to ${high.toFixed(1)}`;
  }

  function choose(i) {
    scene = facts.scenes[i];
    buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
  }

  // In the address a slider stands at its value, not at its number. A value that is not on it is moved to the nearest.
  function field(range, { values }) {
    return {
      get: () => String(values[range.value]),
      set(text) {
        const asked = Number(text);
        if (text.trim() === "" || !Number.isFinite(asked)) return `"${text}" is not a number`;
        let nearest = 0;
        values.forEach((value, i) => { if (Math.abs(value - asked) < Math.abs(values[nearest] - asked)) nearest = i; });
        range.value = nearest;
        return values[nearest] === asked ? "" : `${text} is not on the slider, ${values[nearest]} was taken`;
      },
    };
  }

  const fields = {};
  ranges.forEach((range, i) => { fields[facts.knobs[i].name.replaceAll(" ", "-")] = field(range, facts.knobs[i]); });
  const numbers = facts.scenes.map((_, i) => String(i + 1));
  fields.scene = state.choice(numbers, () => String(facts.scenes.indexOf(scene) + 1), text => choose(Number(text) - 1));
  state.add(box.id, fields, show);
  for (const range of ranges) {
    range.addEventListener("input", () => { show(); state.changed(box.id); });
  }
  buttons.forEach((button, i) => button.addEventListener("click", () => { choose(i); show(); state.changed(box.id); }));
  show();
}

document.querySelectorAll(".sweep").forEach(sweep);
