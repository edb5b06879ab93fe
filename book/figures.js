/* Draws every figure that rlcircuits.display.show left on the page, with the book's own copy of plotly.js.
   plotly.js (4.8 MB) is fetched only by pages that have a figure. */
(function () {
  "use strict";
  /* Draw one figure into an element; loads plotly.js the first time. */
  var loading;
  window.rlcPlot = function (target, figure) {
    loading = loading || new Promise(function (resolve, reject) {
      var script = document.createElement("script");
      script.src = (document.documentElement.dataset.content_root || "./") + "vendor/plotly.min.js";
      script.onload = resolve;
      script.onerror = reject;
      document.head.appendChild(script);
    });
    var narrow = target.parentNode.clientWidth < NARROW, layout = figure.layout || {};
    // On a phone a figure's buttons would lie on its title; fingers move and zoom it without them.
    var config = Object.assign({ responsive: true, displaylogo: false }, narrow ? { displayModeBar: false } : {}, figure.config);
    fit(target, figure, narrow);
    return loading.then(function () {
      return window.Plotly.newPlot(target, figure.data, figure.layout, config);
    }).then(function (plot) {
      var size = plot._fullLayout && plot._fullLayout._size; // how much is left for panels is known only now
      if (!size) { return plot; }
      var change = labels(figure.layout, size), legend = plot._fullLayout.legend;
      if (narrow && legend && legend._height > 50) { grow(layout, "b", legend._height - 45); change.height = layout.height; }
      if (heads(figure.layout, size.w)) { change.annotations = JSON.parse(JSON.stringify(figure.layout.annotations)); }
      if (!Object.keys(change).length) { return plot; }
      Object.assign(change, { margin: Object.assign({}, figure.layout.margin), height: figure.layout.height });
      return window.Plotly.relayout(plot, change).then(function () { return plot; });
    }).then(function (plot) { // the text that stands for the figure describes it; its strokes say nothing to a screen reader
      target.querySelectorAll(".main-svg").forEach(function (svg) { svg.setAttribute("aria-hidden", "true"); });
      return plot;
    });
  };

  /* On a narrow page: panels and cells keep a width at which they can be read (their place scrolls); long titles break. */
  var NARROW = 600;
  function fit(target, figure, narrow) {
    var layout = figure.layout || {}, columns = Object.keys(panels(layout)).length;
    var width = target.getBoundingClientRect().width;
    var cells = figure.data.some(function (trace) { return trace.type === "heatmap"; });
    if (narrow && (columns > 1 || cells)) { target.style.minWidth = Math.max(230 * columns, cells ? 520 : 0) + "px"; }
    if (!width || !layout.title) { return; }
    var more = broken(layout.title, width / 10) * 24;
    if (layout.title.subtitle) { more += broken(layout.title.subtitle, width / 7.8) * 18; }
    grow(layout, "t", more);
  }

  /* The panels' places across, by where they start. */
  function panels(layout) {
    var found = {};
    Object.keys(layout).forEach(function (key) {
      if (/^xaxis[0-9]*$/.test(key) && layout[key].domain) { found[layout[key].domain[0].toFixed(2)] = layout[key].domain; }
    });
    return found;
  }

  function grow(layout, side, more) {
    if (!more) { return; }
    var given = layout.template && layout.template.layout && layout.template.layout.margin;
    layout.margin = Object.assign({}, given, layout.margin);
    layout.margin[side] = (layout.margin[side] || 100) + more;
    if (layout.height) { layout.height += more; }
  }

  /* Titles of axes become no longer than their axis; returns which, as attributes by their names. */
  function labels(layout, size) {
    var change = {}, grown = 0;
    Object.keys(layout).forEach(function (key) {
      var axis = layout[key], across = /^xaxis[0-9]*$/.test(key);
      if (!across && !/^yaxis[0-9]*$/.test(key) || !axis.title || !axis.title.text) { return; }
      var domain = axis.domain || [0, 1], length = (domain[1] - domain[0]) * (across ? size.w : size.h);
      var lines = broken(axis.title, length / (0.6 * ((axis.title.font && axis.title.font.size) || 14)));
      if (lines) { change[key + ".title.text"] = axis.title.text; }
      if (across) { grown = Math.max(grown, lines * 18); }
    });
    grow(layout, "b", grown);
    return change;
  }

  /* Titles of panels become no wider than their panel, of so many pixels that all panels have; returns whether one changed. */
  function heads(layout, inner) {
    var places = panels(layout), grown = 0, changed = false;
    (layout.annotations || []).forEach(function (head) {
      if (head.xref !== "paper" || head.yref !== "paper" || head.yanchor !== "bottom" || head.showarrow) { return; }
      var over = Object.keys(places).map(function (key) { return places[key]; })
        .filter(function (place) { return place[0] - 0.01 <= head.x && head.x <= place[1] + 0.01; })[0];
      if (!over || /<(?!br>)/.test(head.text)) { return; }
      var size = (head.font && head.font.size) || 14, before = head.text;
      head.text = before.replace(/<br>/g, " ");
      broken(head, (over[1] - over[0]) * inner / (0.6 * size));
      changed = changed || head.text !== before;
      if (head.y > 0.999) { grown = Math.max(grown, (head.text.split("<br>").length - before.split("<br>").length) * size * 1.35); }
    });
    grow(layout, "t", Math.ceil(grown));
    return changed;
  }

  /* Break a title at spaces and after slashes and hyphens to lines of so many characters; returns how many lines were added. */
  function broken(title, characters) {
    var before = (title.text || "").split("<br>"), lines = [];
    before.forEach(function (line) {
      if (line.length <= characters || line.indexOf("<") >= 0) { lines.push(line); return; }
      var last = "";
      line.split(/(?<=[ /-])/).forEach(function (word) {
        if (last && (last + word).trim().length > characters) { lines.push(last.trim()); last = ""; }
        last += word;
      });
      lines.push(last.trim());
    });
    title.text = lines.join("<br>");
    return lines.length - before.length;
  }

  /* Draw all figures within an element that are not drawn yet. */
  window.rlcDraw = function (root) {
    root.querySelectorAll(".rlc-plot:not([data-drawn])").forEach(function (place) {
      place.dataset.drawn = "soon";
      var figure = JSON.parse(place.parentNode.querySelector('script[type="application/json"]').textContent);
      var target = document.createElement("div");
      place.appendChild(target);
      window.rlcPlot(target, figure).then(
        function () {
          place.querySelector(".rlc-alt").remove();
          place.setAttribute("role", "group"); // an image holds no buttons, a drawn figure does
          if (place.scrollWidth > place.clientWidth) { place.tabIndex = 0; }
          place.dataset.drawn = "yes";
        },
        function (error) { // the text that stands for the figure stays
          target.remove();
          place.dataset.drawn = "no";
          throw error;
        }
      );
    });
  };

  /* The viewer (rlcircuits.lab) draws every place of its own when it is loaded; only pages that have one load it. */
  function viewers() {
    if (!document.querySelector(".rlc-viewer")) { return; }
    var script = document.createElement("script");
    script.src = (document.documentElement.dataset.content_root || "./") + "vendor/viewer.js";
    document.head.appendChild(script);
  }
  document.addEventListener("DOMContentLoaded", function () { window.rlcDraw(document); viewers(); });
})();
