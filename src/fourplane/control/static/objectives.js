// Error budgets as they are spent, and what probes felt.
import { ask, at, html, raw, span, watching } from "/control/static/watch.js";

const percent = (share, digits) => `${+(share * 100).toFixed(digits)} %`;

// What is left of the budget after each slot of the period: an area that sinks to the line of zero.
function burnDown(points, colour) {
  const low = Math.min(0, ...points), width = 240, height = 56, y = (value) => 2 + (1 - (value - low) / (1 - low || 1)) * (height - 4);
  const line = points.map((value, n) => `${((n / (points.length - 1)) * width).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  return `<svg viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label="budget left over the period">
    <line x1="0" x2="${width}" y1="${y(0)}" y2="${y(0)}" stroke="var(--line)" stroke-width="1.5"/>
    <polygon points="0,${y(0)} ${line} ${width},${y(0)}" fill="${colour}" opacity=".14"/>
    <polyline points="${line}" fill="none" stroke="${colour}" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>`;
}

function card({ objective, figures, error }) {
  const burning = figures.burns.some((burn) => burn.firing);
  const kind = figures.total === 0 ? "unknown" : burning ? "burning" : figures.remaining < 0.25 ? "low" : "";
  const colour = kind === "burning" ? "var(--bad)" : kind === "low" ? "var(--warn)" : "var(--good)";
  const burns = figures.burns.map((burn) => `<span class="${burn.firing ? "on" : ""}" title="fires at ${burn.factor} over ${span(burn.long_s)} and ${span(burn.short_s)}">${span(burn.long_s)} · ${burn.long_rate >= 100 ? Math.round(burn.long_rate) : burn.long_rate.toFixed(1)}×</span>`).join("");
  const left = figures.total === 0 ? "no events yet" : percent(figures.remaining, figures.remaining < -10 ? 0 : 1);
  return html`<article class="card objective ${kind}"><h3>${objective.name}<small>target ${percent(objective.target, 3)}</small></h3>
    <p>${error || objective.what}</p><div class="left">${left} <small>${figures.total ? "of the budget left" : ""}</small></div>
    ${raw(burnDown(figures.burn_down, colour))}
    <div class="burns">${raw(burns)}</div><p>${figures.total ? `${percent(figures.ratio, 4)} good of ${Math.round(figures.total).toLocaleString()}` : ""}</p></article>`;
}

function probe(view) {
  const shown = view.recent.slice(-60), most = Math.max(50, ...shown.map((one) => one.took_ms));
  const bars = shown.map((one, n) => {
    const tall = one.error ? 34 : Math.max(3, (one.took_ms / most) * 32);
    return `<rect x="${n * 6}" y="${34 - tall}" width="4" height="${tall}" rx="1.5" fill="var(${one.error ? "--bad" : "--good"})"><title>${new Date(one.at_s * 1000).toLocaleTimeString()} · ${one.error ? one.error.replace(/[<>&"]/g, " ") : `${one.took_ms} ms`}</title></rect>`;
  }).join("");
  const last = shown.at(-1);
  const now = !last ? "not yet" : last.error ? "not served" : `${Math.round(last.took_ms)} ms`;
  return html`<div class="probe"><b>${view.system}</b>${raw(`<svg viewBox="0 0 360 34" preserveAspectRatio="xMinYMid meet" role="img" aria-label="the last ${shown.length} probes">${bars}</svg>`)}<span>${now} · ${view.served.toLocaleString()} of ${(view.served + view.failed).toLocaleString()} served</span></div>`;
}

function tile(number, what, bad) {
  return html`<div><b class="${bad ? "bad" : ""}">${number}</b><span>${what}</span></div>`;
}

async function look() {
  const [views, probes] = await Promise.all([ask("/control/api/objectives"), ask("/control/api/probes")]);
  const known = views.filter((one) => one.figures.total > 0);
  const burning = known.filter((one) => one.figures.burns.some((burn) => burn.firing));
  const spent = known.filter((one) => one.figures.remaining <= 0);
  const worst = known.reduce((least, one) => (least && least.figures.remaining <= one.figures.remaining ? least : one), null);
  at("period").textContent = `What users were promised over ${span(views[0]?.period_s ?? 0)}, and how much of each error budget is left. A budget that burns many times too fast over a long and a short window is an alert.`;
  at("tiles").replaceChildren(tile(views.length, "objectives"), tile(burning.length, "burn too fast now", burning.length), tile(spent.length, "budgets spent", spent.length),
    tile(worst ? percent(worst.figures.remaining, 0) : "–", worst ? `left of ${worst.objective.name}` : "no events yet", worst && worst.figures.remaining <= 0));
  const services = Map.groupBy ? Map.groupBy(views, (one) => one.objective.service) : views.reduce((all, one) => all.set(one.objective.service, [...(all.get(one.objective.service) ?? []), one]), new Map());
  at("services").replaceChildren(...[...services].flatMap(([service, own]) => {
    const holder = document.createElement("section");
    holder.className = "service";
    holder.append(...own.map(card));
    return [html`<h2>${service[0].toUpperCase() + service.slice(1)}</h2>`, holder];
  }));
  at("probes").replaceChildren(...(probes.length ? probes.map(probe) : [html`<p class="empty">Probes are switched off (observability.probes.enabled).</p>`]));
}

watching(look, 2000);
