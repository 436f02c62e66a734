"use strict";
// Draws the charts in the page's colours; charts of one group zoom together.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const heat = () => dark.matches
    ? [[0, "#14171b"], [0.25, "#3b1f5c"], [0.5, "#9c2e6f"], [0.75, "#ee6a4c"], [1, "#fde68a"]]
    : [[0, "#ffffff"], [0.25, "#fde0a8"], [0.5, "#f2924b"], [0.75, "#c43c4e"], [1, "#4a1260"]];

  // Colour names that stand for the page's own colours.
  function coloured(value) {
    if (value === "ink") return variable("--ink");
    if (value === "paper") return variable("--paper");
    if (value === "heat") return heat();
    if (Array.isArray(value)) return value;
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) =>
        [key, ["x", "y", "z", "text", "name"].includes(key) ? item : coloured(item)]));
    }
    return value;
  }

  function layout(chart) {
    const axis = { gridcolor: variable("--grid"), linecolor: variable("--rule"), zerolinecolor: variable("--rule"),
      zeroline: false, automargin: true, title: { standoff: 10 } };
    const given = chart.layout;
    return { ...coloured(given),
      xaxis: { ...axis, ...given.xaxis }, yaxis: { ...axis, ...given.yaxis },
      paper_bgcolor: variable("--paper"), plot_bgcolor: variable("--paper"),
      font: { color: variable("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 } };
  }

  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const options = { responsive: true, displaylogo: false, displayModeBar: still ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const ids = Object.keys(charts);

  function draw() {
    return Promise.all(ids.map((id) =>
      Plotly.react(id, charts[id].data.map(coloured), layout(charts[id]), options)));
  }

  let zooming = false;
  function link(id) {
    document.getElementById(id).on("plotly_relayout", (change) => {
      const reset = change["xaxis.autorange"];
      const range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (zooming || (!reset && range[0] === undefined)) return;
      zooming = true;
      const others = ids.filter((other) => other !== id && charts[other].group === charts[id].group);
      Promise.all(others.map((other) => Plotly.relayout(other,
        reset ? { "xaxis.autorange": true } : { "xaxis.range": range }))).finally(() => { zooming = false; });
    });
  }

  draw().then(() => {
    ids.filter((id) => charts[id].group).forEach(link);
    document.documentElement.dataset.drawn = ids.length;
  });
  dark.addEventListener("change", draw);
})();
