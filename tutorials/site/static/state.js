// What the reader set is in the address: #draw?prompt=a+red+circle&scale=2 opens the page at "draw" with these two settings.
// Settings of another section carry its name: #draw?scale=2&train.seed=7. What stands as it was is left out.
"use strict";

const state = {
  sections: {},                  // {place: {fields, initial, show}}
  place: "",                     // the section that was touched last: the address leads there
  waiting: 0,

  // A section of the page. `place` is the id of an element; `fields` are {name: {get, set}}, all texts: `set` takes a text out
  // of an address and returns "" or what was wrong with it. `show` is called when some fields were set.
  add(place, fields, show = () => {}) {
    const initial = {};
    for (const [name, field] of Object.entries(fields)) initial[name] = field.get();
    this.sections[place] = { fields, initial, show };
  },

  // The address that says what is set now, from the # on.
  hash() {
    const said = new URLSearchParams();
    for (const [place, { fields, initial }] of Object.entries(this.sections)) {
      for (const [name, field] of Object.entries(fields)) {
        const value = field.get();
        if (value !== initial[name]) said.set(place === this.place ? name : `${place}.${name}`, value);
      }
    }
    const settings = said.toString();
    return settings ? `#${this.place}?${settings}` : `#${this.place}`;
  },

  // The reader changed something in `place`. The address follows when the hand rests: browsers refuse too many changes.
  changed(place) {
    this.place = place;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.write(), 250);
  },

  write() {
    clearTimeout(this.waiting);
    if (this.place) history.replaceState(null, "", this.hash());
  },

  // Sets what the address says and returns what it said wrong. Without a ? the address is a place only, and nothing is set.
  read(hash) {
    const cut = hash.indexOf("?");
    if (cut < 0) return [];
    const place = hash.slice(1, cut), wrong = [], touched = new Set();
    for (const [key, value] of new URLSearchParams(hash.slice(cut + 1))) {
      const dot = key.indexOf(".");
      const where = dot < 0 ? place : key.slice(0, dot), name = key.slice(dot + 1);
      const section = Object.hasOwn(this.sections, where) ? this.sections[where] : null;
      if (!section || !Object.hasOwn(section.fields, name)) {
        wrong.push(`there is no setting "${key}"`);
        continue;
      }
      const complaint = section.fields[name].set(value);
      if (complaint) wrong.push(`${key}: ${complaint}`);
      touched.add(section);
    }
    for (const section of touched) section.show();
    if (Object.hasOwn(this.sections, place)) {
      this.place = place;
      document.getElementById(place).scrollIntoView({ behavior: "instant" });
    }
    return wrong;
  },

  // ---- fields of usual kinds --------------------------------------------------------------------------------------------

  // A number between the input's min and max, in its steps; another number is moved to the nearest.
  number(input) {
    return {
      get: () => input.value,
      set(text) {
        const asked = Number(text), low = Number(input.min), high = Number(input.max), step = Number(input.step) || 1;
        if (text.trim() === "" || !Number.isFinite(asked)) return `"${text}" is not a number`;
        const steps = Math.round((Math.min(high, Math.max(low, asked)) - low) / step);
        const taken = Number((low + steps * step).toFixed(6));
        input.value = String(taken);
        return taken === asked ? "" : `${text} is not to be had here, ${taken} was taken`;
      },
    };
  },

  words(input, most = 200) {
    return {
      get: () => input.value,
      set(text) {
        input.value = text.slice(0, most);
        return text.length > most ? `only the first ${most} letters were taken` : "";
      },
    };
  },

  // One of `names`; `get` and `choose` say and set which.
  choice(names, get, choose) {
    return {
      get,
      set(text) {
        if (!names.includes(text)) return `"${text}" is none of ${names.join(", ")}`;
        choose(text);
        return "";
      },
    };
  },
};

// A group of buttons of which one is pressed; `changed` hears of a click. Returns {value(), choose(value), field}.
function oneOf(group, changed) {
  const buttons = [...group.querySelectorAll("button")], names = buttons.map(b => b.value);
  const value = () => buttons.find(b => b.getAttribute("aria-pressed") === "true").value;
  const choose = name => { for (const b of buttons) b.setAttribute("aria-pressed", String(b.value === name)); };
  for (const b of buttons) {
    b.addEventListener("click", () => { choose(b.value); changed(); });
  }
  return { value, choose, field: state.choice(names, value, choose) };
}

// The bar at the foot of the window: copies the address, and says what was wrong with the one that was opened.
function linkBar(bar) {
  const says = bar.querySelector("[role=status]");

  function open() {
    const wrong = state.read(location.hash);
    says.textContent = wrong.length ? `Not all of the link could be followed: ${wrong.join("; ")}.` : "";
    bar.classList.toggle("wrong", wrong.length > 0);
  }

  // Where a page may not use the clipboard, the address is shown, marked, to be copied by hand.
  async function copy() {
    state.write();
    bar.classList.remove("wrong");
    try {
      await navigator.clipboard.writeText(location.href);
      says.textContent = "The link is copied.";
    } catch {
      const field = document.createElement("input");
      field.value = location.href;
      field.readOnly = true;
      field.setAttribute("aria-label", "the link to this page as it is set");
      says.replaceChildren("Copy this: ", field);
      field.focus();
      field.select();
    }
  }

  document.querySelector("article").append(bar);                 // out of the last section: it sticks on the whole page
  bar.querySelector("button").addEventListener("click", copy);
  addEventListener("hashchange", open);
  open();
}

// After the deferred scripts, which add their sections.
addEventListener("DOMContentLoaded", () => document.querySelectorAll(".link-bar").forEach(linkBar));
