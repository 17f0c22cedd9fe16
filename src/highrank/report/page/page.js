"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("script");
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // Light, dark, or what the system says. A page from disk may have no storage.
  const stored = {
    get: () => { try { return localStorage.getItem("highrank-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("highrank-theme", value); } catch { /* only for this visit */ } },
  };
  const isDark = () => {
    const asked = root.dataset.theme;
    return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const button = document.getElementById("theme");
  const nameTheme = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  if (stored.get() === "light" || stored.get() === "dark") root.dataset.theme = stored.get();
  nameTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored.set(root.dataset.theme);
    nameTheme();
  });

  // Plots: drawn when they are first shown. Their colours are variables of the style sheet.
  const drawn = new Set();
  const draw = (figure) => {
    const name = figure.dataset.figure;
    if (drawn.has(name)) return;
    drawn.add(name);
    const place = figure.querySelector(".plot");
    vegaEmbed(place, data.figures[name], { renderer: "svg", actions: false })
      .then(() => { figure.dataset.drawn = "yes"; })
      .catch((error) => { place.textContent = `This plot could not be drawn: ${error.message}`; console.error(error); });
  };
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;
  const showTraining = () => {
    const name = `${chosen("measure")}-by-${chosen("place")}`;
    for (const figure of all('figure[data-group="training"]')) {
      figure.hidden = figure.dataset.figure !== name;
      if (!figure.hidden) draw(figure);
    }
  };
  for (const input of all('input[name="measure"], input[name="place"]')) input.addEventListener("change", showTraining);
  showTraining();
  all('figure:not([data-group="training"])').forEach(draw);

  // The passage: one stop of the Tab key, the arrow keys go from word to word.
  const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "<0.1%");
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const row = (cells, head) => {
    const made = element("tr");
    cells.forEach((cell, number) => {
      const made_cell = element(head || number === 0 ? "th" : "td");
      made_cell.append(cell);
      if (head) made_cell.scope = "col";
      else if (number === 0) made_cell.scope = "row";
      made.append(made_cell);
    });
    return made;
  };
  const table = (head, rows) => {
    const made = element("table"), top = element("thead"), body = element("tbody");
    top.append(row(head, true));
    body.append(...rows.map((cells) => row(cells, false)));
    made.append(top, body);
    return made;
  };
  const spans = (words, passage, came) => {
    const made = element("span");
    words.forEach(([word, p], number) => {
      if (number) made.append(", ");
      made.append(element("span", passage.words[word], word === came ? "came" : ""), ` ${percent(p)}`);
    });
    return made;
  };
  const bar = (p) => {
    const made = element("span");
    const length = element("span", undefined, "bar");
    length.style.width = `${(2 * p).toFixed(2)}em`;
    made.append(length, percent(p));
    return made;
  };

  for (const reading of all(".reading")) {
    const passage = data.passages[reading.dataset.run];
    const words = all(".w", reading);
    const detail = reading.querySelector(".detail");
    let pinned = -1, shown = -1;

    const show = (number) => {
      if (number === shown) return;
      shown = number;
      words.forEach((word, place) => {
        word.classList.toggle("shown", place === number);
        word.tabIndex = place === number ? 0 : -1;
      });
      const came = passage.passage[number];
      const sides = [["before", passage.before[number]]];
      if (passage.after) sides.push(["after", passage.after[number]]);
      detail.replaceChildren(element("h3", `“${passage.words[came]}”`));
      detail.append(element("p", sides.map(([name, side]) =>
        `${side[0].toFixed(2)} nats${passage.after ? ` ${name}` : ""} (${percent(Math.exp(-side[0]))})`).join(", ")));
      for (const [name, [, listed, components]] of sides) {
        const title = passage.after ? `Prediction ${name} dynamic evaluation` : "Prediction";
        detail.append(element("h4", title), spans(listed, passage, came));
        if (components.length) {
          detail.append(table(
            ["k", "prior", "posterior", "its likeliest words"],
            components.map(([prior, posterior, list], k) => {
              return [String(k + 1), bar(prior), bar(posterior), spans(list, passage, came)];
            }),
          ));
        }
      }
    };
    const colour = () => {
      const by = chosen(`colour-${reading.dataset.run}`) || "before";
      words.forEach((word, number) => {
        const before = passage.before[number][0];
        const after = passage.after ? passage.after[number][0] : before;
        const value = by === "after" ? after : by === "change" ? Math.abs(after - before) * 4 : before;
        word.style.setProperty("--s", Math.min(Math.max(value / passage.full, 0), 1).toFixed(3));
        word.classList.toggle("less", by === "change" && after < before);
        word.classList.toggle("more", by === "change" && after > before);
      });
    };
    for (const input of all(`input[name="colour-${reading.dataset.run}"]`)) input.addEventListener("change", colour);
    words.forEach((word, number) => {
      word.setAttribute("role", "button");
      word.tabIndex = number ? -1 : 0;
      word.addEventListener("pointerenter", () => { if (pinned < 0) show(number); });
      word.addEventListener("focus", () => show(number));
      word.addEventListener("click", () => {
        pinned = pinned === number ? -1 : number;
        shown = -1;
        show(number);
        word.focus();
      });
    });
    reading.addEventListener("keydown", (event) => {
      const from = words.indexOf(document.activeElement);
      if (from < 0) return;
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -from, End: words.length - 1 - from };
      if (!(event.key in steps)) return;
      event.preventDefault();
      pinned = -1;
      words[Math.min(Math.max(from + steps[event.key], 0), words.length - 1)].focus();
    });
  }
  const showRun = () => {
    for (const reading of all(".of-run")) reading.hidden = reading.dataset.run !== chosen("passage-run");
  };
  if (chosen("passage-run") !== undefined) {
    for (const input of all('input[name="passage-run"]')) input.addEventListener("change", showRun);
    showRun();
  }
})();
