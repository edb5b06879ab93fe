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
    return loading.then(function () { return window.Plotly.newPlot(target, figure.data, figure.layout, config); });
  };

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
  document.addEventListener("DOMContentLoaded", function () { window.rlcDraw(document); });
})();
