/* The slider of rlcircuits.lessons.removal_html: a share of an edge is removed, and every token's loss follows. The numbers lie in
   the figure; the table that stands there without scripts stays, folded. */
(function () {
  "use strict";
  var W = 320, H = 130, LEFT = 8, RIGHT = 8, TOP = 10, BOTTOM = 10;

  function make(name, attributes, parent, text) {
    var svg = /^(svg|path|circle)$/.test(name);
    var made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    Object.keys(attributes).forEach(function (key) { made.setAttribute(key, attributes[key]); });
    if (text !== undefined) { made.textContent = text; }
    parent.appendChild(made);
    return made;
  }

  function shown(value) { return (Math.abs(value) >= 0.01 ? value.toFixed(2) : value.toPrecision(1)).replace("-", "−"); }

  function mean(values) { return values.reduce(function (a, b) { return a + b; }, 0) / values.length; }

  function start(figure) {
    var data = JSON.parse(figure.querySelector("script").textContent);
    var place = figure.querySelector(".rlc-removal-live");
    var means = data.losses.map(function (edge) { return edge.map(mean); });
    var most = function (values) { return Math.max.apply(null, values); };
    var top = data.losses.map(function (edge) { return most(edge.map(most)); }); // every edge has scales of its own
    var highest = means.map(most);

    var line = make("p", {}, place);
    var edge = make("select", {}, make("label", {}, line, "Edge "));
    data.edges.forEach(function (name, i) { make("option", { value: i }, edge, name.replace("->", " → ")); });
    var label = make("label", {}, line, "Share removed ");
    var slider = make("input", { type: "range", min: 0, max: data.shares.length - 1, step: 1, value: 0 }, label);
    var said = make("output", {}, place);
    var tokens = make("ol", { "aria-label": "The answer's tokens, each with its loss in nats" }, place);
    var bars = data.tokens.map(function (token) {
      var item = make("li", {}, tokens);
      var bar = make("span", { class: "bar" }, item);
      make("span", { class: "token" }, item, token);
      return { bar: bar, loss: make("span", { class: "loss" }, item) };
    });
    var curve = make("svg", { viewBox: "0 0 " + W + " " + H, "aria-hidden": "true" }, place);
    make("path", { class: "axis", d: "M" + LEFT + " " + (H - BOTTOM) + "H" + (W - RIGHT) }, curve);
    var straight = make("path", { class: "score" }, curve);
    var path = make("path", { class: "removed" }, curve);
    var dot = make("circle", { r: 5 }, curve);
    make("p", { class: "key" }, place, "Curve: loss per token against the share removed, by running the model again; dashed: what the score foresees. Each edge has scales of its own.");

    function x(i) { return LEFT + data.shares[i] * (W - LEFT - RIGHT); }
    function y(loss) { return H - BOTTOM - Math.max(-0.06, Math.min(1.06, loss / highest[Number(edge.value)])) * (H - TOP - BOTTOM); }
    function along(values) { return "M" + values.map(function (v, i) { return x(i).toFixed(1) + " " + y(v).toFixed(1); }).join("L"); }

    function draw() {
      var e = Number(edge.value), s = Number(slider.value), losses = data.losses[e][s];
      var foreseen = data.shares.map(function (share) { return means[e][0] + share * data.scores[e]; });
      var percent = Math.round(100 * data.shares[s]) + " %";
      bars.forEach(function (one, i) {
        one.bar.style.height = Math.max(1, 56 * losses[i] / top[e]) + "px";
        one.loss.textContent = shown(losses[i]);
      });
      path.setAttribute("d", along(means[e]));
      straight.setAttribute("d", along(foreseen));
      dot.setAttribute("cx", x(s));
      dot.setAttribute("cy", y(means[e][s]));
      said.textContent = percent + " of " + data.edges[e].replace("->", " → ") + " removed: " + shown(means[e][s]) +
        " nats per token, from " + shown(means[e][0]) + "; its score foresees " + shown(foreseen[s]) + ".";
      slider.setAttribute("aria-valuetext", percent);
    }
    edge.addEventListener("change", draw);
    slider.addEventListener("input", draw);
    draw();
    figure.querySelector("details").open = false;
  }

  document.addEventListener("DOMContentLoaded", function () { document.querySelectorAll(".rlc-removal").forEach(start); });
})();
