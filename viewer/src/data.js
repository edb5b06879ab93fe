/* The document that rlcircuits.lab.document writes, as arrays to draw from. */

const KINDS = { f4: Float32Array, u2: Uint16Array, u4: Uint32Array };

/* A packed array: {type, data: base64 of little-endian numbers, scale}. */
export function unpack(told) {
  const bytes = Uint8Array.from(atob(told.data), (c) => c.charCodeAt(0));
  if (told.type !== "f2") return new KINDS[told.type](bytes.buffer);
  const halves = new Uint16Array(bytes.buffer);
  return Float32Array.from(halves, (half) => half16(half) * told.scale);
}

function half16(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

/* The scores of a pair at a level and α. An edge is its place in rows, columns and each panel's values. */
export class Scores {
  constructor(told) {
    Object.assign(this, told);
    this.rows = unpack(told.rows);
    this.columns = unpack(told.columns);
    this.n = this.rows.length;
    this.places = new Map(this.nodes.map(([name, x, y]) => [name, [x, y]]));
    this.from = Array.from(this.rows, (row) => this.sources[row][1]);
    this.into = Array.from(this.columns, (column) => this.destinations[column][1]);
    this.index = new Map();
    for (let edge = 0; edge < this.n; edge += 1) this.index.set(this.name(edge), edge);
    this.measures = told.measures.map((measure) => ({
      name: measure.name,
      panels: measure.panels.map((panel) => ({
        name: panel.name, mean: unpack(panel.mean), each: panel.each ? unpack(panel.each) : null,
      })),
    }));
    this.losses = Object.fromEntries(Object.entries(told.losses).filter(([, one]) => one).map(([side, one]) => {
      const values = unpack(one.values);
      let end = 0;
      return [side, new Map(this.samples.map((id, i) => [id, values.subarray(end, (end += one.lengths[i]))]))];
    }));
  }

  name(edge) {
    return `${this.sources[this.rows[edge]][0]}->${this.destinations[this.columns[edge]][0]}`;
  }

  measure(name) {
    return this.measures.find((measure) => measure.name === name) || this.measures[0];
  }

  /* Panels [{name, values by edge}] of a measure on a problem, or on average where problem is null. With two
     models the third is their difference. */
  panels(name, problem) {
    const at = problem === null ? -1 : this.samples.indexOf(problem);
    const found = this.measure(name).panels.map((panel) => ({
      name: panel.name,
      values: at < 0 || !panel.each ? panel.mean : panel.each.subarray(at * this.n, (at + 1) * this.n),
      average: at < 0 || !panel.each,
    }));
    if (found.length === 2) {
      const [first, second] = found;
      found.push({
        name: `${second.name} − ${first.name}`, difference: true, average: first.average || second.average,
        values: second.values.map((value, edge) => value - first.values[edge]),
      });
    }
    return found;
  }

  /* One edge on every problem: [{name, values by problem}] of a measure, where it was taken by problem. */
  edge(edge, name = "score") {
    const each = (panel) => Float64Array.from(this.samples, (_, i) => panel.each[i * this.n + edge]);
    const panels = this.measure(name).panels.filter((panel) => panel.each);
    return panels.map((panel) => ({ name: panel.name, values: each(panel) }));
  }

  /* Edges that go between these layers and kinds, strongest first in `values`. Nodes without a layer are in every range. */
  kept({ layers, sources, destinations }, values) {
    const fits = (node, kind) => {
      const [, , , layer, its] = this.nodes[node];
      return (kind === "all" || kind === its) && (layer < 0 || (layer >= layers[0] && layer <= layers[1]));
    };
    const source = this.nodes.map((_, node) => fits(node, sources));
    const destination = this.nodes.map((_, node) => fits(node, destinations));
    const found = [];
    for (let edge = 0; edge < this.n; edge += 1) {
      if (source[this.from[edge]] && destination[this.into[edge]] && Number.isFinite(values[edge])) found.push(edge);
    }
    return found.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]) || a - b);
  }
}

/* Both models' answers to the problems of a pair. */
export class Texts {
  constructor(told) {
    Object.assign(this, told);
    this.sides = Object.fromEntries(["base", "tuned"].map((side) => {
      const one = told[side], flat = unpack(one.answers), answers = new Map();
      let end = 0;
      one.of.forEach((id, i) => {
        const shown = Math.min(one.lengths[i], told.longest);
        answers.set(id, {
          correct: one.correct[i], strict: one.strict[i], length: one.lengths[i], text: one.texts && one.texts[i],
          tokens: Array.from(flat.subarray(end, (end += shown)), (place) => ({
            id: told.ids[place], text: told.tokens && told.tokens[place],
          })),
        });
      });
      return [side, answers];
    }));
  }
}

/* The `quantile` of |values| where they are finite; 1 when there is nothing but 0. */
export function reach(arrays, quantile = 0.98) {
  const sizes = Float64Array.from(arrays.flatMap((one) => Array.from(one).filter(Number.isFinite).map(Math.abs))).sort();
  if (!sizes.length || !sizes[sizes.length - 1]) return 1;
  return sizes[Math.floor(quantile * (sizes.length - 1))] || sizes[sizes.length - 1];
}
