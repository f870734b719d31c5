// The two pages that answer to a click: the gallery's filter, the leaderboard's tasks and columns. Without script both stay readable.
"use strict";

function gallery(box) {
  const cards = [...box.parentElement.querySelectorAll(".card")];
  const buttons = [...box.querySelectorAll("button")];
  const field = box.querySelector("input");
  const empty = box.parentElement.querySelector(".empty");
  let room = "";
  function show() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const card of cards) {
      const text = card.textContent.toLowerCase();
      card.hidden = (room && card.dataset.room !== room) || !words.every(w => text.includes(w));
      left += !card.hidden;
    }
    for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.room === room));
    empty.hidden = left > 0;
  }
  for (const b of buttons) b.addEventListener("click", () => { room = b.dataset.room; show(); });
  field.addEventListener("input", show);
  const asked = location.hash.slice(1);                        // gallery.html#inversion opens that room
  if (buttons.some(b => b.dataset.room === asked)) room = asked;
  show();
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  function sort(column) {
    const rows = [...body.rows], values = rows.map(r => r.cells[column].dataset.v);
    const numbers = values.every(v => v === "" || !isNaN(v));
    const was = heads[column].getAttribute("aria-sort");
    const up = was ? was === "descending" : !numbers;          // first click: numbers largest first, words from a to z
    const order = rows.map((row, i) => ({ row, v: values[i] }));
    order.sort((a, b) => {
      if (a.v === "" || b.v === "") return (a.v === "") - (b.v === "");     // what is missing stays last
      return (up ? 1 : -1) * (numbers ? a.v - b.v : a.v.localeCompare(b.v));
    });
    for (const h of heads) h.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...order.map(o => o.row));
  }
  heads.forEach((h, i) => h.querySelector("button").addEventListener("click", () => sort(i)));
}

function tasks(box) {
  const buttons = [...box.querySelectorAll("button")];
  const rows = [...box.parentElement.querySelectorAll("tbody tr")];
  for (const button of buttons) button.addEventListener("click", () => {
    const task = button.dataset.task;
    for (const b of buttons) b.setAttribute("aria-pressed", String(b === button));
    for (const row of rows) row.hidden = task !== "" && row.dataset.task !== task;
  });
}

document.querySelectorAll(".filters:not(.tasks)").forEach(gallery);
document.querySelectorAll(".filters.tasks").forEach(tasks);
document.querySelectorAll("table.sortable").forEach(sortable);
