/* The residual graph, the heatmap and the scatter: each draws with a pen, so the same code makes what is seen and what
   is saved, and says what lies at a place. */

import { digits } from "./dom.js";
import { FONT, diverging } from "./paint.js";

const font = (pen, size, weight = "") => { pen.font = `${weight}${size}px ${FONT}`; };

/* --- the graph: input below, logits above, attention to the left, MLPs to the right --- */

/* Where the picture's places are in a frame, before the viewport moves it. */
export function frame(scores, width, height) {
  const tops = scores.nodes.map(([, , y]) => y), top = Math.max(1, ...tops), left = width < 300 ? 30 : 62, above = 16, below = 20;
  const wide = scores.heads ? 1.1 : 0.85;
  const pitch = (height - above - below) / top;
  const place = ([, x, y]) => [left + ((x / wide + 1) / 2) * (width - left - 8), height - below - y * pitch];
  return { places: scores.nodes.map(place), pitch, left };
}

/* The three points of an edge's curve, which swings out to its own side. */
function curve(start, end, middle, width) {
  const side = start[0] + end[0] > 2 * middle ? 1 : -1;
  const swing = (start[0] + end[0]) / 2 + side * 0.09 * Math.abs(end[1] - start[1]);
  return [start, [Math.min(width - 6, Math.max(6, swing)), (start[1] + end[1]) / 2], end];
}

const along = ([a, b, c], t) => [0, 1].map((i) => (1 - t) ** 2 * a[i] + 2 * t * (1 - t) * b[i] + t * t * c[i]);

/* One panel of the graph: what it draws, and where it is. */
export class GraphPanel {
  constructor(scores, panel, edges, chosen) {
    Object.assign(this, { scores, panel, chosen });
    this.edges = chosen !== null && !edges.includes(chosen) && Number.isFinite(panel.values[chosen]) ? [chosen, ...edges] : edges;
    this.largest = Math.max(1e-300, ...this.edges.map((edge) => Math.abs(panel.values[edge])));
  }

  /* Curves in the frame's own places, strongest last; made again when the frame's size changes. */
  curves(width, height) {
    if (this.made !== `${width} ${height}`) {
      this.made = `${width} ${height}`;
      this.frame = frame(this.scores, width, height);
      const middle = (this.frame.left + width - 8) / 2;
      const { places } = this.frame, { from, into } = this.scores;
      this.lines = this.edges.map((edge) => curve(places[from[edge]], places[into[edge]], middle, width)).reverse();
      this.order = [...this.edges].reverse();
    }
    return this.lines;
  }

