/* The controls: what can be chosen, and the search for an edge. */

import { fill, h } from "./dom.js";
import { MEAN, MOST } from "./viewer.js";

const KINDS = ["all", "input", "attention", "MLP", "logits"];
const OFFERED = 200;
let count = 0;

export class Controls {
  constructor(viewer) {
    this.viewer = viewer;
    const select = (name) => h("select", { onchange: (event) => viewer.set({ [name]: event.target.value }) });
    const labelled = (text, control, kind = "") => h("label", { class: kind }, text, control);
    for (const name of ["pair", "problem", "level", "measure", "panel", "sources", "destinations"]) this[name] = select(name);
    const number = (name, most, change) => h("input", { type: "number", min: 0, max: most, step: "any", "aria-label": name, onchange: change });
    this.alpha = number("α (scored)", 1, () => {
      const value = Number(this.alpha.value);
      if (value >= 0.001 && value <= 1) viewer.set({ alpha: value });
      else this.alpha.value = viewer.view.alpha;
    });
    this.alpha.title = "share of the mean answer length that is scored";
    this.k = h("input", { type: "range", min: 1, max: MOST, onchange: () => viewer.set({ k: Number(this.k.value) }), oninput: () => this.tellK() });
    this.kText = h("span");
    const layers = () => viewer.set({ layers: [Number(this.low.value), Number(this.high.value)] });
    this.low = h("select", { "aria-label": "first layer", onchange: layers });
    this.high = h("select", { "aria-label": "last layer", onchange: layers });
    this.exact = h("input", { type: "checkbox", onchange: () => viewer.set({ exact: this.exact.checked }) });
    this.offered = h("datalist", { id: `edges-${(count += 1)}` });
    this.edge = h("input", { type: "search", list: this.offered.id, placeholder: "name, as a3→m7, or part of it", autocomplete: "off",
      oninput: () => this.search(false), onkeydown: (event) => { if (event.key === "Enter") this.search(true); } });
    this.edgeTold = h("span", { class: "said", "aria-live": "polite" });
    const step = (by, text, label) => h("button", { type: "button", "aria-label": label, title: label, onclick: () => this.step(by) }, text);
    this.parts = {
      pair: labelled("pair", this.pair), level: labelled("level", this.level), alpha: labelled("α (scored)", this.alpha),
      measure: labelled("measure", this.measure), panel: labelled("shown", this.panel), exact: labelled("remove the edge exactly", this.exact, "check"),
      problem: h("div", { class: "problem" }, labelled("problem", this.problem), step(-1, "‹", "problem before"), step(1, "›", "next problem")),
    };
    this.element = h("div", { class: "controls", role: "group", "aria-label": "what is shown" },
      this.parts.pair, this.parts.problem, this.parts.level, this.parts.alpha, this.parts.measure, this.parts.panel,
      h("label", {}, this.kText, this.k),
      h("div", { class: "layers" }, "layers", h("span", {}, this.low, "to", this.high)),
      labelled("from", this.sources), labelled("into", this.destinations),
      h("label", { class: "wide" }, "edge", this.edge, this.offered), this.edgeTold, this.parts.exact);
    fill(this.sources, KINDS.slice(0, 4).map((kind) => [kind, kind]), "all");
    fill(this.destinations, ["all", ...KINDS.slice(2)].map((kind) => [kind, kind]), "all");
  }

  tellK() { this.kText.textContent = `edges drawn: ${this.k.value}`; }

  step(by) {
    const ids = [MEAN, ...this.viewer.pair.problems.filter(([, , scored]) => scored).map(([id]) => id)];
    const at = ids.indexOf(this.viewer.view.problem);
    this.viewer.set({ problem: ids[(Math.max(0, at) + by + ids.length) % ids.length] });
  }

  /* Choose the edge that is written out, or on Enter the strongest whose name holds what is written. */
  search(enter) {
    const { viewer } = this, { scores } = viewer, text = this.edge.value.trim().replace(/\s*(→|->)\s*/, "->");
    if (!scores) return;
    if (!text) viewer.set({ edge: "" });
    else if (scores.index.has(text)) viewer.set({ edge: text });
    else if (enter) {
      const found = viewer.order.find((edge) => scores.name(edge).includes(text));
      if (found !== undefined) viewer.set({ edge: scores.name(found) });
      else this.edgeTold.textContent = `no edge with ${text} is shown`;
      this.edge.setCustomValidity(found === undefined ? `no edge with ${text} is shown` : "");
      this.edge.reportValidity();
    } else this.edge.setCustomValidity("");
  }

  show(scores) {
    const { viewer } = this, { told, view, pair } = viewer, same = (names) => names.map((name) => [name, name]);
    fill(this.pair, told.pairs.map(({ name, method }) => [name, method ? `${name} (${method})` : name]), view.pair);
    fill(this.problem, [[MEAN, MEAN], ...pair.problems.map(([id, question, scored]) => [id, `${id}${scored ? "" : " (not selected)"}${question ? `: ${question}` : ""}`])], view.problem);
    fill(this.level, same(viewer.levels), view.level);
    fill(this.measure, same(scores ? scores.measures.map(({ name }) => name) : ["score"]), scores ? scores.measure(view.measure).name : "score");
    const panels = viewer.panels.map(({ name }) => name);
    fill(this.panel, [["all", panels.length > 1 ? "all" : panels[0] || "all"], ...(panels.length > 1 ? same(panels) : [])], panels.includes(view.panel) ? view.panel : "all");
    for (const [control, value] of [[this.low, view.layers[0]], [this.high, view.layers[1]]]) {
      fill(control, Array.from({ length: pair.layers + 1 }, (_, layer) => [String(layer), String(layer)]), String(value));
    }
    this.sources.value = view.sources;
    this.destinations.value = view.destinations;
    renew(this.alpha, view.alpha);
    this.alpha.disabled = !told.computes;
    this.k.value = view.k;
    this.tellK();
    this.exact.checked = view.exact;
    this.parts.pair.hidden = told.pairs.length < 2;
    this.parts.level.hidden = viewer.levels.length < 2;
    this.parts.alpha.hidden = view.alpha === null;
    this.parts.measure.hidden = !scores || scores.measures.length < 2;
    this.parts.panel.hidden = panels.length < 2;
    this.parts.exact.hidden = !told.computes;
    renew(this.edge, view.edge.replace("->", " → "));
    const names = scores ? viewer.order.slice(0, OFFERED).map((edge) => scores.name(edge).replace("->", " → ")) : [];
    if (this.names !== names.join()) {
      this.names = names.join();
      this.offered.replaceChildren(...names.map((name) => h("option", { value: name })));
    }
  }
}

/* Show a value in a field, unless it is there already: what is being typed is left alone. */
function renew(field, value) {
  if (field.dataset.shown === String(value)) return;
  field.value = value;
  field.dataset.shown = value;
}
