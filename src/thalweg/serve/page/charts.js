// Charts in SVG: where an energy lies among those of normal data, energies of chains on their way, probabilities.

import { el, svg } from "./dom.js";
import { NOUNS, count, nats, number, percent } from "./format.js";

/** About `n` round numbers within [low, high]. */
export function ticks(low, high, n = 5) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / n));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => span / s <= 1.3 * n) ?? power * 10;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * span; k++) found.push(k * step);
  return found;
}

/** Draws anew whenever its width changes, so that letters keep their size. */
function responsive(draw) {
  const element = el("div", { class: "chart" });
  let wide = 0;
  const again = () => wide && element.replaceChildren(draw(wide));
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now && now !== wide) {
      wide = now;
      again();
    }
  }).observe(element);
  return { element, again };
}

const MOST_STROKES = 600;

/** The energies of normal data as bars. Null where there are none.
 *
 * `mark(energy, flagged)` says where another lies; `rug(predictions)` puts a stroke for each of many below the axis.
 */
export function histogram(model) {
  const known = model.histogram;
  if (!known || known.counts.length === 0) return null;
  const { edges, counts } = known;
  const total = counts.reduce((a, b) => a + b, 0);
  const many = NOUNS[model.content][1];
  let here = null;
  let strokes = [];
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const height = 204;
  const pad = { left: 44, right: 14, top: 38, bottom: 42 };

  const draw = (width) => {
    // The axis grows by up to half to show what lies beside the normal ones; what lies further is at its end.
    const span = high - low || 1;
    const others = here ? [here.energy] : strokes.map(({ energy }) => energy);
    const from = Math.max(low - 0.5 * span, Math.min(low, ...others.map((u) => u - 0.05 * span)));
    const to = Math.min(high + 0.8 * span, Math.max(high, ...others.map((u) => u + 0.05 * span)));
    const x = (u) => pad.left + ((u - from) / (to - from)) * (width - pad.left - pad.right);
    const base = height - pad.bottom;
    const deep = strokes.length ? 13 : 0;
    const most = Math.max(...counts);
    const y = (n) => base - (n / most) * (base - pad.top);
    const bars = counts.map((n, i) =>
      svg("rect", { class: "bar", x: x(edges[i]) + 0.5, width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1), y: y(n), height: base - y(n) }),
    );
    const level = ticks(0, most / total, 2).filter((share) => share > 0);
    const labels = [
      ...ticks(from, to, Math.max(3, Math.floor(width / 90))).map((u) => svg("text", { class: "tick", x: x(u), y: base + deep + 17, "text-anchor": "middle", text: number(u) })),
      ...level.map((share) => svg("text", { class: "tick", x: pad.left - 8, y: y(share * total) + 4, "text-anchor": "end", text: percent(share) })),
      svg("text", { class: "axis", x: width - pad.right, y: base + deep + 36, "text-anchor": "end", text: "energy, nats (low is normal)" }),
      svg("text", { class: "axis", x: 0, y: 12, text: `share of ${count(total)} normal ${many}` }),
    ];
    const lines = level.map((share) => svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(share * total), y2: y(share * total) }));
    const ground = svg("line", { class: "ground", x1: pad.left, x2: width - pad.right, y1: base, y2: base });
    const label = strokes.length
      ? `Histogram of the energies of ${count(total)} normal ${many}, most between ${number(low)} and ${number(high)} nats; those of this table are strokes below it, the flagged ones in red.`
      : here
      ? `Histogram of the energies of ${count(total)} normal ${many}, most between ${number(low)} and ${number(high)} nats; this one lies at ${nats(here.energy)}.`
      : `Histogram of the energies of ${count(total)} normal ${many}, most between ${number(low)} and ${number(high)} nats.`;
    const rug = strokes.map(({ energy, flag }) => {
      const at = x(Math.min(to, Math.max(from, energy)));
      return svg("line", { class: flag ? "stroke flagged" : "stroke", x1: at, x2: at, y1: base + 3, y2: base + 12 });
    });
    const tall = height + deep;
    return svg("svg", { role: "img", "aria-label": label, width, height: tall, viewBox: `0 0 ${width} ${tall}` }, lines, bars, rug, ground, labels, here ? marker(here, x, from, to, base, width) : []);
  };

  const marker = ({ energy, flagged }, x, from, to, base, width) => {
    const beyond = energy < from ? "← " : energy > to ? " →" : "";
    const at = x(Math.min(to, Math.max(from, energy)));
    const end = at > width - 120;
    const text = beyond === "← " ? `← this one, ${number(energy)}` : `this one, ${number(energy)}${beyond}`;
    return svg(
      "g",
      { class: flagged ? "marker flagged" : "marker" },
      svg("line", { x1: at, x2: at, y1: 24, y2: base }),
      svg("circle", { cx: at, cy: base, r: 4.5 }),
      svg("text", { x: end ? at - 7 : at + 7, y: 31, "text-anchor": end ? "end" : "start", text }),
    );
  };

  const chart = responsive(draw);
  return {
    element: chart.element,
    mark: (energy, flagged) => {
      here = Number.isFinite(energy) ? { energy, flagged } : null;
      chart.again();
    },
    rug: (predictions) => {
      const every = Math.max(1, Math.ceil(predictions.length / MOST_STROKES)); // of an order by oddness
      strokes = predictions.filter((_, i) => i % every === 0).reverse();
      chart.again();
    },
  };
}

