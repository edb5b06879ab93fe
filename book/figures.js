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
    var config = Object.assign({ responsive: true, displaylogo: false }, figure.config);
    fit(target, figure.layout || {});
    return loading.then(function () {
      return window.Plotly.newPlot(target, figure.data, figure.layout, config);
    }).then(function (plot) { // the text that stands for the figure describes it; its strokes say nothing to a screen reader
      target.querySelectorAll(".main-svg").forEach(function (svg) { svg.setAttribute("aria-hidden", "true"); });
      return plot;
    });
  };

  /* On a narrow page: panels keep a width at which they can be read (their place scrolls), and long titles break. */
  function fit(target, layout) {
    var starts = {};
    Object.keys(layout).forEach(function (key) {
      if (/^xaxis[0-9]*$/.test(key) && layout[key].domain) { starts[layout[key].domain[0].toFixed(2)] = true; }
    });
    var columns = Object.keys(starts).length;
    var width = target.getBoundingClientRect().width;
    if (columns > 1 && width < 600) { target.style.minWidth = 230 * columns + "px"; }
    if (!width || !layout.title) { return; }
    var more = broken(layout.title, width / 9) * 22;
    if (layout.title.subtitle) { more += broken(layout.title.subtitle, width / 6.6) * 24; }
    if (more) {
      layout.margin = Object.assign({}, layout.margin);
      layout.margin.t = (layout.margin.t || template(layout) || 100) + more;
      if (layout.height) { layout.height += more; }
    }
  }

  function template(layout) {
    var given = layout.template && layout.template.layout && layout.template.layout.margin;
    return given && given.t;
  }

  /* Break a plain title at spaces to lines of so many characters; returns how many lines were added. */
  function broken(title, characters) {
    if (!title.text || title.text.length <= characters || title.text.indexOf("<") >= 0) { return 0; }
    var lines = [""];
    title.text.split(" ").forEach(function (word) {
      var last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > characters) { lines.push(word); } else {
        lines[lines.length - 1] = last ? last + " " + word : word;
      }
    });
    title.text = lines.join("<br>");
    return lines.length - 1;
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