  draw(pen, view, theme, { width, height }, hovered) {
    const lines = this.curves(width, height), { values } = this.panel;
    const { places, pitch } = this.frame, radius = Math.min(12, Math.max(1.6, 0.36 * pitch * view.k));
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = theme.back;
    pen.fillRect(0, 0, width, height);
    pen.textBaseline = "alphabetic";
    font(pen, 12);
    pen.fillStyle = theme.quiet;
    pen.textAlign = "left";
    let last = Infinity;
    for (const [y, name] of this.scores.ticks) {
      const at = view.to(0, height - 20 - y * pitch)[1];
      if (last - at < 14 || at < 8 || at > height) continue;
      if (width >= 300 || name.startsWith("layer")) pen.fillText(width < 300 ? name.replace("layer ", "L") : name, 4, at + 4);
      last = at;
    }
    const strong = [];
    const line = (i) => {
      const edge = this.order[i], [a, b, c] = lines[i].map(([x, y]) => view.to(x, y));
      const part = Math.sqrt(Math.abs(values[edge]) / this.largest), out = edge === this.chosen || edge === hovered;
      pen.strokeStyle = pen.fillStyle = values[edge] >= 0 ? theme.positive : theme.negative;
      pen.setLineDash(values[edge] >= 0 ? [] : [6, 3]);
      pen.globalAlpha = out ? 1 : 0.3 + 0.6 * part;
      pen.lineWidth = (out ? 2 : 0) + 0.8 + 2.4 * part;
      pen.beginPath();
      pen.moveTo(...a);
      pen.quadraticCurveTo(...b, ...c);
      pen.stroke();
      pen.setLineDash([]);
      const [x, y] = along([a, b, c], 0.5);
      pen.beginPath();
      pen.arc(x, y, 2 + 4.5 * part, 0, 2 * Math.PI);
      pen.fill();
      if (out) {
        pen.strokeStyle = theme.chosen;
        pen.lineWidth = 2;
        pen.stroke();
      }
      if (out || i >= lines.length - 3) strong.push([edge, x + 8 + 4.5 * part, y + 4, out]);
    };
    lines.forEach((_, i) => { if (this.order[i] !== this.chosen && this.order[i] !== hovered) line(i); });
    lines.forEach((_, i) => { if (this.order[i] === this.chosen || this.order[i] === hovered) line(i); });
    pen.globalAlpha = 1;
    this.nodes(pen, view, theme, places, radius);
    // The strongest edges carry their name, where no other name is in the way.
    font(pen, 12, "600 ");
    pen.textAlign = "left";
    const taken = [];
    for (const [edge, x, y, out] of strong.reverse().sort((a, b) => b[3] - a[3])) {
      const text = this.scores.name(edge).replace("->", " → "), wide = pen.measureText(text).width;
      const left = Math.max(2, Math.min(x, width - wide - 4));
      if (taken.some(([a, b, w]) => Math.abs(b - y) < 15 && left < a + w + 4 && a < left + wide + 4)) continue;
      taken.push([left, y, wide]);
      pen.globalAlpha = 0.85;
      pen.fillStyle = theme.back;
      pen.fillRect(left - 2, y - 12, wide + 4, 16);
      pen.globalAlpha = 1;
      pen.fillStyle = theme.ink;
      pen.fillText(text, left, y);
    }
    if (!lines.length) {
      font(pen, 14);
      pen.textAlign = "center";
      pen.fillStyle = theme.ink;
      pen.fillText("no edge to show", width / 2, height / 2);
    }
  }

  nodes(pen, view, theme, places, radius) {
    pen.textAlign = "center";
    font(pen, Math.min(11, radius));
    pen.lineWidth = 1;
    this.scores.nodes.forEach(([name, , , , kind], i) => {
      const [x, y] = view.to(...places[i]), label = name.slice(name.lastIndexOf(".") + 1);
      pen.fillStyle = theme.node;
      pen.strokeStyle = theme.rim;
      pen.beginPath();
      if (kind === "attention") pen.arc(x, y, radius, 0, 2 * Math.PI);
      else {
        const half = Math.max(radius, radius < 8 ? 0 : pen.measureText(label).width / 2 + 3);
        pen.rect(x - half, y - radius * 0.8, 2 * half, radius * 1.6);
      }
      pen.fill();
      pen.stroke();
      if (radius >= 8) {
        pen.fillStyle = theme.ink;
        pen.fillText(label, x, y + radius * 0.36);
      }
    });
  }

  /* The edge nearest to a place within a few pixels, or the node there. */
  at(x, y, view, width, height) {
    let best = 9, found = {};
    this.curves(width, height).forEach((line, i) => {
      const points = line.map((point) => view.to(...point));
      for (let step = 1; step < 24; step += 1) {
        const [a, b] = along(points, step / 24), distance = Math.hypot(a - x, b - y);
        if (distance < best) { best = distance; found = { edge: this.order[i] }; }
      }
    });
    const node = this.frame.places.findIndex((place) => {
      const [a, b] = view.to(...place);
      return Math.hypot(a - x, b - y) < 7;
    });
    return node >= 0 && best > 4 ? { node } : found;
  }

  /* Where an edge's dot is seen. */
  dot(edge, view, width, height) {
    const i = (this.curves(width, height), this.order.indexOf(edge));
    return i < 0 ? null : along(this.lines[i].map((point) => view.to(...point)), 0.5);
  }
}

/* --- the heatmap: sources by destinations --- */

export class HeatPanel {
  constructor(scores, panel, edges, chosen, range) {
    Object.assign(this, { scores, panel, chosen, range });
    this.shown = new Set(edges);
    this.cells = new Map(Array.from(scores.rows, (row, edge) => [row * scores.destinations.length + scores.columns[edge], edge]));
  }

