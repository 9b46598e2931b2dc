/* Plots, dialogs, and what happens when the coordinator does not answer. No page needs it to be read. */
(() => {
  "use strict";
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const drawn = new Map();

  const clock = { timeZone: "UTC", hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  const dated = { timeZone: "UTC", day: "numeric", month: "short" };

  // Ticks of a time axis: the day where a new one begins, else the time; seconds where they matter.
  function times(at, step) {
    let before = "";
    return at.map(seconds => {
      const moment = new Date(seconds * 1000), day = moment.toLocaleDateString("en-GB", dated);
      const fresh = day !== before;
      before = day;
      if (step >= 86400) return day;
      const time = moment.toLocaleTimeString("en-GB", step < 60 ? { ...clock, second: "2-digit" } : clock);
      return fresh ? `${time}\n${day}` : time;
    });
  }

  function paths(series) {
    if (series.step) return uPlot.paths.stepped({ align: 1 });
    if (series.bars) return uPlot.paths.bars({ size: [0.7, 40] });
    return uPlot.paths.linear();
  }

  function options(plot, width) {
    const days = plot.kind === "day";
    const axis = {
      stroke: css("--soft"),
      grid: { stroke: css("--line"), width: 1 },
      ticks: { stroke: css("--line"), width: 1 },
      font: "12px system-ui, sans-serif",
    };
    const lowest = plot.series.flatMap(one => one.values).filter(v => v !== null);
    const log = plot.log && lowest.every(v => v > 0);
    return {
      width,
      height: Math.round(Math.min(280, Math.max(190, width * 0.5))),
      tzDate: at => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      legend: { show: plot.series.length > 1 || plot.kind !== "time", live: true },
      cursor: { y: false, points: { size: 7 } },
      scales: {
        x: { time: plot.kind === "time",
          ...(plot.series.some(one => one.bars) ? { range: (_, low, high) => [low - 0.6, high + 0.6] } : {}) },
        y: log
          ? { distr: 3 }
          : { range: (_, low, high) => {
              const most = high === low ? Math.abs(high) || 1 : high - low;
              const floor = plot.zero ? Math.min(0, low) : low - 0.08 * most;
              return [floor, high + 0.08 * most];
            } },
      },
      axes: [
        { ...axis, space: plot.kind === "time" ? 90 : 50,
          ...(days ? { incrs: [1, 2, 5, 10, 15], values: (_, at) => at.map(i => (plot.x[i] || "").slice(5)) }
            : plot.kind === "time" ? { values: (_, at, __, ___, step) => times(at, step) }
            : plot.kind === "number" ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] } : {}) },
        { ...axis, size: 58, values: (_, at) => at.map(v => v === null ? "" : number.format(v)) },
      ],
      series: [
        { label: days ? "day" : plot.kind === "number" ? "round" : "time",
          value: (_, v) => v === null || v === undefined ? "–" : days ? plot.x[v]
            : plot.kind === "time" ? new Date(v * 1000).toISOString().slice(0, 19).replace("T", " ") : v },
        ...plot.series.map(one => ({
          label: one.label,
          stroke: css(`--c${one.colour % 8}`),
          width: one.bars ? 0 : 2,
          dash: one.dash ? [6, 5] : undefined,
          fill: one.bars ? css(`--c${one.colour % 8}`) : one.area ? css("--area") : undefined,
          paths: paths(one),
          points: { show: Boolean(one.points), size: 5, fill: css(`--c${one.colour % 8}`) },
          value: (_, v) => v === null || v === undefined ? "–" : `${number.format(v)} ${plot.unit}`.trim(),
        })),
      ],
    };
  }

  function draw(box, again = false) {
    const text = box.dataset.plot, before = drawn.get(box);
    if (box.clientWidth === 0 || (before && before.text === text && !again)) return;
    const plot = JSON.parse(text);
    if (before) before.made.destroy();
    const x = plot.kind === "day" ? plot.x.map((_, i) => i) : plot.x;
    const made = new uPlot(options(plot, box.clientWidth), [x, ...plot.series.map(one => one.values)], box);
    drawn.set(box, { text, made, width: box.clientWidth });
  }

  const resized = new ResizeObserver(entries => {
    for (const { target } of entries) {
      const known = drawn.get(target);
      if (!known || known.width !== target.clientWidth) draw(target, true);
    }
  });

  function drawAll(again = false) {
    for (const box of drawn.keys()) if (!box.isConnected) { drawn.get(box).made.destroy(); drawn.delete(box); }
    for (const box of document.querySelectorAll(".plot")) { draw(box, again); resized.observe(box); }
  }

  let live = true;
  const lost = () => document.getElementById("lost");
  // Says why the page is old; the words are the page's own.
  function lose(answered) {
    const banner = lost();
    if (!banner) return;
    banner.dataset.none = banner.dataset.none || banner.textContent;
    const words = answered ? banner.dataset.answered : banner.dataset.none;
    if (banner.textContent !== words) banner.textContent = words;  // else it is read out again and again
    banner.hidden = false;
  }
  const dialog = () => document.getElementById("dialog");
  const source = event => event.detail && event.detail.ctx && event.detail.ctx.sourceElement;

  document.addEventListener("htmx:before:request", event => {
    const asking = source(event);
    const refreshes = asking && asking.matches("[data-live]");
    if (refreshes && (!live || document.hidden || dialog().open)) event.preventDefault();
  });
  document.addEventListener("htmx:after:swap", event => {
    if (lost()) lost().hidden = true;
    drawAll();
    const asking = source(event);
    if (asking && asking.getAttribute("hx-target") === "#dialog-body") {
      dialog().showModal();
    }
  });
  for (const name of ["htmx:error", "htmx:response:error"])
    document.addEventListener(name, event => {
      const answer = event.detail && event.detail.ctx && event.detail.ctx.response;
      if (answer && answer.status === 401) return;  // it says where to sign in
      const asking = source(event);
      if (answer && asking && asking.matches("a[href]")) { location.assign(asking.href); return; }  // its page says why
      lose(Boolean(answer) && ![502, 503, 504].includes(answer.status));
    });
  document.addEventListener("click", event => {
    const close = event.target.closest("[data-close]");
    if (close && dialog() && dialog().open) { event.preventDefault(); dialog().close(); }
    const toggle = event.target.closest("[data-switch]");
    if (toggle) { live = !live; toggle.setAttribute("aria-pressed", String(live)); }
  });
  document.addEventListener("submit", event => {
    const button = event.target.querySelector("button");
    if (event.target.method === "post" && button) setTimeout(() => { button.disabled = true; });
  });
  window.addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("form[method=post] button")) button.disabled = false;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(true));
  drawAll();
})();
