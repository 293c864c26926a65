"use strict";
(() => {
  const PAGE = 50;
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("data").textContent);

  // Insert text as text, never as markup.
  function make(name, text, classes) {
    const node = document.createElement(name);
    if (text) node.textContent = text;
    if (classes) node.className = classes;
    return node;
  }

  function sortBy(table, column, button) {
    const heads = table.tHead.rows[0].cells;
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
    };
    const number = (x) => (x.trim() === "" ? NaN : Number(x));
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const [m, n] = [number(x), number(y)];
      const numbers = table.tHead.rows[0].cells[column].dataset.numbers;
      if (numbers && isNaN(m) !== isNaN(n)) return isNaN(m) ? 1 : -1; // empty cells last
      const order = isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n;
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll(".sortable table")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const numbers = [...table.tBodies[0].rows].some((r) =>
        r.cells[column].classList.contains("number"));
      if (numbers) head.dataset.numbers = "1";
      head.querySelector("button").addEventListener("click", () => sortBy(table, column));
    });
  }

  const errorsOf = (words) => words.filter((w) => typeof w !== "string").length;
  const reference = (words) => words.map((w) => (typeof w === "string" ? w : w[0]));
  const hypothesis = (words) => words.map((w) => (typeof w === "string" ? w : w[1]));
  const lengthOf = (words) => reference(words).filter((w) => w !== "").length;

  function fillFirst() {
    data.results.forEach((r, i) => {
      const several = Object.keys(data.sets).length > 1;
      const option = make("option", several ? `${r.set}, ${r.label}` : r.label);
      option.value = i;
      get("first").append(option);
    });
    const other = data.results.findIndex((r) => r.system !== data.baseline);
    get("first").value = Math.max(other, 0);
  }

  // Results of the same set; preselect the baseline with the same decoding.
  function fillSecond() {
    const first = data.results[get("first").value];
    const select = get("second");
    const before = data.results[select.value];
    select.replaceChildren(make("option", "nothing"));
    select.firstChild.value = "";
    let chosen = "";
    data.results.forEach((r, i) => {
      if (r === first || r.set !== first.set) return;
      const option = make("option", r.label);
      option.value = i;
      select.append(option);
      const sameDecoding = r.suffix === first.suffix;
      const wanted = before && before !== first ? before.system : data.baseline;
      if (sameDecoding && r.system === wanted) chosen = String(i);
    });
    select.value = chosen;
  }

  function choose() {
    const first = data.results[get("first").value];
    const second = data.results[get("second").value];
    const sounds = data.audio[first.set] || {};
    const needle = get("search").value.trim().toLowerCase();
    const rows = data.sets[first.set].map((id, i) => {
      const a = first.words[i];
      const b = second ? second.words[i] : null;
      return { id, a, b, sound: sounds[id], mine: errorsOf(a), theirs: b ? errorsOf(b) : 0 };
    });
    const keep = {
      all: () => true,
      wrong: (r) => r.mine > 0 || r.theirs > 0,
      differ: (r) => r.b && hypothesis(r.a).join(" ") !== hypothesis(r.b).join(" "),
      better: (r) => r.b && r.mine < r.theirs,
      worse: (r) => r.b && r.mine > r.theirs,
      audio: (r) => r.sound !== undefined,
    }[get("filter").value];
    const text = (r) => [r.id, ...reference(r.a), ...hypothesis(r.a), ...(r.b ? hypothesis(r.b) : [])]
      .join(" ").toLowerCase();
    const value = {
      errors: (r) => r.mine,
      rate: (r) => r.mine / Math.max(1, lengthOf(r.a)),
      difference: (r) => Math.abs(r.mine - r.theirs),
      length: (r) => lengthOf(r.a),
      id: () => 0,
    }[get("order").value];
    const selected = rows.filter((r) => keep(r) && text(r).includes(needle));
    selected.sort((x, y) => value(y) - value(x) || x.id.localeCompare(y.id));
    return { first, second, rows, selected };
  }

  function wordsOf(result, words, errors) {
    const line = make("div", "", "utterance");
    line.append(make("b", `${result.label}: ${errors} errors`));
    for (const word of words) {
      if (typeof word === "string") {
        line.append(make("span", word, "word"), " ");
        continue;
      }
      const kind = word[0] === "" ? "ins" : word[1] === "" ? "del" : "sub";
      const pair = make("span", "", `word ${kind}`);
      if (word[0] !== "") pair.append(make("del", word[0]));
      if (word[1] !== "") pair.append(make("ins", word[1]));
      line.append(pair, " ");
    }
    return line;
  }

  function item(view, row) {
    const node = make("li");
    node.append(make("h3", row.id));
    if (row.sound !== undefined) {
      const player = make("audio");
      player.controls = true;
      player.preload = "none";
      player.src = row.sound;
      player.setAttribute("aria-label", `audio of ${row.id}`);
      node.append(player);
    }
    node.append(wordsOf(view.first, row.a, row.mine));
    if (row.b) node.append(wordsOf(view.second, row.b, row.theirs));
    return node;
  }

  let view;
  let shown = 0;

  function showMore() {
    const next = view.selected.slice(shown, shown + PAGE);
    get("list").append(...next.map((row) => item(view, row)));
    shown += next.length;
    get("more").hidden = shown >= view.selected.length;
  }

  function refresh() {
    view = choose();
    shown = 0;
    get("list").replaceChildren();
    const sum = (key) => view.selected.reduce((total, row) => total + row[key], 0);
    const other = view.second ? ` against ${sum("theirs")}` : "";
    get("count").textContent = `${view.selected.length} of ${view.rows.length} utterances, ` +
      `${sum("mine")} errors${other}`;
    showMore();
  }

  for (const id of ["second", "filter", "order"]) get(id).addEventListener("change", refresh);
  get("search").addEventListener("input", refresh);
  get("choice").addEventListener("submit", (event) => event.preventDefault());
  get("more").addEventListener("click", showMore);
  get("first").addEventListener("change", () => { fillSecond(); refresh(); });
  for (const link of document.querySelectorAll("a[data-result]")) {
    link.addEventListener("click", () => {
      get("first").value = link.dataset.result;
      fillSecond();
      refresh();
    });
  }

  fillFirst();
  fillSecond();
  get("choice").hidden = get("signs").hidden = false;
  refresh();
})();
