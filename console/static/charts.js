// Draws each `figure[data-plot]` from the table inside it with uPlot: rows along x, columns marked `data-series` as lines,
// 95 % intervals as bars. Colours come from the style sheet, so that a plot follows the theme. Tables stay as they are.

const DASHES = [[], [8, 5], [2, 4], [12, 4, 2, 4]];
const FONT = "12px system-ui, sans-serif";
const LABEL_PX = 80;
const AXIS_PX = 76;

function read(figure) {
  const heads = [...figure.querySelectorAll("thead th")];
  const columns = heads.flatMap((head, at) => ("series" in head.dataset ? [{ at, title: head.textContent }] : []));
  const rows = [...figure.querySelectorAll("tbody tr")].map((row) => [...row.children]);
  const number = (cell, name) => (name in cell.dataset ? Number(cell.dataset[name]) : null);
  return {
    labels: rows.map((cells) => cells[0].textContent.trim()),
    series: columns
      .map(({ at, title }) => ({
        title,
        values: rows.map((cells) => number(cells[at], "value")),
        low: rows.map((cells) => number(cells[at], "low")),
        high: rows.map((cells) => number(cells[at], "high")),
        words: rows.map((cells) => cells[at].textContent.replace(/\s+/g, " ").trim()),
      }))
      .filter((one) => one.values.some((value) => value !== null)),
  };
}

function colour(host, name) {
  const probe = document.createElement("i");
  probe.className = name;
  host.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function extent(figure, series) {
  const all = series.flatMap((one) => [...one.values, ...one.low, ...one.high]).filter((value) => value !== null);
  const fixed = (name) => (name in figure.dataset ? [Number(figure.dataset[name])] : []);
  const low = Math.min(...all, ...fixed("low"));
  const high = Math.max(...all, ...fixed("high"));
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [fixed("low").includes(low) ? low : low - room, high + room];
}

function bars(series, colours) {
  return (plot) => {
    const { ctx } = plot;
    const cap = 4 * devicePixelRatio;
    ctx.save();
    ctx.lineWidth = 1.5 * devicePixelRatio;
    series.forEach((one, at) => {
      ctx.strokeStyle = colours[at];
      one.low.forEach((low, row) => {
        if (low === null || one.values[row] === null) return;
        const x = Math.round(plot.valToPos(row, "x", true)) + (at - (series.length - 1) / 2) * 1.5 * cap;
        const top = plot.valToPos(one.high[row], "y", true);
        const bottom = plot.valToPos(low, "y", true);
        ctx.beginPath();
        ctx.moveTo(x, top);
        ctx.lineTo(x, bottom);
        for (const y of [top, bottom]) {
          ctx.moveTo(x - cap, y);
          ctx.lineTo(x + cap, y);
        }
        ctx.stroke();
      });
    });
    ctx.restore();
  };
}

function draw(figure) {
  const host = figure.querySelector(".plot-canvas");
  const readout = figure.querySelector(".plot-readout");
  const { labels, series } = read(figure);
  const colours = series.map((_, at) => colour(host, `series-${at}`));
  const [axis, grid] = [colour(host, "series-axis"), colour(host, "series-grid")];
  const [low, high] = extent(figure, series);
  const legend = figure.querySelector(".plot-legend");
  legend.replaceChildren(
    ...series.map((one, at) => {
      const item = document.createElement("li");
      item.className = `series-${at}`;
      const name = document.createElement("span");
      name.textContent = one.title;
      item.append(name);
      return item;
    }),
  );
  const written = new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 6 });
  const mark = (value) => ("percent" in figure.dataset ? `${written.format(+(100 * value).toFixed(1))} %` : written.format(value));
  const step = (plot) => Math.max(1, Math.ceil((labels.length * LABEL_PX) / Math.max(1, plot.width - AXIS_PX)));
  const options = {
    width: host.clientWidth,
    height: host.clientHeight,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: {
      x: { time: false, range: () => [-0.5, labels.length - 0.5] },
      y: { range: () => [low, high] },
    },
    axes: [
      {
        stroke: axis,
        font: FONT,
        grid: { show: false },
        ticks: { stroke: grid },
        splits: (plot) => labels.flatMap((_, row) => (row % step(plot) === 0 ? [row] : [])),
        values: (_, rows) => rows.map((row) => labels[row]),
      },
      { stroke: axis, font: FONT, labelFont: FONT, label: figure.dataset.unit, labelSize: 20, size: AXIS_PX - 20, values: (_, values) => values.map(mark), grid: { stroke: grid, width: 1 }, ticks: { show: false } },
    ],
    series: [
      {},
      ...series.map((one, at) => ({
        label: one.title,
        stroke: colours[at],
        width: 2,
        dash: DASHES[at % DASHES.length],
        points: { show: labels.length < 40, size: 7, fill: colours[at] },
      })),
    ],
    hooks: {
      draw: [bars(series, colours)],
      setCursor: [
        (plot) => {
          const row = plot.cursor.idx;
          readout.textContent =
            row === null || row === undefined
              ? ""
              : `${labels[row]}: ${series.map((one) => `${one.title} ${one.words[row]}`).join(" · ")}`;
        },
      ],
    },
  };
  return new uPlot(options, [labels.map((_, row) => row), ...series.map((one) => one.values)], host);
}

function keep(figure) {
  const host = figure.querySelector(".plot-canvas");
  let plot = null;
  host.replaceChildren(); // what stands there for readers without scripts
  const again = () => {
    plot?.destroy();
    plot = draw(figure);
    figure.dataset.drawn = "yes";
  };
  again();
  let width = host.clientWidth;
  new ResizeObserver(() => {
    if (host.clientWidth !== width && host.clientWidth > 0) {
      width = host.clientWidth;
      plot.setSize({ width, height: host.clientHeight });
    }
  }).observe(host);
  new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}

for (const figure of document.querySelectorAll("figure[data-plot]")) keep(figure);
