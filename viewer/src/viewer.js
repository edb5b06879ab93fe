/* The viewer: what is chosen, what is missing for it, and what is drawn of it.

   A choice is an entry of `view`, the same that rlcircuits saves and opens again. `set` makes choices valid and draws;
   what the document lacks is asked of the kernel, where there is one, and drawn when `hear` brings it. */

import { answers } from "./answers.js";
import { Controls } from "./controls.js";
import { Scores, Texts, reach } from "./data.js";
import { digits, h } from "./dom.js";
import { Group } from "./group.js";
import { DARK, LIGHT, isDark, watchTheme } from "./paint.js";
import { GraphPanel, HeatPanel, Scatter } from "./pictures.js";
import { STYLE } from "./style.js";

export const MEAN = "mean of all problems";
export const MOST = 300;
const BESIDE = 4;
const ROWS = 10;
const KEYS = "Arrow keys go from edge to edge, Enter chooses, plus, minus and 0 zoom, Shift and arrows move.";
const key = (...parts) => JSON.stringify(parts);
const shown = (name) => name.replace("->", " → ");

export class Viewer {
  constructor(place, told, { view, ask = null, keep = () => {} } = {}) {
    Object.assign(this, { told, ask, keep, found: new Map(), asked: new Map(), rows: ROWS });
    for (const one of told.scores) this.found.set(key("scores", one.pair, one.level, one.alpha), new Scores(one));
    for (const [pair, one] of Object.entries(told.texts)) this.found.set(key("texts", pair), new Texts(one));
    // Keys that are typed here are meant for the viewer, not for JupyterLab's shortcuts.
    this.host = h("div", { class: "rlc-viewer-host", "data-lm-suppress-shortcuts": "true" });
    this.host.viewer = this;
    for (const type of ["keydown", "keyup", "keypress"]) this.host.addEventListener(type, (event) => event.stopPropagation());
    place.append(this.host);
    this.build(this.host.attachShadow({ mode: "open" }));
    this.unwatch = watchTheme(() => this.draw());
    const [first] = told.pairs;
    if (!first) {
      this.tell(told.notes);
      return;
    }
    const narrow = place.clientWidth > 0 && place.clientWidth < 600;
    this.view = {
      pair: first.name, problem: MEAN, level: first.levels[0] || "block", alpha: told.alpha, k: 20, layers: [0, first.layers],
      sources: "all", destinations: "all", edge: "", exact: told.computes, measure: "score", panel: narrow ? "tuned − base" : "all",
    };
    this.open(view || {});
  }

  get pair() { return this.told.pairs.find((pair) => pair.name === this.view.pair); }
  get levels() { return [...new Set([...this.pair.levels, ...(this.told.levels || [])])]; }
  get problem() { return this.view.problem === MEAN ? null : this.view.problem; }