  box(width, height) {
    const rows = this.scores.sources.length, columns = this.scores.destinations.length, left = 58;
    const below = 28 + 4 * Math.max(6, ...this.scores.destinations.map(([name]) => name.length)); // for their slanted names
    const cell = [(width - left - 6) / columns, (height - below - 6) / rows].map((side) => Math.min(48, side));
    return { rows, columns, left, top: 4, below, cell };
  }

  image(theme) {
    if (this.painted === theme) return this.bitmap;
    const { rows, columns } = this.box(1, 1), colour = diverging(theme);
    const canvas = this.bitmap = document.createElement("canvas");
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    const none = [1, 3, 5].map((i) => parseInt(theme.none.slice(i, i + 2), 16));
    for (let i = 0; i < rows * columns; i += 1) image.data.set([...none, 255], 4 * i);
    for (const edge of this.shown) {
      const i = this.scores.rows[edge] * columns + this.scores.columns[edge];
      image.data.set(colour(this.panel.values[edge] / this.range), 4 * i);
    }
    context.putImageData(image, 0, 0);
    this.painted = theme;
    return canvas;
  }

  draw(pen, view, theme, { width, height }, hovered) {
    const { rows, columns, left, top, below, cell } = this.box(width, height);
    const [x, y] = view.to(left, top), [w, h] = cell.map((side) => side * view.k);
    pen.fillStyle = theme.back;
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingEnabled = false;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width - left - 6, Math.min(height - below - 4, rows * cell[1] * view.k));
    pen.clip();
    pen.drawImage(this.image(theme), x, y, columns * w, rows * h);
    for (const edge of [hovered, this.chosen]) {
      if (edge === null || edge === undefined) continue;
      pen.strokeStyle = theme.chosen;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.rect(x + this.scores.columns[edge] * w, y + this.scores.rows[edge] * h, Math.max(4, w), Math.max(4, h));
      pen.stroke();
    }
    pen.restore();
    font(pen, 11);
    pen.fillStyle = theme.quiet;
    pen.textAlign = "right";
    for (let i = 0; i < rows; i += Math.max(1, Math.ceil(13 / h))) {
      const at = y + (i + 0.5) * h;
      if (at > top && at < height - below) pen.fillText(this.scores.sources[i][0], left - 4, at + 4);
    }
    for (let i = 0; i < columns; i += Math.max(1, Math.ceil(13 / w))) {
      const at = x + (i + 0.5) * w;
      if (at < left || at > width - 6) continue;
      pen.save();
      pen.translate(at + 4, Math.min(height - below + 4, y + rows * h + 6));
      pen.rotate(-Math.PI / 3);
      pen.fillText(this.scores.destinations[i][0], 0, 4);
      pen.restore();
    }
  }

  at(x, y, view, width, height) {
    const { rows, columns, left, top, cell } = this.box(width, height);
    const [a, b] = view.from(x, y), row = Math.floor((b - top) / cell[1]), column = Math.floor((a - left) / cell[0]);
    const edge = row >= 0 && row < rows && column >= 0 && column < columns ? this.cells.get(row * columns + column) : undefined;
    return edge !== undefined && this.shown.has(edge) ? { edge } : {};
  }
}

/* --- a dot for each problem --- */

/* An axis from low to high: linear, or asinh(value / unit) where most values would lie on top of each other. */
export function axis(values) {
  const finite = [...values.filter(Number.isFinite), 0], sizes = finite.map(Math.abs).filter(Boolean).sort((a, b) => a - b);
  const most = sizes[sizes.length - 1] || 1;
  const spread = sizes.length > 2 && sizes[Math.floor(sizes.length / 2)] < most / 20;
  const unit = spread ? 10 ** Math.floor(Math.log10(sizes[Math.floor(sizes.length / 10)])) : 1;
  const to = spread ? (value) => Math.asinh(value / unit) : (value) => value;
  let low = Math.min(...finite.map(to)), high = Math.max(...finite.map(to));
  const pad = 0.06 * (high - low) || 1e-6;
  low -= pad;
  high += pad;
  let ticks;
  if (spread) {
    const powers = [], first = Math.round(Math.log10(unit)), last = Math.floor(Math.log10(1.2 * most));
    for (let p = last; p >= first; p -= Math.max(1, Math.ceil((last - first + 1) / 4))) powers.unshift(10 ** p);
    ticks = [...powers.map((p) => -p).reverse(), 0, ...powers].filter((t) => to(t) >= low && to(t) <= high);
  } else {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
    ticks = [];
    for (let n = Math.ceil(low / step); n * step <= high; n += 1) ticks.push(n * step);
  }
  const place = (value) => (to(value) - low) / (high - low), kept = [0];
  const apart = (tick) => kept.every((other) => Math.abs(place(tick) - place(other)) > 0.12);
  for (const tick of [...ticks].sort((a, b) => Math.abs(b) - Math.abs(a))) if (apart(tick)) kept.push(tick);
  return { place, ticks: kept.sort((a, b) => a - b), spread };
}