/** Energies of chains, frame by frame: one thin line a chain, a strong one for their mean. `expected`: frames to come. */
export function energyCurve(expected) {
  let frames = [];
  const height = 170;
  const pad = { left: 58, right: 14, top: 26, bottom: 40 };
  const mean = (energies) => energies.reduce((a, b) => a + b, 0) / energies.length;

  const draw = (width) => {
    const all = frames.flatMap((frame) => frame.energies).filter(Number.isFinite);
    if (!all.length) return svg("svg", { width, height, "aria-hidden": "true" });
    let [low, high] = [Math.min(...all), Math.max(...all)];
    if (low === high) [low, high] = [low - 1, high + 1];
    const newestFrame = frames[frames.length - 1];
    const last = Math.max(1, newestFrame.frame, newestFrame.last ? 0 : expected - 1);
    const x = (i) => pad.left + (i / last) * (width - pad.left - pad.right);
    const y = (u) => height - pad.bottom - ((u - low) / (high - low)) * (height - pad.top - pad.bottom);
    const line = (take) => frames.map((frame, i) => `${i ? "L" : "M"}${x(frame.frame).toFixed(1)} ${y(take(frame)).toFixed(1)}`).join("");
    const chains = frames[0].energies.map((_, k) => svg("path", { class: "chain", d: line((frame) => frame.energies[k]) }));
    return svg(
      "svg",
      {
        role: "img",
        "aria-label": `Energies of ${frames[0].energies.length} chains over ${frames.length} frames; their mean is now ${nats(mean(newestFrame.energies))}.`,
        width,
        height,
        viewBox: `0 0 ${width} ${height}`,
      },
      ticks(low, high, 3).map((u) => [
        svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(u), y2: y(u) }),
        svg("text", { class: "tick", x: pad.left - 8, y: y(u) + 4, "text-anchor": "end", text: number(u) }),
      ]),
      chains,
      svg("path", { class: "mean", d: line((frame) => mean(frame.energies)) }),
      svg("circle", { class: "mean", cx: x(newestFrame.frame), cy: y(mean(newestFrame.energies)), r: 3.5 }),
      svg("text", { class: "axis", x: 0, y: 12, text: "energy, nats" }),
      svg("text", { class: "axis", x: width - pad.right, y: height - 8, "text-anchor": "end", text: "frames of the chains, from noise to the draw" }),
    );
  };

  const chart = responsive(draw);
  return {
    element: chart.element,
    add: (frame) => {
      frames = [...frames.filter((other) => other.frame < frame.frame), frame];
      chart.again();
    },
    clear: () => {
      frames = [];
      chart.again();
    },
  };
}

/** Probabilities of labels as bars, the likeliest first when there are many. */
export function probabilityBars() {
  const list = el("ol", { class: "bars" });
  return {
    element: list,
    show: (probabilities) => {
      const pairs = Object.entries(probabilities);
      const best = Math.max(...pairs.map(([, p]) => p));
      if (pairs.length > 12) pairs.sort((a, b) => b[1] - a[1]).splice(12);
      list.replaceChildren(
        ...pairs.map(([label, p]) =>
          el(
            "li",
            { class: p === best ? "best" : null },
            el("span", { class: "bar-label", text: label }),
            el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", css: { width: `${100 * p}%` } })),
            el("span", { class: "figure", text: percent(p) }),
          ),
        ),
      );
    },
    clear: () => list.replaceChildren(),
  };
}
