"use strict";
(() => {
  const charts = new Map(JSON.parse(document.getElementById("charts").textContent).map((chart) => [chart.name, chart]));
  const place = (name) => document.getElementById("plot-" + name);
  const print = window.matchMedia("print");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  async function unpack() {
    const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (letter) => letter.charCodeAt(0));
    const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    const script = document.createElement("script");
    script.nonce = document.currentScript?.nonce || document.querySelector("script[nonce]").nonce;
    script.textContent = text;
    document.head.append(script);
  }

  function merged(base, change) {
    const found = { ...base };
    for (const [key, value] of Object.entries(change)) {
      const known = found[key];
      const nested = value && known && typeof value === "object" && typeof known === "object" && !Array.isArray(value) && !Array.isArray(known);
      found[key] = nested ? merged(known, value) : value;
    }
    return found;
  }

  // Traces and layout for the selected options: each option merges its part into them.
  function chosen(chart) {
    let data = chart.data, layout = chart.layout, branches = chart.patches;
    chart.controls.forEach((control, index) => {
      const patch = branches[control.now ?? control.start];
      if (!patch) return;
      data = data.map((trace, i) => (patch.data[i] ? merged(trace, patch.data[i]) : trace));
      layout = merged(layout, patch.layout);
      branches = patch.branches;
    });
    return [data, layout];
  }

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const narrow = window.innerWidth < 640 && !print.matches;
    const found = merged(layout, {
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--ink"), family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13 },
      margin: { l: narrow ? 44 : 64, r: narrow ? 8 : 24, t: 44, b: 54 },
      hoverlabel: { bgcolor: color("--tint"), bordercolor: color("--line"), font: { color: color("--ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--accent") },
    });
    for (const key of Object.keys(found)) {
      if (/^[xy]axis/.test(key)) found[key] = { gridcolor: color("--grid"), linecolor: color("--line"), zerolinecolor: color("--soft"), ...found[key] };
    }
    if (found.annotations) found.annotations = found.annotations.map((note) => ({ ...note, font: { color: color("--soft") } }));
    return found;
  }

  function draw(chart) {
    const [data, layout] = chosen(chart);
    const node = place(chart.name);
    const config = { responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset", scrollZoom: false };
    node.querySelector(".waiting")?.remove();
    const narrow = window.innerWidth < 640;
    const shown = data.map((trace) => (trace.colorbar && narrow ? { ...trace, colorbar: { ...trace.colorbar, orientation: "h", y: -0.28, yanchor: "top", title: { ...trace.colorbar.title, side: "bottom" } } } : trace));
    return window.Plotly.react(node, shown, themed(layout), config).then(() => { node.dataset.drawn = "true"; });
  }

  function listen() {
    document.querySelectorAll("[data-place]").forEach((input) => {
      const chart = charts.get(input.dataset.chart);
      const control = chart.controls[Number(input.dataset.place)];
      const take = () => {
        control.now = Number(input.value);
        if (input.type === "range") {
          const text = input.dataset.options.split(" ")[control.now];
          input.setAttribute("aria-valuetext", text);
          input.parentElement.querySelector("output").textContent = text;
        }
      };
      take(); // a browser may remember the choice of an earlier visit
      input.addEventListener("input", () => { take(); draw(chart); });
    });
    document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => zoom(button.dataset.chart, button.dataset.zoom)));
    document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", () => copy(button)));
    const again = () => charts.forEach(draw);
    dark.addEventListener("change", again);
    window.addEventListener("beforeprint", () => charts.forEach((chart) => window.Plotly.relayout(place(chart.name), { ...themed(chosen(chart)[1]), autosize: false, width: 660 })));
    window.addEventListener("afterprint", () => { charts.forEach((chart) => window.Plotly.purge(place(chart.name))); again(); });
  }

  function zoom(name, way) {
    const node = place(name);
    if (way === "all") { window.Plotly.purge(node); draw(charts.get(name)); return; }
    const [low, high] = node._fullLayout.xaxis.range.map(Number);
    const middle = (low + high) / 2, half = (high - low) / 2;
    const [centre, reach] = { in: [middle, half / 2], out: [middle, half * 2], left: [middle - half / 2, half], right: [middle + half / 2, half] }[way];
    window.Plotly.relayout(node, { "xaxis.range": [centre - reach, centre + reach] });
  }

  async function copy(button) {
    const node = document.getElementById(button.dataset.copy);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(node.textContent);
      button.textContent = "Copied";
    } catch {
      window.getSelection().selectAllChildren(node);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = label; }, 2500);
  }

  async function start() {
    if (!charts.size) { document.documentElement.dataset.ready = "true"; return; }
    try {
      await unpack();
    } catch (error) {
      document.querySelectorAll(".waiting").forEach((node) => { node.textContent = "This browser cannot draw the chart; its numbers are in the table below."; });
      document.querySelectorAll("figure details").forEach((node) => { node.open = true; });
      return;
    }
    listen();
    for (const chart of charts.values()) {
      await draw(chart);
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.documentElement.dataset.ready = "true";
  }
  start();
})();