export class Scatter {
  /* series: [{name, x, y}] by problem, at most two. */
  constructor(series, problems, titles) {
    Object.assign(this, { series, problems }, titles);
    this.axis = axis(series.flatMap((one) => [...one.x, ...one.y]));
  }

  box(width, height) {
    const left = 64, below = 46, side = Math.max(60, Math.min(width - left - 14, height - below - 10));
    return { left, top: 8, side };
  }

  spot(x, y, width, height) {
    const { left, top, side } = this.box(width, height);
    return [left + this.axis.place(x) * side, top + side - this.axis.place(y) * side];
  }

  draw(pen, _view, theme, { width, height }, hovered, problem) {
    const { left, top, side } = this.box(width, height), at = this.axis.place;
    pen.fillStyle = theme.back;
    pen.fillRect(0, 0, width, height);
    font(pen, 11);
    pen.lineWidth = 1;
    for (const tick of this.axis.ticks) {
      const p = at(tick) * side;
      pen.strokeStyle = theme.line;
      pen.beginPath();
      pen.moveTo(left + p, top);
      pen.lineTo(left + p, top + side);
      pen.moveTo(left, top + side - p);
      pen.lineTo(left + side, top + side - p);
      pen.stroke();
      pen.fillStyle = theme.quiet;
      pen.textAlign = "center";
      pen.fillText(digits(tick), left + p, top + side + 15);
      pen.textAlign = "right";
      pen.fillText(digits(tick), left - 5, top + side - p + 4);
    }
    pen.strokeStyle = theme.quiet;
    pen.beginPath();
    pen.rect(left, top, side, side);
    pen.stroke();
    pen.setLineDash([5, 4]);
    pen.beginPath();
    pen.moveTo(left, top + side);
    pen.lineTo(left + side, top);
    pen.stroke();
    pen.setLineDash([]);
    for (const out of [false, true]) {
      this.series.forEach((one, number) => this.problems.forEach((id, i) => {
        if ((id === problem || i === hovered) !== out || !Number.isFinite(one.x[i]) || !Number.isFinite(one.y[i])) return;
        const [x, y] = this.spot(one.x[i], one.y[i], width, height), radius = out ? 6 : 3.5;
        pen.fillStyle = number ? theme.positive : theme.negative;
        pen.globalAlpha = out ? 1 : 0.6;
        pen.beginPath();
        if (number) pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
        else pen.arc(x, y, radius, 0, 2 * Math.PI);
        pen.fill();
        pen.globalAlpha = 1;
        if (!out) return;
        pen.strokeStyle = theme.chosen;
        pen.lineWidth = 2;
        pen.stroke();
      }));
    }
    font(pen, 12);
    pen.fillStyle = theme.ink;
    pen.textAlign = "center";
    pen.fillText(this.across, left + side / 2, top + side + 34);
    pen.save();
    pen.translate(13, top + side / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(this.up, 0, 0);
    pen.restore();
  }

  at(x, y, _view, width, height) {
    let best = 12, found = {};
    this.series.forEach((one) => this.problems.forEach((id, i) => {
      const [a, b] = this.spot(one.x[i], one.y[i], width, height), distance = Math.hypot(a - x, b - y);
      if (distance < best) { best = distance; found = { problem: i }; }
    }));
    return found;
  }
}

