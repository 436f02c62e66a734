"use strict";
// Draws the charts in the colours of the page. Charts of one group zoom together, with mouse or keyboard.
(async () => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const paper = document.documentElement.classList; // has the class "print" while printing: light theme, width of the paper
  const sheet = 660;
  const onDark = () => dark.matches && !paper.contains("print");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const heat = () => onDark()
    ? [[0, "#14171b"], [0.25, "#3b1f5c"], [0.5, "#9c2e6f"], [0.75, "#ee6a4c"], [1, "#fde68a"]]
    : [[0, "#ffffff"], [0.25, "#fde0a8"], [0.5, "#f2924b"], [0.75, "#c43c4e"], [1, "#4a1260"]];

  const lighter = { "#0072B2": "#4BA6E3", "#D55E00": "#FF8C42", "#009E73": "#2CC79B" };

  // Colour names refer to the colours of the page; dark colours are lightened in the dark theme.
  function coloured(value) {
    if (value === "ink") return variable("--ink");
    if (value === "page") return variable("--paper");
    if (value === "heat") return heat();
    if (onDark() && lighter[value]) return lighter[value];
    if (Array.isArray(value)) return value;
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) =>
        [key, ["x", "y", "z", "text", "name", "title"].includes(key) ? item
          : ["shapes", "annotations"].includes(key) ? item.map(coloured) : coloured(item)]));
    }
    return value;
  }

  function layout(chart) {
    const axis = { gridcolor: variable("--grid"), linecolor: variable("--rule"), zerolinecolor: variable("--rule"),
      zeroline: false, automargin: true };
    const given = coloured(chart.layout);
    const titled = (own) => ({ ...axis, ...own, title: { standoff: 10, ...own.title } });
    return { ...given, xaxis: titled(given.xaxis), yaxis: titled(given.yaxis),
      ...(given.xaxis2 && { xaxis2: titled(given.xaxis2) }),
      paper_bgcolor: variable("--paper"), plot_bgcolor: variable("--paper"),
      font: { color: variable("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 } };
  }

  // Limit the columns of a heat map to the number of pixels by taking the maximum of adjacent columns.
  function fitted(trace, pixels) {
    if (trace.type !== "heatmap" || trace.x.length - 1 <= pixels) return trace;
    const columns = trace.x.length - 1;
    const edges = Array.from({ length: pixels + 1 }, (_, i) => Math.round(i * columns / pixels));
    const pooled = (row) => edges.slice(1).map((end, i) => row.slice(edges[i], end)
      .reduce((most, value) => (value !== null && (most === null || value > most) ? value : most), null));
    return { ...trace, x: edges.map((edge) => trace.x[edge]), z: trace.z.map(pooled) };
  }

  const options = { responsive: true, displaylogo: false, displayModeBar: still ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const ids = Object.keys(charts);
  const node = (id) => document.getElementById(id);
  const drawn = new Set();
  const visible = (id) => node(id).checkVisibility();
  let range = null; // visible range of the time charts; null: everything
  let zooming = false;

  async function draw(id) {
    const wanted = layout(charts[id]);
    // Copy, because Plotly modifies its input.
    if (charts[id].group) wanted.xaxis.range = [...(range || charts[id].layout.xaxis.range)];
    const width = paper.contains("print") ? Math.min(sheet, node(id).clientWidth || sheet) : undefined;
    const inside = Math.max(100, (width ?? node(id).clientWidth) - 160);
    Object.assign(wanted, { width, autosize: width === undefined });
    const traces = charts[id].data.map((trace) => coloured(fitted(trace, inside)));
    await Plotly.react(node(id), traces, wanted, options);
    if (!drawn.has(id)) {
      drawn.add(id);
      if (charts[id].group) listen(id);
    }
    if (drawn.size === 1) performance.mark("first");
    document.documentElement.dataset.drawn = drawn.size;
  }

  // Show [first, last], or everything, in all charts of the group except the one that was dragged.
  async function zoom(to, done) {
    range = to;
    zooming = true;
    const others = [...drawn].filter((id) => id !== done && charts[id].group);
    await Promise.all(others.map((id) =>
      Plotly.relayout(node(id), { "xaxis.range": [...(to || charts[id].layout.xaxis.range)] })));
    zooming = false;
  }

  function listen(id) {
    node(id).on("plotly_relayout", (change) => {
      const to = change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      const reset = change["xaxis.autorange"];
      if (zooming || (!reset && to[0] === undefined)) return;
      zoom(reset ? null : to, reset ? null : id);
    });
    node(id).addEventListener("keydown", (event) => {
      const [first, last] = node(id)._fullLayout.xaxis.range;
      const width = last - first;
      const to = { "+": [first + width / 4, last - width / 4], "=": [first + width / 4, last - width / 4],
        "-": [first - width / 2, last + width / 2], "ArrowLeft": [first - width / 4, last - width / 4],
        "ArrowRight": [first + width / 4, last + width / 4], "0": null }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      zoom(to, null);
    });
  }

  // Draw one chart at a time, so that the page stays responsive. Folded charts are drawn when opened.
  let queue = Promise.resolve();
  function drawAll(wanted) {
    queue = queue.then(async () => {
      for (const id of wanted.filter(visible)) {
        await draw(id);
        await new Promise((next) => setTimeout(next));
      }
    });
    return queue;
  }

  const packed = Uint8Array.from(atob(node("plotly").textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  document.documentElement.dataset.drawn = 0;
  for (const part of document.querySelectorAll("details")) {
    part.addEventListener("toggle", () => drawAll(ids.filter((id) => !drawn.has(id) && part.contains(node(id)))));
  }
  let before = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== before) drawAll(ids.filter((id) => charts[id].data[0]?.type === "heatmap"));
    before = window.innerWidth;
  });
  for (const [name, printing] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(name, () => {
      paper.toggle("print", printing);
      // Synchronously, because printing does not wait. Charts that wait in the queue are drawn as well.
      if (window.Plotly) ids.filter((id) => drawn.has(id) || visible(id)).forEach(draw);
    });
  }
  dark.addEventListener("change", () => drawAll(ids));
  await drawAll(ids);
  performance.mark("drawn");
  document.documentElement.dataset.ready = "yes";
})();
