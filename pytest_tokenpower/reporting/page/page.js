"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  // Whatever comes from a record becomes a text node or an attribute's value, never markup.
  const el = (tag, props = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  };
  const figures = (value, digits = 4) => (value === null || value === undefined ? "" : String(Number(value.toPrecision(digits))));
  const percent = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)} %`;
  const range = (interval) => (interval[1] === null ? "" : `[${percent(interval[1])}, ${percent(interval[2])}]`);
  const kindClass = (kind) => `verdict k-${kind.replace(/[^a-z]+/g, "-")}`;
  const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // ---- drawings ------------------------------------------------------------------------------------------------

  const drawn = [];
  const theme = () => ({
    text: colour("text"), quiet: colour("quiet"), line: colour("line"), curve: colour("curve"), band: colour("band"),
    level: colour("level"), interval: colour("interval"), good: colour("good"), bad: colour("bad"), warn: colour("warn"), dropped: colour("dropped"),
    phases: { prefill: colour("prefill"), decode: colour("decode"), mixed: colour("mixed") },
    devices: [colour("curve"), colour("level"), colour("second"), colour("third"), colour("fourth")],
  });

  /** A figure with a drawing that is made when it is first seen, and again when its width or the colours change. */
  const chart = (title, spoken, options, { zoom = false, keys = [] } = {}) => {
    const place = el("div", { class: "plot" });
    const one = { place, options, spoken, plot: null, width: 0 };
    one.draw = () => {
      const width = Math.floor(place.clientWidth);
      if (!width) return;
      one.width = width;
      one.plot?.destroy();
      const made = options(theme(), width);
      one.plot = new uPlot({ width, cursor: { drag: { x: zoom, y: false } }, ...made.options }, made.data, place);
      one.plot.ctx.canvas.setAttribute("role", "img");
      one.plot.ctx.canvas.setAttribute("aria-label", spoken);
    };
    drawn.push(one);
    new ResizeObserver(() => { if (place.clientWidth && Math.abs(place.clientWidth - one.width) > 1) one.draw(); }).observe(place);
    const move = (change) => () => {
      const { plot } = one;
      if (!plot) return;
      const { min, max } = plot.scales.x, all = plot.data[0], first = all[0], last = all[all.length - 1];
      const [low, high] = change(min, max);
      plot.setScale("x", { min: Math.max(first, low), max: Math.min(last, high) });
    };
    const button = (label, text, change) => el("button", { type: "button", "aria-label": `${label}: ${title}`, onclick: move(change) }, text);
    const tools = !zoom ? null : el("div", { class: "tools" },
      button("Zoom in", "+", (a, b) => [a + (b - a) / 4, b - (b - a) / 4]),
      button("Zoom out", "−", (a, b) => [a - (b - a) / 2, b + (b - a) / 2]),
      button("Earlier", "◀", (a, b) => [a - (b - a) / 4, b - (b - a) / 4]),
      button("Later", "▶", (a, b) => [a + (b - a) / 4, b + (b - a) / 4]),
      button("Show all", "all", () => [-Infinity, Infinity]));
    return el("figure", {}, el("figcaption", {}, el("strong", {}, title), ...keys), tools, place);
  };

  const axes = (t, x, y) => [x, y].map((more) => ({
    stroke: t.text, grid: { stroke: t.line, width: 1 }, ticks: { stroke: t.line, width: 1 },
    font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18, ...more,
  }));
  const key = (kind, text) => el("span", { class: "key" }, el("span", { class: `swatch s-${kind}`, "aria-hidden": "true" }), text);

  /** Intervals against their limits, a row for each: value, 95 % interval, and a mark where the limit is. */
  const intervals = (title, rows) => {
    const spoken = `${title}: ` + rows.slice(0, 20).map((row) =>
      `${row.name} ${percent(row.interval[0])} ${range(row.interval)}${row.limit === null ? "" : `, limit ${percent(row.limit)}`}`).join("; ");
    const extent = rows.flatMap((row) => [...row.interval, row.limit, 0]).filter((v) => v !== null).map((v) => 100 * v);
    const low = Math.min(...extent), high = Math.max(...extent), pad = Math.max((high - low) * 0.08, 0.2);
    const thin = (high - low + 2 * pad) / 400;
    return chart(title, spoken, (t, width) => {
      const names = Math.min(Math.floor(width * 0.4), 16 + 7 * Math.max(...rows.map((row) => row.name.length)));
      const room = Math.max(Math.floor((names - 16) / 7), 6);
      const column = (pick) => rows.map(pick);
      const bars = (pick, size, fill) => ({
        paths: uPlot.paths.bars({ size: [size, 100], disp: {
          y0: { unit: 1, values: () => column((row) => pick(row)?.[0] ?? null) },
          y1: { unit: 1, values: () => column((row) => pick(row)?.[1] ?? null) },
        } }), width: 0, fill, stroke: fill, points: { show: false }, value: () => "",
      });
      const mark = (value) => (value === null ? null : [100 * value - thin, 100 * value + thin]);
      return {
        options: {
          height: 48 + 26 * rows.length + 16, legend: { show: false }, cursor: { show: false },
          scales: { x: { time: false, ori: 1, dir: -1, range: [-0.6, rows.length - 0.4] }, y: { ori: 0, range: [low - pad, high + pad] } },
          axes: axes(t,
            { scale: "x", side: 3, size: names, grid: { show: false }, ticks: { show: false }, splits: () => rows.map((_, at) => at),
              values: () => rows.map((row) => (row.name.length > room ? `${row.name.slice(0, room - 1)}…` : row.name)) },
            { scale: "y", side: 2, size: 40, space: 90, values: (_, values) => values.map((value) => `${value > 0 ? "+" : ""}${figures(value, 3)} %`) }),
          series: [{},
            bars((row) => (row.interval[1] === null ? null : [100 * row.interval[1], 100 * row.interval[2]]), 0.3, t.level),
            bars((row) => mark(row.interval[0]), 0.55, t.text),
            bars((row) => mark(row.limit), 0.9, t.bad)],
        },
        data: [rows.map((_, at) => at), ...Array(3).fill(column((row) => 100 * row.interval[0]))],
      };
    }, { keys: [el("span", { class: "key" }, "bar: 95 % interval; dark mark: estimate; red mark: limit")] });
  };

  /** The power of a test: a line for each device, phases shaded, rounds along the upper edge. */
  const powerCurve = (test) => {
    const power = test.power;
    const tables = power.devices.map((device) => {
      let at = 0;
      const xs = device.ends_ms.map((step) => (at += step) / 1000);
      return device.low ? [xs, device.mean, device.low, device.high] : [xs, device.mean];
    });
    const joined = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const phases = [...new Set(power.spans.map((span) => span[2]))];
    const readings = power.devices.reduce((sum, device) => sum + device.readings, 0);
    const steps = power.devices.reduce((sum, device) => sum + device.ends_ms.length, 0);
    const figure = chart(`Power of ${test.name}`,
      `Power over ${figures(joined[0][joined[0].length - 1], 3)} s of ${plural(power.devices.length, "device")}, ` +
      `${plural(power.rounds.length, "round")}, phases ${phases.join(" and ") || "not known"}`,
      (t) => {
        const series = [{ label: "s", value: (_, value) => figures(value, 5) }], bands = [];
        power.devices.forEach((device, number) => {
          const stroke = t.devices[number % t.devices.length], name = power.devices.length > 1 ? device.device.slice(0, 12) : "W";
          const stepped = { paths: uPlot.paths.stepped({ align: -1 }), points: { show: false }, spanGaps: false };
          series.push({ label: device.low ? `${name} mean` : name, stroke, width: 1.25, ...stepped });
          if (device.low) {
            bands.push({ series: [series.length + 1, series.length], fill: t.band });
            series.push({ label: "low", stroke: "transparent", width: 0, ...stepped }, { label: "high", stroke: "transparent", width: 0, ...stepped });
          }
        });
        const shade = (plot) => {
          const { ctx, bbox } = plot, at = (ms) => plot.valToPos(ms / 1000, "x", true), edge = bbox.left + bbox.width;
          const strip = 7 * devicePixelRatio;
          const box = (from, to, top, height) => {
            const left = Math.max(at(from), bbox.left), right = Math.min(at(to), edge);
            if (right > left) ctx.fillRect(left, top, Math.max(right - left, 1), height);
          };
          ctx.save();
          for (const [start, end, phase] of power.spans) {
            ctx.fillStyle = t.phases[phase] ?? "transparent";
            box(start, end, bbox.top, bbox.height);
          }
          power.rounds.forEach(([start, end, lost]) => {
            ctx.fillStyle = lost ? t.dropped : t.good;
            if (lost) ctx.globalAlpha = 0.25, box(start, end, bbox.top, bbox.height), (ctx.globalAlpha = 1);
            box(start, end, bbox.top - strip, strip - 1);
            ctx.fillStyle = t.quiet;
            box(start, start + 0.001, bbox.top - strip, strip + 6);
          });
          ctx.restore();
        };
        return {
          options: {
            height: 260, padding: [14, 10, 0, 0], scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high * 1.08, 1)] } },
            axes: axes(t, { label: "seconds", size: 36 }, { label: "watts", size: 52 }), series, bands, hooks: { drawClear: [shade] },
          },
          data: joined,
        };
      },
      { zoom: true, keys: [...phases.map((phase) => key(phase, phase)), test.rounds.reasons.length ? key("dropped", "dropped round") : null] });
    const said = [`The strip along the upper edge shows the rounds. Drag over the drawing, or use the buttons, to zoom.`];
    if (steps < readings) said.push(`${readings} readings in ${steps} steps: the line is each step's mean, the band its lowest and highest reading.`);
    else said.push(`All ${readings} readings are drawn.`);
    if (power.devices.some((device) => device.method === "energy counter")) said.push("Power is the counter's rise from reading to reading.");
    if (power.estimated) said.push("The phases are estimates: they were marked from outside the engine.");
    if (power.spans.length) said.push(`Stretches under ${figures(power.shortest_ms)} ms are drawn with the phase before them.`);
    if (test.attempts > 1 || test.more_rounds.some((more) => more.name.startsWith("restart"))) said.push("Earlier attempts and restarts are not drawn.");
    figure.append(el("p", { class: "quiet small" }, said.join(" ")));
    return figure;
  };

  const roundsChart = (test, rounds, name) => {
    const lost = rounds.dropped.map((reasons) => reasons.length > 0);
    const main = rounds === test.rounds ? test.main : null;
    const known = rounds.per_unit.filter((value) => value !== null).length;
    return chart(`${name} of ${test.name}`,
      `${plural(rounds.at.length, "round")}, ${lost.filter(Boolean).length} dropped${main ? `, ${figures(main[0])} ${test.unit}` : ""}`,
      (t) => {
        const dots = (stroke, fill, size) => ({ paths: () => null, stroke, points: { show: true, size, stroke, fill, width: 2 } });
        const celsius = rounds.celsius.some((value) => value !== null);
        return {
          options: {
            height: 200, scales: { x: { time: false }, y: {}, c: { range: (_, low, high) => [low - 1, high + 1] } },
            axes: [...axes(t, { label: "seconds since the first round", size: 36 }, { label: test.unit, size: 64, values: (_, v) => v.map((x) => figures(x, 5)) }),
              ...(celsius ? axes(t, {}, { scale: "c", side: 1, label: "°C", size: 44, grid: { show: false } }).slice(1) : [])],
            series: [{ label: "s", value: (_, v) => figures(v, 4) },
              { label: test.unit, ...dots(t.level, t.level, 7) },
              { label: "dropped", ...dots(t.dropped, "transparent", 11) },
              ...(main ? [{ label: "figure", stroke: t.quiet, width: 1, dash: [6, 4], points: { show: false } }] : []),
              ...(celsius ? [{ label: "°C", scale: "c", stroke: t.warn, width: 1, dash: [2, 3], points: { show: false } }] : [])],
          },
          data: [rounds.at, rounds.per_unit.map((v, i) => (lost[i] ? null : v)), rounds.per_unit.map((v, i) => (lost[i] ? v : null)),
            ...(main ? [rounds.at.map(() => main[0])] : []), ...(celsius ? [rounds.celsius] : [])],
        };
      }, { keys: known < rounds.at.length ? [el("span", { class: "key" }, `${rounds.at.length - known} without a figure are not drawn`)] : [] });
  };

  const historyChart = (test) => {
    const { points, steps } = test.history;
    const at = points.map((_, index) => index);
    return chart(`Stored runs of ${test.name}${test.history.line === "by time" ? " by time" : ` on ${test.history.line}`}`,
      `${plural(points.length, "run")}, ${plural(steps.length, "step")}`,
      (t) => {
        const pick = (column) => points.map((point) => point[column]);
        const only = (word) => points.map((point) => (point[7].startsWith(word) ? point[2] : null));
        const dots = (stroke, fill, size) => ({ paths: () => null, stroke, points: { show: true, size, stroke, fill, width: 2 } });
        const accepted = points.map((point) => (point[6].endsWith(", accepted") ? point[2] : null));
        return {
          options: {
            height: 220, scales: { x: { time: false, range: [-0.5, points.length - 0.5] } },
            axes: axes(t,
              { size: 36, label: "commit", splits: () => at.filter((i) => i % Math.ceil(points.length / 8) === 0), values: (_, v) => v.map((i) => points[i]?.[0] || points[i]?.[1].slice(5, 10) || "") },
              { label: test.unit, size: 64, values: (_, v) => v.map((x) => figures(x, 5)) }),
            series: [{ label: "run", value: (_, i) => (points[i] ? `${points[i][0]} ${points[i][1]} ${points[i][6]}` : "") },
              { label: "95 %", stroke: t.interval, fill: t.interval, width: 0, points: { show: false }, value: (_, v, s, i) => (points[i] ? `${figures(points[i][3])} to ${figures(points[i][4])}` : ""),
                paths: uPlot.paths.bars({ size: [0.35, 8], disp: { y0: { unit: 1, values: () => pick(3) }, y1: { unit: 1, values: () => pick(4) } } }) },
              { label: test.unit, ...dots(t.text, t.text, 6) },
              { label: "level", stroke: t.level, width: 1.5, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } },
              { label: "baseline", ...dots(t.good, "transparent", 12) },
              { label: "accepted", ...dots(t.warn, "transparent", 16) },
              { label: "this run", ...dots(t.bad, "transparent", 18) }],
          },
          data: [at, pick(4), pick(2), pick(5), only("baseline"), accepted, only("this run")],
        };
      });
  };

  // ---- the page ------------------------------------------------------------------------------------------------

  const honest = (provenance) => (provenance === "measured" ? "" : `${provenance.toUpperCase()}, not measured`);
  const facts = (entries) => el("dl", {}, entries.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  /** A table that scrolls on its own; the columns in `left` hold words. */
  const table = (caption, heads, rows, left = [0]) => el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head, i) => el("th", { scope: "col", class: left.includes(i) ? "left" : null }, head)))),
      el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, i) => el("td", { class: left.includes(i) ? `left${i ? "" : " wide"}` : null }, cell)))))));

  const head = document.getElementById("head"), main = document.getElementById("main");
  const unreal = data.provenances.filter((kind) => kind !== "measured");
  if (unreal.length) head.append(el("p", { class: "banner" }, `${unreal.map((kind) => kind.toUpperCase()).join(" and ")}: ${data.provenances.length > 1 ? "not everything" : "nothing"} on this page was measured on hardware by this run.`));
  head.append(facts(data.runs.map((run) => [
    `run ${run.id.slice(0, 8)}`,
    `${run.name ? `${run.name}, ` : ""}${run.created.slice(0, 16).replace("T", " ")} UTC, ${run.commit
      ? `commit ${run.commit.slice(0, 12)}${run.branch ? ` on ${run.branch}` : ""}${run.dirty ? ", with uncommitted changes" : ""}` : "outside git"}`,
  ])));

  /** A soak: each quantity over the hours, all on one axis of time, and steps as lines. */
  const soaked = (soak) => {
    const zoom = soak.hours.length > 1;
    const over = (title, label, series, y = {}) => chart(title, `${title} over ${figures(soak.hours.at(-1), 3)} hours`, (t) => ({
      options: {
        height: 190, scales: { x: { time: false }, y }, axes: axes(t, { label: "hours", size: 36 }, { label, size: 64, values: (_, v) => v.map((x) => figures(x, 5)) }),
        series: [{ label: "h", value: (_, v) => figures(v, 4) }, ...series(t).map(([name, , more]) => ({ label: name, width: 1, points: { show: false }, value: (_, v) => figures(v), ...more }))],
        hooks: { draw: [(plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.strokeStyle = t.bad;
          ctx.setLineDash([6, 4]);
          soak.steps.forEach((hour) => {
            const x = plot.valToPos(hour, "x", true);
            if (x >= bbox.left && x <= bbox.left + bbox.width) { ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke(); }
          });
          ctx.restore();
        }] },
      },
      data: [soak.hours, ...series(t).map(([, values]) => values)],
    }), { zoom });
    const known = (values) => values.some((value) => value !== null);
    const dots = (stroke) => ({ paths: () => null, stroke, points: { show: true, size: 4, stroke, fill: stroke } });
    const logs = soak.joules.map((value) => (value === null ? null : Math.log(value)));
    const kept = logs.map((value, at) => [soak.hours[at], value]).filter(([, value]) => value !== null);
    const middle = (column) => kept.reduce((sum, row) => sum + row[column], 0) / kept.length;
    const line = soak.drift === null ? null : (() => {
      const span = kept.at(-1)[0] - kept[0][0], hour = middle(0), level = middle(1);
      return soak.hours.map((at) => Math.exp(level + Math.log1p(soak.drift) * (at - hour) / span));
    })();
    return [el("h2", {}, `Soak of ${soak.test}`), facts(soak.about), el("ul", {}, soak.said.map((each) => el("li", {}, each))),
      known(soak.joules) && over(soak.unit, soak.unit, (t) => [[soak.unit, soak.joules, dots(t.level)], ...(line ? [["drift", line, { stroke: t.bad, width: 1.5 }]] : [])]),
      known(soak.watts) && over("Power", "W", (t) => [["W", soak.watts, { stroke: t.curve }]]),
      known(soak.celsius) && over("Temperature", "°C", (t) => [["°C", soak.celsius, { stroke: t.warn }]]),
      known(soak.mhz) && over("SM clock", "MHz", (t) => [["MHz", soak.mhz, { stroke: t.level }]]),
      known(soak.gib) && over("memory in use", "GiB", (t) => [["GiB", soak.gib, { stroke: t.level }]]),
      Object.keys(soak.limited).length > 0 && over("Time under limits", "%", (t) => Object.entries(soak.limited).map(([name, shares], at) => [name, shares, { stroke: t.devices[at % t.devices.length] }]), { range: [0, 100] }),
      el("p", { class: "quiet small" }, "A point is a stretch; dropped ones have no figure. Red: the straight line through all of them, and steps of 1 % and more."),
      table("The soak in twelve parts", soak.head, soak.rows.map((row) => row.map(String)), [])].filter(Boolean);
  };
  if (data.soak) {
    main.append(...soaked(data.soak));
    document.querySelector(".skip").remove();
  }

  const counts = new Map();
  data.tests.forEach((test) => counts.set(test.kind, [(counts.get(test.kind)?.[0] ?? 0) + 1, test.word]));
  if (!data.soak) main.append(el("h2", {}, "Verdicts"), data.tests.length
    ? el("ul", { class: "counts" }, data.claims_news.map((news) => el("li", { class: kindClass("failed") }, news)), [...counts].map(([kind, [count, word]]) => el("li", {}, `${count} `, el("span", { class: kindClass(kind) }, word))))
    : el("p", {}, "No test measured energy in this run."));

  const many = data.runs.length > 1;
  const twice = (test) => data.tests.some((other) => other !== test && other.id === test.id);
  const labels = new Map(data.tests.map((test) => [test, many && twice(test) ? `${test.name} (run ${data.runs[test.run].id.slice(0, 8)})` : test.name]));
  const label = (test) => labels.get(test);
  const MOST_ROWS = 40;
  const compared = data.tests.filter((test) => test.change).map((test) => ({
    name: label(test), interval: test.change, failing: test.failing,
    limit: test.verdicts.find((verdict) => !verdict.budget && verdict.rows.length)?.rows[0].limit ?? null,
  })).sort((a, b) => b.failing - a.failing || b.interval[0] - a.interval[0]);
  if (compared.length) {
    main.append(intervals("Change of each test, in the figure that it is compared by", compared.slice(0, MOST_ROWS)));
    if (compared.length > MOST_ROWS) main.append(el("p", { class: "quiet small" }, `The ${MOST_ROWS} that rose most are drawn, failing ones first; the table has all ${compared.length}.`));
  }

  const section = el("section", { id: "tests", "aria-labelledby": "tests-head" }, el("h2", { id: "tests-head" }, "Tests"));
  if (!data.soak) main.append(section);
  const unit = new Set(data.tests.map((test) => test.unit)).size === 1 ? data.tests[0].unit : "";
  const mainFigure = (test) => (test.main ? `${figures(test.main[0])}${unit ? "" : ` ${test.unit}`}` : "");
  const LATENCIES = { "TTFT ms": "ttft_p50_seconds", "TPOT ms": "tpot_p50_seconds" };
  const latencies = Object.keys(LATENCIES).filter((head) => data.tests.some((test) => test.figures[LATENCIES[head]]));
  const heads = ["test", "verdict", unit || "figure", "±95 %", "prefill", "decode", "W", "tok/s", ...latencies, "change", "95 % interval"];
  if (data.currency) heads.push(`${data.currency}/Mtok`);
  if (data.carbon) heads.push("gCO2e/Mtok");
  const figure = (test, name, digits) => figures(test.figures[name]?.[0], digits);
  const cells = (test, at) => {
    const main = test.main, mark = test.estimated ? "~" : "";
    const phase = (name) => (figure(test, name) ? mark + figure(test, name) : "");
    return [
      el("a", { href: `#t${at}` }, label(test)), el("span", { class: kindClass(test.kind) }, test.word), mainFigure(test), main ? `${(100 * main[1] / main[0]).toFixed(1)} %` : "",
      phase("prefill_joules_per_token"), phase("decode_joules_per_token"), figure(test, "mean_watts", 3), figure(test, "tokens_per_second"),
      ...latencies.map((head) => { const found = test.figures[LATENCIES[head]]; return found ? figures(1000 * found[0], 3) : ""; }),
      test.change ? percent(test.change[0]) : "", test.change && test.change[1] !== null ? `[${[1, 2].map((i) => percent(test.change[i]).replace(" %", "")).join(", ")}]` : "",
      ...(data.currency ? [figures(test.cost?.[1], 3)] : []), ...(data.carbon ? [figures(test.cost?.[2], 3)] : []),
    ];
  };
  if (data.tests.length) {
    const wrap = table(`${plural(data.tests.length, "test")}. A token is a generated one${data.tests.some((test) => test.estimated) ? "; ~ phases marked from outside the engine" : ""}${latencies.length ? "; TTFT, TPOT: medians of the times to the first and for each further token" : ""}.`, heads, data.tests.map(cells), [0, 1]);
    const rows = [...wrap.querySelectorAll("tbody tr")];
    const text = el("input", { type: "search", id: "filter", autocomplete: "off" });
    const kinds = el("select", { id: "kinds" }, el("option", { value: "" }, "all"), [...counts].map(([kind, [, word]]) => el("option", { value: kind }, word)));
    const shown = el("span", { class: "quiet small", role: "status" });
    const filter = () => {
      let left = 0;
      data.tests.forEach((test, at) => {
        const hidden = !test.id.toLowerCase().includes(text.value.toLowerCase()) || (kinds.value && kinds.value !== test.kind);
        rows[at].hidden = hidden;
        document.getElementById(`t${at}`).hidden = hidden;
        left += !hidden;
      });
      shown.textContent = left === data.tests.length ? "" : `${left} of ${data.tests.length} shown`;
    };
    text.addEventListener("input", filter);
    kinds.addEventListener("change", filter);
    const every = (open) => () => document.querySelectorAll("details.test").forEach((one) => { if (!one.hidden) one.open = open; });
    section.append(el("form", { onsubmit: (event) => event.preventDefault() },
      el("label", { for: "filter" }, "Name contains", text), el("label", { for: "kinds" }, "Verdict", kinds),
      el("button", { type: "button", onclick: every(true) }, "Open all"), el("button", { type: "button", onclick: every(false) }, "Close all"), shown), wrap);
  }

  /** Everything on one test; made when it is first opened. */
  const detail = (test) => {
    const parts = [el("p", { class: "id small" }, test.id)];
    if (honest(test.provenance)) parts.push(el("p", { class: "banner" }, honest(test.provenance)));
    if (test.reasons.length) parts.push(el("p", {}, el("strong", {}, "Invalid: "), test.reasons.join("; ")));
    test.verdicts.forEach((verdict) => {
      parts.push(el("pre", { class: verdict.failing ? "failing" : verdict.kind }, verdict.message));
      if (verdict.rows.length) parts.push(intervals(verdict.budget ? `${test.name} against its budget, 0 % being the budget` : `${test.name} against ${verdict.against}`, verdict.rows));
    });
    parts.push(test.power ? powerCurve(test) : el("p", { class: "quiet small" }, "No power curve: the readings of this run are not at hand (tokenpower report --recording takes what --energy-record wrote)."));
    [["Rounds", test.rounds], ...test.more_rounds.map((more) => [`Rounds of the ${more.name},`, more])].forEach(([name, rounds]) => {
      if (!rounds.at.length) return;
      parts.push(roundsChart(test, rounds, name));
      const lost = rounds.dropped.map((reasons, at) => [at + 1, reasons]).filter(([, reasons]) => reasons.length);
      if (lost.length) parts.push(el("p", {}, `${lost.length} of ${rounds.at.length} rounds dropped:`), el("ul", {}, rounds.reasons.map((reason, number) =>
        el("li", {}, `${reason} (round ${lost.filter(([, reasons]) => reasons.includes(number)).map(([at]) => at).join(", ")})`))));
      parts.push(el("details", {}, el("summary", {}, `All ${rounds.at.length} rounds as a table`), table(`${name} of ${test.name}`,
        ["round", "at s", "s", "J", "prompt tokens", "generated", test.unit, "°C", "MHz", "dropped for"],
        rounds.at.map((at, i) => [String(i + 1), figures(at), figures(rounds.seconds[i]), figures(rounds.joules[i], 5), String(rounds.tokens[i][0]), String(rounds.tokens[i][1]),
          figures(rounds.per_unit[i]), figures(rounds.celsius[i], 3), figures(rounds.mhz[i]), rounds.dropped[i].map((n) => rounds.reasons[n]).join("; ")]), [0, 9])));
    });
    if (test.history) {
      parts.push(historyChart(test), el("p", { class: "quiet small" }, "Green rings: the baseline's runs; amber: regressed and accepted; red: this run; line: the level between steps."),
        test.history.steps.length ? el("ul", {}, test.history.steps.map(([at, text]) => el("li", {}, `Run ${at + 1}: ${text}`))) : el("p", { class: "small" }, "No step can be told from the noise."),
      el("details", {}, el("summary", {}, `All ${plural(test.history.points.length, "run")} as a table`), table(`Stored runs of ${test.name}`,
        ["commit", "time (UTC)", test.unit, "95 % interval", "verdict", ""],
        test.history.points.map(([commit, time, value, low, high, , verdict, part]) => [commit, time, figures(value), `${figures(low)} to ${figures(high)}`, verdict, part]), [0, 1, 4, 5])));
    }
    if (!test.history) parts.push(el("p", { class: "quiet small" }, `No history: ${data.no_history || "no comparable run of this test is stored"}.`));
    parts.push(table(`Figures of ${test.name}`, ["figure", "value", "± (95 %)", "unit"],
      Object.entries(test.figures).map(([name, [value, half]]) => [name.replaceAll("_", " "), (test.estimated && /^(prefill|decode|between)/.test(name) ? "~" : "") + figures(value), half ? figures(half, 2) : "", data.units[name] ?? ""]), [0, 3]));
    parts.push(el("h4", {}, "How it was measured"), facts([
      ["provenance", test.provenance], ["method", test.method || "nothing"], ["scope", `${test.scope} energy`],
      ...(test.cost ? [["a million tokens", `${figures(test.cost[0])} kWh${test.cost[1] === null ? "" : `, ${figures(test.cost[1], 3)} ${data.currency}`}${test.cost[2] === null ? "" : `, ${figures(test.cost[2], 3)} gCO2e`}`]] : []),
      ...test.also]));
    parts.push(el("details", {}, el("summary", {}, "What must be the same to be compared, and facts"), facts([...Object.entries(test.key), ...Object.entries(test.facts)])));
    return parts;
  };

  data.tests.forEach((test, at) => {
    const body = el("div");
    const one = el("details", { class: "test", id: `t${at}` },
      el("summary", {}, el("h3", {}, label(test)), el("span", { class: kindClass(test.kind) }, test.word),
        el("span", { class: "quiet small" }, [test.main && `${figures(test.main[0])} ${test.unit}`, test.change && percent(test.change[0]), honest(test.provenance)].filter(Boolean).join(" · "))), body);
    one.addEventListener("toggle", () => {
      if (one.open && !body.childNodes.length) body.append(...detail(test));
    });
    section.append(one);
  });
  const openLinked = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target?.matches?.("details.test")) { target.open = true; target.scrollIntoView(); }
  };
  window.addEventListener("hashchange", openLinked);
  [...document.querySelectorAll("details.test")].filter((_, at) => data.tests[at].failing || data.tests.length === 1).slice(0, 3).forEach((one) => { one.open = true; });
  openLinked();

  if (data.claims.length) main.append(el("h2", {}, "Claims of the suites"), table(plural(data.claims.length, "claim"),
    ["claim", "says", "found [95 %]", "published", "word", "why"], data.claims, [0, 1, 2, 3, 4, 5]));
  if (data.trade_offs.length) main.append(el("h2", {}, "Trade-offs of the suites' cells"), table(
    "Of cells with the same work: in which pairs with J/token no other is better in both",
    ["cell", "J/token", "tok/s", "TTFT p90, s", "quality", "not beaten in J/token and"], data.trade_offs, [0, 5]));

  if (!data.soak) main.append(el("h2", {}, "Machine and measurement"));
  const how = new Map();
  data.tests.forEach((test) => {
    const boards = Object.entries(test.key).filter(([name]) => name.endsWith(".name")).map(([name, value]) => `${test.key[name.replace(/name$/, "count")] ?? ""}× ${value}`).join(", ");
    const line = [boards || "no device", test.method || "nothing", `${test.scope} energy`, test.provenance === "measured" ? "measured" : honest(test.provenance)];
    how.set(line.join("|"), [line, (how.get(line.join("|"))?.[1] ?? 0) + 1]);
  });
  if (how.size) main.append(table("How the numbers came about", ["boards", "read from", "scope", "provenance", "tests"], [...how.values()].map(([line, count]) => [...line, String(count)]), [0, 1, 2, 3]));
  data.runs.forEach((run) => main.append(facts([...(many ? [["run", run.id.slice(0, 8)]] : []), ...Object.entries(run.host), ...Object.entries(run.versions), ["command", run.command]])));
  if (data.factors.length) main.append(el("h2", {}, "Cost and carbon of a million generated tokens"), el("ul", {}, data.factors.map((line) => el("li", {}, line))));
  document.getElementById("foot").append(`pytest-tokenpower ${data.version}. The page holds all of its data and loads nothing.`);

  // ---- colours and paper ---------------------------------------------------------------------------------------

  const redraw = () => drawn.forEach((one) => { if (one.plot) one.draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const MOST_PRINTED = 20;
  window.addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "light";
    if (data.tests.length <= MOST_PRINTED) document.querySelectorAll("details.test").forEach((one, at) => {
      one.open = true;
      if (!one.lastChild.childNodes.length) one.lastChild.append(...detail(data.tests[at]));
    });
    drawn.forEach((one) => one.draw());
  });
  window.addEventListener("afterprint", () => {
    delete document.documentElement.dataset.theme;
    redraw();
  });
})();
