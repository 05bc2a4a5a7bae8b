// The device page's two charts, drawn by uPlot from /api/v1/devices/{id}/windows.
"use strict";
(() => {
  const holder = document.getElementById("charts");
  if (!holder) return;
  const POINTS = 360;
  const source = `/api/v1/devices/${encodeURIComponent(holder.dataset.device)}/windows?` +
    new URLSearchParams({ model: holder.dataset.model, limit: String(POINTS) });
  const when = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  let windows = [];
  let plots = [];

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const soft = (name, share) => `color-mix(in srgb, ${color(name)} ${share * 100}%, transparent)`;

  function milliseconds(value) {
    if (value === 0) return "0";
    return value >= 1000 ? `${(value / 1000).toPrecision(3)} s` : value >= 1 ? `${Number(value.toPrecision(3))} ms` : `${Number((value * 1000).toPrecision(3))} µs`;
  }
  // uPlot's form: least step in seconds, label, label where year, day or minute begins
  const times = [
    [86400, "{YYYY}-{MM}-{DD}", null, null, null, null, null, null, 1],
    [60, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, "\n{YYYY}-{MM}-{DD}", null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", "\n{YYYY}-{MM}-{DD}", null, "\n{YYYY}-{MM}-{DD}", null, null, null, 1],
  ];
  const percent = (value) => `${value.toFixed(1)} %`;

  // Columns for uPlot. A point lies at the end of its window; a pause longer than two windows breaks the line.
  function columns(pick) {
    const x = [];
    const ys = pick(windows[0]).map(() => []);
    windows.forEach((window, index) => {
      const before = windows[index - 1];
      if (before && window.at_unix_s - before.at_unix_s - before.duration_s > 2 * Math.max(window.duration_s, before.duration_s)) {
        x.push(before.at_unix_s + before.duration_s + 1e-3);
        ys.forEach((y) => y.push(null));
      }
      x.push(window.at_unix_s + window.duration_s);
      pick(window).forEach((value, column) => ys[column].push(value));
    });
    return [x, ...ys];
  }

  const latencyColumns = (window) => [window.p50_s, window.p95_s].map((seconds) => (seconds === null ? null : seconds * 1000));
  function accuracyColumns(window) {
    const seen = window.accuracy;
    if (!seen) return [null, null, null, null];
    const shares = [seen.low, seen.high].map((share) => share * 100);
    return seen.valid ? [...shares, seen.estimate * 100, null] : [null, null, null, seen.estimate * 100];
  }

  function axis(format, size) {
    const grid = { stroke: color("--grid"), width: 1 };
    return { stroke: color("--quiet"), grid, ticks: { show: false }, font: "12px system-ui, sans-serif", size, gap: 6, values: Array.isArray(format) ? format : (_, values) => values.map(format) };
  }

  function alarmBands(plot) {
    plot.ctx.save();
    plot.ctx.fillStyle = soft("--alarm", 0.13);
    for (const window of windows.filter((one) => one.alarm)) {
      // whole pixels, so that neighbours neither overlap nor leave a seam
      const left = Math.round(Math.max(plot.valToPos(window.at_unix_s, "x", true), plot.bbox.left));
      const right = Math.round(Math.min(plot.valToPos(window.at_unix_s + window.duration_s, "x", true), plot.bbox.left + plot.bbox.width));
      if (right > left) plot.ctx.fillRect(left, plot.bbox.top, right - left, plot.bbox.height);
    }
    plot.ctx.restore();
  }

  function tip(describe) {
    const box = document.createElement("div");
    box.className = "tip";
    box.hidden = true;
    return {
      hooks: {
        init: (plot) => plot.over.appendChild(box),
        setCursor: (plot) => {
          const { idx, left } = plot.cursor;
          const window = idx === null || left < 0 ? undefined : windows.find((one) => one.at_unix_s + one.duration_s === plot.data[0][idx]);
          box.hidden = !window;
          if (!window) return;
          box.textContent = `${when.format(new Date(window.at_unix_s * 1000))}\n${describe(window)}`;
          const x = plot.valToPos(plot.data[0][idx], "x");
          box.style.top = "6px";
          box.style.left = `${x + box.offsetWidth + 18 > plot.over.clientWidth ? Math.max(0, x - box.offsetWidth - 12) : x + 12}px`;
        },
      },
    };
  }

  function describeLatency(window) {
    const [p50, p95] = latencyColumns(window);
    return p50 === null ? "no inference" : `p50 ${milliseconds(p50)}\np95 ${milliseconds(p95)}\n${window.n} inferences`;
  }

  function describeAccuracy(window) {
    const seen = window.accuracy;
    if (!seen) return "no estimate";
    const text = `${percent(seen.estimate * 100)}\n${percent(seen.low * 100)} – ${percent(seen.high * 100)}`;
    const notes = [...(seen.valid ? [] : ["not to be believed"]), ...seen.flags, ...(window.alarm ? ["in alarm"] : [])];
    return [text, ...notes].join("\n");
  }

  const line = (label, stroke, more) => ({ label, stroke, width: 2, points: { size: 5, fill: stroke, show: windows.length < 3 ? true : undefined }, ...more });
  const common = (chart, height) => ({
    width: Math.max(chart.clientWidth - 14, 200), height, padding: [10, 8, 0, 0],
    cursor: { y: false, points: { size: 7 } }, legend: { show: false }, scales: { x: { time: true } },
  });

  function drawLatency(chart) {
    const top = (plot, low, high) => [0, (high || 1) * 1.12];
    const options = common(chart, 236);
    Object.assign(options, {
      plugins: [tip(describeLatency)], hooks: { drawClear: [alarmBands] },
      scales: { x: { time: true }, y: { range: top } },
      axes: [axis(times, 40), axis(milliseconds, 64)],
      series: [{}, line("p50", color("--p50")), line("p95", color("--p95"))],
    });
    return new uPlot(options, columns(latencyColumns), chart);
  }

  function accuracyRange(plot, low, high) {
    if (low === null || high === null) return [0, 100];
    const room = Math.max((high - low) * 0.12, 1);
    return [Math.max(0, low - room), Math.min(100.5, high + room)];
  }

  function drawAccuracy(chart) {
    const stroke = color("--estimate");
    const edge = { width: 0, stroke: "transparent", points: { show: false } };
    const options = common(chart, 236);
    Object.assign(options, {
      plugins: [tip(describeAccuracy)], hooks: { drawClear: [alarmBands] },
      scales: { x: { time: true }, y: { range: accuracyRange } },
      axes: [axis(times, 40), axis((value) => `${Number(value.toFixed(2))} %`, 58)],
      bands: [{ series: [2, 1], fill: soft("--estimate", 0.2) }],
      series: [{}, { label: "low", ...edge }, { label: "high", ...edge }, line("estimate", stroke),
        { label: "not to be believed", stroke: color("--quiet"), paths: () => null, points: { show: true, size: 6, fill: color("--card"), stroke: color("--quiet") } }],
    });
    return new uPlot(options, columns(accuracyColumns), chart);
  }

  function draw() {
    const charts = ["latency-chart", "accuracy-chart"].map((id) => document.getElementById(id));
    plots.forEach((plot) => plot.destroy());
    plots = [];
    if (!windows.length) return;
    plots = [drawLatency(charts[0]), drawAccuracy(charts[1])];
  }

  function update() {
    if (plots.length !== 2) { draw(); return; }
    plots[0].setData(columns(latencyColumns));
    plots[1].setData(columns(accuracyColumns));
  }

  async function load() {
    try {
      const reply = await fetch(source, { cache: "no-store" });
      if (!reply.ok) return;
      windows = (await reply.json()).windows;
      update();
    } catch {
      // fleet.js says that the server does not answer
    }
  }

  document.addEventListener("refreshed", load);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (holder.clientWidth !== width) { width = holder.clientWidth; draw(); }
  }).observe(holder);
  load();
})();