  build(root) {
    const edges = {
      pick: ({ edge, node }) => edge !== undefined ? (this.set({ edge: this.scores.name(edge) }), true) : node !== undefined,
      tell: (found) => this.edgeText(found),
      step: (by, { edge }, picture) => {
        const order = picture?.edges || [...(picture?.shown || [])];
        const at = order.indexOf(edge ?? this.chosen);
        return order.length ? { edge: order[(at + by + order.length) % order.length] } : {};
      },
    };
    this.graph = new Group("graph", KEYS, edges);
    this.heat = new Group("heat", KEYS, edges);
    const dots = () => new Group("scatter", "Arrow keys go from problem to problem, Enter chooses.", {
      pick: ({ problem }) => problem !== undefined && (this.set({ problem: this.scores.samples[problem] }), true),
      tell: ({ problem }) => this.problemText(problem),
      step: (by, { problem = -1 }) => ({ problem: (problem + by + this.scores.samples.length) % this.scores.samples.length }),
    });
    this.dots = [dots(), dots()];
    this.notes = h("ul", { class: "notes", "aria-live": "polite" });
    this.bar = h("progress", { max: 1, "aria-label": "progress" });
    this.doing = h("span");
    this.progress = h("div", { class: "progress", hidden: true }, this.bar, this.doing,
      h("button", { type: "button", onclick: () => this.ask({ ask: "stop" }) }, "stop"));
    this.answers = h("section", { "aria-label": "answers" });
    this.table = h("div", { class: "scroll" });
    this.one = h("div");
    this.graphTitle = h("h2");
    this.heatTitle = h("h2");
    this.saved = h("span", { class: "quiet small", "aria-live": "polite" });
    this.controls = new Controls(this);
    const zooms = (group) => h("div", { class: "buttons" },
      [["+", "zoom in", () => group.view.zoom(1.5)], ["−", "zoom out", () => group.view.zoom(1 / 1.5)], ["reset", "show all", () => group.view.reset()]]
        .map(([text, label, onclick]) => h("button", { type: "button", "aria-label": label, title: label, onclick }, text)));
    this.pictures = h("div", {},
      h("section", { "aria-label": "graph" }, h("div", { class: "head" }, this.graphTitle, zooms(this.graph)), this.graph.element),
      h("section", { class: "two" }, this.table, h("div", {}, this.one, h("div", { class: "scatters" }, this.dots.map((group) => group.element)))),
      h("section", { "aria-label": "heatmap" }, h("div", { class: "head" }, this.heatTitle, zooms(this.heat)), this.heat.element));
    const file = h("input", { type: "text", value: "view.json", "aria-label": "file to save the view in", size: 14 });
    this.root = h("div", { class: "viewer" }, this.controls.element, this.progress, this.notes, this.answers, this.pictures,
      h("section", { class: "head" }, h("div", { class: "buttons" },
        this.ask && file,
        h("button", { type: "button", onclick: () => this.saveView(file.value) }, "save view"),
        h("button", { type: "button", onclick: () => download("graph.svg", "image/svg+xml", this.graph.svg()) }, "save as SVG"),
        h("button", { type: "button", onclick: async () => download("graph.png", "image/png", await this.graph.png()) }, "save as PNG")), this.saved));
    root.append(h("style", {}, STYLE), this.root);
  }

  /* --- choosing --- */

  /* Make the choices of a saved view; what this study does not have is left as it is. */
  open(view) {
    const { "rlcircuits view": _format, ...choices } = view || {};
    if (JSON.stringify(choices) !== JSON.stringify(this.view)) this.set(choices);
  }

  set(changes) {
    const before = this.pair, all = this.view.layers[0] === 0 && this.view.layers[1] === before.layers;
    const view = Object.assign(this.view, changes);
    if (!this.pair) view.pair = before.name;
    const pair = this.pair, top = pair.layers;
    if (!pair.problems.some(([id]) => id === view.problem)) view.problem = MEAN;
    if (!this.levels.includes(view.level) && this.levels.length) [view.level] = this.levels;
    if (pair !== before && all && !changes.layers) view.layers = [0, top];
    const [low, high] = view.layers.map((layer) => Math.min(top, Math.max(0, Math.round(layer) || 0)));
    view.layers = [Math.min(low, high), Math.max(low, high)];
    view.k = Math.min(MOST, Math.max(1, Math.round(view.k) || 1));
    this.draw();
    this.keep({ ...view });
  }

  /* --- what there is, and what has to be asked for --- */

  get(parts, request, said, notes) {
    const name = key(...parts);
    if (this.found.has(name)) return this.found.get(name);
    if (!this.ask) {
      notes.push(`${said}: not in this page, which has no kernel to compute it`);
    } else {
      if (!this.asked.has(name)) {
        this.asked.set(name, "being computed");
        this.ask({ ...request, key: name });
      }
      notes.push(`${said}: ${this.asked.get(name)}`);
    }
    return null;
  }

  /* What the kernel says. */
  hear(message) {
    if (message.open) {
      this.open(message.open);
      return;
    }
    if (message.saved !== undefined) {
      this.saved.textContent = message.saved;
      return;
    }
    if (message.progress !== undefined) {
      this.progress.hidden = !message.progress;
      if (!message.progress) return;
      const { title, text, share } = message.progress;
      if (share == null) this.bar.removeAttribute("value");
      else this.bar.value = share;
      this.doing.textContent = `${title}: ${text}`;
      return;
    }
    const { key: name, scores, effects, note } = message;
    if (scores) this.found.set(name, new Scores(scores));
    if (effects) this.found.set(name, effects);
    this.asked.set(name, note || "");
    this.draw();
    if (!note || message.again) this.asked.delete(name); // asked for once more when a choice comes back to it
  }

  /* --- drawing --- */

  tell(notes) {
    this.notes.replaceChildren(...[...new Set(notes)].map((note) => h("li", {}, note)));
  }

