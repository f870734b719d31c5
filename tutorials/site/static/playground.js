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

  for (const range of ranges) range.addEventListener("input", show);
  buttons.forEach((button, i) => button.addEventListener("click", () => {
    scene = facts.scenes[i];
    for (const b of buttons) b.setAttribute("aria-pressed", String(b === button));
    show();
  }));
  show();
}

document.querySelectorAll(".sweep").forEach(sweep);
