"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const finite = (x) => typeof x === "number" && Number.isFinite(x);
  const signed = (x, digits = 2) => {
    if (!finite(x)) return "n/a";
    const text = Math.abs(x).toFixed(digits);
    return (x < 0 && Number(text) !== 0 ? "\u2212" : "+") + text;
  };
  const plain = (x) => (finite(x) ? String(Number(x.toPrecision(4))).replace("-", "\u2212") : "n/a");
  const direction = (x) => (!finite(x) || x === 0 ? "" : x > 0 ? "up" : "down");

  // ---- light and dark
  const root = document.documentElement, theme = $("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  try { // A page opened from some places has no storage.
    const kept = localStorage.getItem("pahi-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch (_) {}
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("pahi-theme", root.dataset.theme); } catch (_) {}
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  if (!$("gallery-data")) return;
  const { rows, units, redraw, lineage } = JSON.parse($("gallery-data").textContent);
  const thumbnails = $("gallery-pictures").textContent.split("\n");
  let full = null; // megabytes: taken apart when the first picture is opened
  const whole = (index, at) => {
    if (rows[index].full === null) return thumbnails[2 * index + at];
    full ??= $("gallery-full").textContent.split("\n");
    return full[2 * rows[index].full + at];
  };
  const haystack = rows.map((row) => (row.prompt + " " + row.kind + " " + row.id).toLowerCase());

  // ---- hero
  const hero = document.querySelectorAll("#hero .range button");
  for (const button of hero) {
    button.addEventListener("click", () => {
      const index = Number(button.dataset.index), row = rows[index];
      for (const other of hero) other.setAttribute("aria-pressed", String(other === button));
      for (const [id, at, name] of [["hero-before", 0, "Standard"], ["hero-after", 1, "Learned"]]) {
        $(id).src = whole(index, at);
        $(id).alt = `${name} noise: ${row.prompt}`;
        $(id).classList.toggle("pixelated", row.width <= 128);
      }
      $("hero-prompt").textContent = row.prompt;
      $("hero-uplift").textContent = signed(row.uplift) + " SD";
      $("hero-uplift").className = "delta " + direction(row.uplift);
    });
  }

  // ---- one pair of pictures
  const shot = (index, at, large = false) => {
    const row = rows[index], source = large ? whole(index, at) : thumbnails[2 * index + at];
    const name = at ? "after" : "before";
    const frame = element("div", { class: "shot " + name });
    if (source) {
      const image = element("img", { loading: "lazy", decoding: "async", alt: `${name}: ${row.prompt}` });
      image.draggable = false;
      if (row.width <= 128) image.className = "pixelated";
      image.src = source;
      frame.append(image);
    } else {
      frame.append(element("span", { class: "empty" }, "n/a"));
    }
    frame.append(element("span", { class: "tag", "aria-hidden": "true" }, name));
    return frame;
  };
  const duo = (index) => element("div", { class: "duo" }, shot(index, 0), shot(index, 1));
  const compare = (index, large = false) => {
    const box = element("div", { class: "compare" });
    const range = element("input", { type: "range", min: 0, max: 100, value: 50, step: 1 });
    range.setAttribute("aria-label", "Before and after: " + rows[index].prompt);
    const move = () => {
      box.style.setProperty("--cut", range.value + "%");
      range.setAttribute("aria-valuetext", `${range.value}% before, ${100 - range.value}% after`);
    };
    range.addEventListener("input", move);
    box.append(shot(index, 0, large), shot(index, 1, large), element("span", { class: "edge" }), range);
    move();
    return box;
  };

  // ---- cards
  const cards = $("cards"), more = $("more"), batch = 24;
  const quoted = (text) => "'" + String(text).replaceAll("'", "'\\''") + "'"; // one word, for a shell
  const state = { search: "", kind: "", source: "", sort: "best", outcome: "", measure: "", least: "", most: "", view: "duo" };
  const measured = (row) => (state.measure ? row.scores[state.measure]?.[1] : row.uplift);
  let found = [], shown = 0;
  const card = (place) => {
    const index = found[place], row = rows[index];
    const open = element("button", { type: "button", class: "open", "aria-haspopup": "dialog" }, row.prompt || "(no prompt)");
    open.addEventListener("click", () => openRow(place));
    return element(
      "li", { class: "card", "data-index": index },
      state.view === "slide" ? compare(index) : duo(index), open,
      element("div", { class: "meta" },
        element("span", {}, row.kind.replaceAll("_", " ")),
        element("span", { class: "delta " + direction(row.uplift) }, finite(row.uplift) ? signed(row.uplift) + " SD" : "n/a")),
    );
  };
  const extend = () => {
    const next = Math.min(shown + batch, found.length), fragment = document.createDocumentFragment();
    for (let place = shown; place < next; place++) fragment.append(card(place));
    const first = fragment.firstElementChild;
    cards.append(fragment);
    shown = next;
    more.hidden = shown >= found.length;
    more.textContent = `Show ${Math.min(batch, found.length - shown)} more`;
    $("status").textContent = found.length ? `Showing ${shown} of ${found.length} pairs` : "No pair matches";
    return first;
  };
  const refresh = () => {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    found = [];
    rows.forEach((row, i) => {
      if (state.kind && row.kind !== state.kind) return;
      if (state.source && row.source !== state.source) return;
      // A row without the number is in no range.
      if (state.least !== "" && !(measured(row) >= Number(state.least))) return;
      if (state.most !== "" && !(finite(measured(row)) && measured(row) <= Number(state.most))) return;
      if (state.outcome === "gain" && !(row.uplift > 0)) return;
      if (state.outcome === "loss" && !(finite(row.uplift) && row.uplift < 0)) return;
      if (words.every((word) => haystack[i].includes(word))) found.push(i);
    });
    const known = (i) => finite(rows[i].uplift);
    if (state.sort === "prompt") found.sort((a, b) => rows[a].prompt.localeCompare(rows[b].prompt) || a - b);
    else {
      const sign = state.sort === "best" ? -1 : 1;
      found.sort((a, b) => known(b) - known(a) || sign * ((rows[a].uplift ?? 0) - (rows[b].uplift ?? 0)) || a - b);
    }
    cards.replaceChildren();
    cards.className = `cards ${state.view}-view`;
    shown = 0;
    extend();
  };
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("search").addEventListener("input", (event) => { state.search = event.target.value; refresh(); });
  for (const key of ["sort", "source", "outcome", "measure", "view"]) {
    $(key)?.addEventListener("change", (event) => { state[key] = event.target.value; refresh(); });
  }
  for (const key of ["least", "most"]) {
    $(key).addEventListener("input", (event) => { state[key] = event.target.value; refresh(); });
  }
  const chips = document.querySelectorAll(".chips button");
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      state.kind = chip.dataset.kind;
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      refresh();
    });
  }
  more.addEventListener("click", () => extend()?.querySelector(".open").focus());

  // ---- one row in full
  const dialog = $("row");
  let place = 0;
  const showRow = () => {
    const index = found[place], row = rows[index];
    $("row-place").textContent = `${place + 1} of ${found.length}`;
    $("row-pictures").replaceChildren(compare(index, true));
    $("row-thumbnail").hidden = row.full !== null || row.width <= 128;
    $("row-title").textContent = row.prompt || "(no prompt)";
    $("row-uplift").textContent = finite(row.uplift) ? `Uplift ${signed(row.uplift)} SD` : "Uplift n/a";
    $("row-uplift").className = "delta " + direction(row.uplift);
    const scores = Object.entries(row.scores).map(([name, pair]) => {
      const [before, after] = Array.isArray(pair) ? pair : [null, null];
      const change = finite(before) && finite(after) ? after - before : null;
      const unit = units[name];
      const inUnits = finite(change) && finite(unit) && unit > 0 ? signed(change / unit) : "n/a";
      const cells = [plain(before), plain(after), finite(change) ? (change > 0 ? "+" : "") + plain(change) : "n/a", inUnits];
      return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((c) => element("td", { class: "n" }, c)));
    });
    $("row-scores").replaceChildren(...scores);
    const facts = { seed: row.seed ?? "n/a", "prompt id": row.id || "n/a", kind: row.kind || "n/a", source: row.source || "n/a" };
    for (const stage of ["cache", "train", "evaluate"]) {
      if (lineage[`from ${stage}`]) facts[`from ${stage}`] = lineage[`from ${stage}`];
    }
    $("row-facts").replaceChildren(
      ...Object.entries(facts).map(([k, v]) => element("div", {}, element("dt", {}, k), element("dd", {}, String(v)))),
    );
    $("row-redraw").hidden = !redraw;
    const fill = { prompt: quoted(row.prompt), prompt_id: row.id, seed: row.seed ?? "" };
    const command = redraw.replace(/\{(prompt|prompt_id|seed)\}/g, (_, name) => String(fill[name]));
    // Lines end before an option, not inside it.
    const parts = command.split(/ (?=--)/).map((part) => element("span", { class: "part" }, part));
    $("row-command").replaceChildren(...parts.flatMap((part, i) => (i ? [" ", part] : [part])));
    $("copy").textContent = "Copy";
    $("previous").disabled = place === 0;
    $("next").disabled = place === found.length - 1;
  };
  const openRow = (at) => { place = at; showRow(); dialog.showModal(); };
  const step = (by) => {
    if (place + by < 0 || place + by >= found.length) return;
    place += by;
    showRow();
  };
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => cards.querySelector(`[data-index="${found[place]}"] .open`)?.focus());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "range" || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("row-command").textContent);
      $("copy").textContent = "Copied";
    } catch (_) { // Without permission: select it, so that one key copies.
      getSelection().selectAllChildren($("row-command"));
      $("copy").textContent = "Selected";
    }
  });
  refresh();
})();