  draw() {
    const dark = isDark(this.host);
    this.theme = dark ? DARK : LIGHT;
    this.root.classList.toggle("dark", dark);
    if (!this.view) return;
    const { view, problem } = this, notes = [...this.told.notes];
    const { pair, level, alpha } = view;
    this.scores = this.pair.levels.length
      ? this.get(["scores", pair, level, alpha], { ask: "scores", pair, level, alpha }, `${pair} at level ${level} and α ${alpha}`, notes) : null;
    const texts = this.found.get(key("texts", pair));
    notes.push(...this.pair.notes);
    if (problem !== null) notes.push(...texts.notes);
    this.answers.replaceChildren(...(problem === null ? [] : [answers(texts, problem, this.scores, notes)]));
    let { scores } = this;
    if (scores && problem !== null && !scores.samples.includes(problem)) {
      notes.push(`problem ${problem} was not selected, so it has no scores; see selection.dropped for the rules`);
      scores = null;
    }
    this.pictures.classList.toggle("empty", !scores);
    this.panels = scores ? scores.panels(view.measure, problem) : [];
    this.chosen = scores && scores.index.has(view.edge) ? scores.index.get(view.edge) : null;
    this.order = scores ? scores.kept(view, this.panels[this.panels.length - 1].values) : [];
    this.controls.show(scores);
    if (scores) {
      this.drawPictures(scores);
      this.drawTable(scores);
      this.drawEdge(scores, notes);
    }
    this.tell(notes);
  }

  drawPictures(scores) {
    const { view, theme, chosen } = this;
    const panels = this.panels.filter((panel) => view.panel === panel.name);
    const drawn = panels.length ? panels : this.panels;
    const about = this.problem === null ? `mean of ${scores.samples.length} problems` : this.problem;
    const reaches = new Map(this.panels.map((panel) => {
      const alike = this.panels.filter((other) => !other.difference === !panel.difference);
      const own = reach([panel.values]), all = reach(alike.map((one) => one.values));
      return [panel, all > BESIDE * own ? own : all]; // beside a far stronger model, a panel in its colours would be blank
    }));
    const part = scores.n < scores.total ? `; the ${scores.n.toLocaleString("en")} strongest of ${scores.total.toLocaleString("en")} edges are here` : "";
    this.graphTitle.textContent = `The ${Math.min(view.k, this.order.length)} strongest edges (${view.measure}, ${about})`;
    this.heatTitle.textContent = `Every edge: sources down, destinations across (nats)${part}`;
    const title = (panel, more) => [h("strong", {}, panel.name), h("span", { class: "quiet" }, more)];
    this.graph.show(drawn.map((panel) => {
      const edges = scores.kept(view, panel.values).filter((edge) => panel.values[edge]).slice(0, view.k);
      const picture = new GraphPanel(scores, panel, edges, chosen);
      return { title: title(panel, ` · ${panel.difference ? "orange: rose; blue, dashed: fell" : "orange: above zero; blue, dashed: below"}`), picture, label: `${panel.name}: graph with the ${edges.length} strongest edges` };
    }), theme);
    this.heat.show(drawn.map((panel) => ({
      title: title(panel, ` · ±${digits(reaches.get(panel))} nats`),
      picture: new HeatPanel(scores, panel, this.order, chosen, reaches.get(panel)),
      label: `${panel.name}: heatmap of edges, sources by destinations`,
    })), theme);
  }

  drawTable(scores) {
    const two = this.panels.length === 3, head = ["edge", ...this.panels.map((panel) => (panel.difference ? "difference" : panel.name))];
    const rows = this.order.slice(0, this.rows).map((edge) => h("tr", { class: edge === this.chosen ? "chosen" : "" },
      h("td", {}, h("button", { type: "button", "data-edge": scores.name(edge), "aria-pressed": edge === this.chosen ? "true" : "false", onclick: () => this.set({ edge: scores.name(edge) }) }, shown(scores.name(edge)))),
      this.panels.map((panel) => h("td", {}, digits(panel.values[edge])))));
    const more = this.order.length > this.rows && h("button", { type: "button", onclick: () => { this.rows += 40; this.draw(); } }, "more");
    this.table.replaceChildren(
      h("h2", {}, two ? "Largest differences (nats)" : "Strongest edges (nats)"),
      rows.length ? h("table", {}, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))
        : h("p", {}, "No edge is left by the layers and kinds chosen."), more || "");
  }

  /* The chosen edge on every problem, and what removing it really does where that is known. */
  drawEdge(scores, notes) {
    const { view, problem, chosen } = this;
    const hide = (from) => this.dots.slice(from).forEach((group) => group.show([], this.theme));
    if (chosen === null) {
      this.one.replaceChildren(h("p", { class: "quiet" }, "Choose an edge, in a picture, in the table or by its name: its score on each problem."));
      hide(0);
      return;
    }
    const each = scores.edge(chosen), exact = this.exact(scores, notes);
    const at = problem === null ? -1 : scores.samples.indexOf(problem);
    const mean = (values) => { const real = values.filter(Number.isFinite); return real.reduce((a, b) => a + b, 0) / real.length; };
    this.one.replaceChildren(h("h2", {}, `Edge ${shown(view.edge)}`), h("ul", {}, each.map(({ name, values }) => {
      const really = exact && exact.find((one) => one.name === name);
      return h("li", {}, `${name}: score ${digits(mean(values))} nats on average over ${values.length} problems`
        + (at >= 0 ? `, ${digits(values[at])} on this one` : "")
        + (really ? `; exactly ${digits(mean(really.values))}${at >= 0 ? `, ${digits(really.values[at])} on this one` : ""}` : ""));
    }), scores.measures.slice(1).filter((one) => one.name !== "exact").flatMap((one) => one.panels.map((panel) =>
      h("li", {}, `${one.name}, ${panel.name}: ${digits(panel.mean[chosen])} nats on average`)))));
    const pictures = [];
    if (each.length === 2) {
      pictures.push([new Scatter([{ name: "problems", x: each[0].values, y: each[1].values }], scores.samples,
        { across: `${each[0].name} (nats)`, up: `${each[1].name} (nats)` }), "Score on each problem", "no change"]);
    }
    const both = exact ? each.flatMap((one) => exact.filter((real) => real.name === one.name).map((real) => ({ name: one.name, x: one.values, y: real.values }))) : [];
    if (both.length) {
      pictures.push([new Scatter(both, scores.samples, { across: "score (nats)", up: "loss without it − loss (nats)" }), "What removing it really does", "exact = score"]);
    }
    pictures.forEach(([picture, title, line], i) => {
      const legend = picture.series.length > 1 ? ` · ● ${picture.series[0].name} ■ ${picture.series[1].name}` : "";
      this.dots[i].show([{
        title: [h("strong", {}, title), h("span", { class: "quiet" }, `${legend} · dashed: ${line}${picture.axis.spread ? " · axes logarithmic away from 0" : ""}`)],
        picture, label: `${title}, ${picture.across} against ${picture.up}`,
      }], this.theme, problem);
    });
    hide(pictures.length);
  }

  /* Exact effects of the chosen edge, [{name, values by problem}]: a measure, or asked of the kernel; null where there are none. */
  exact(scores, notes) {
    const { pair, level, alpha, edge, exact } = this.view;
    if (scores.measures.some((one) => one.name === "exact")) return scores.edge(this.chosen, "exact");
    if (!exact) return null;
    if (!this.told.computes) return null;
    const effects = this.get(["effects", pair, level, alpha, edge], { ask: "effects", pair, level, alpha, edge }, `exact effect of ${shown(edge)}`, notes);
    return effects && Object.entries(effects).map(([name, values]) => ({ name, values: Float64Array.from(values, (v) => v ?? NaN) }));
  }

  edgeText({ edge, node }) {
    if (node !== undefined) return this.scores.nodes[node][0];
    if (edge === undefined) return "";
    return [shown(this.scores.name(edge)), ...this.panels.map((panel) => `${panel.name}: ${digits(panel.values[edge])} nats`)].join("\n");
  }

  problemText(problem) {
    if (problem === undefined || this.chosen === null) return "";
    const each = this.scores.edge(this.chosen).map(({ name, values }) => `${name}: ${digits(values[problem])} nats`);
    const id = this.scores.samples[problem], known = this.pair.problems.find(([one]) => one === id);
    return [id, known ? known[1] : "", ...each].filter(Boolean).join("\n");
  }

  /* --- saving --- */

  saveView(file) {
    const view = { "rlcircuits view": 1, ...this.view };
    if (this.ask) this.ask({ ask: "save", file, view });
    else download("view.json", "application/json", `${JSON.stringify(view, null, 1)}\n`);
  }

  end() {
    this.unwatch();
    [this.graph, this.heat, ...this.dots].forEach((group) => group.end());
  }
}

function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
