// Alerts that fire, silences, receivers, what is over.
import { ago, ask, at, clock, html, raw, span, text, toast, tried, watching } from "/control/static/watch.js";

function table(head, rows, nothing) {
  if (!rows.length) return html`<p class="empty">${nothing}</p>`;
  const made = document.createElement("table");
  made.append(html`<thead><tr>${raw(head.map((one) => `<th scope="col">${text(one)}</th>`).join(""))}</tr></thead>`);
  const body = document.createElement("tbody");
  body.append(...rows);
  made.append(body);
  return made;
}

function row(cells, buttons = []) {
  const made = document.createElement("tr");
  for (const cell of cells) {
    const one = document.createElement("td");
    one.append(cell?.nodeType ? cell : String(cell));
    made.append(one);
  }
  if (buttons.length) {
    const last = document.createElement("td"), holder = document.createElement("div");
    holder.className = "row";
    holder.append(...buttons);
    last.append(holder);
    made.append(last);
  }
  return made;
}

function button(name, work) {
  const made = document.createElement("button");
  made.className = "button quiet small";
  made.type = "button";
  made.textContent = name;
  made.addEventListener("click", () => tried(async () => { await work(); await look(); }));
  return made;
}

const written = (matchers) => matchers.map((one) => `${one.label}${one.operator}"${one.text}"`).join(", ");
const chip = (severity) => html`<span class="chip ${severity}">${severity}</span>`;

function firing(view) {
  const { alert, fingerprint } = view;
  const quiet = view.acknowledged_by ? `looked after by ${view.acknowledged_by}` : view.silenced_by ? "silenced" : "";
  const labels = Object.entries(alert.labels).map(([key, value]) => `${key}=${value}`).join(", ");
  const made = row([chip(alert.severity), alert.service, html`<b>${alert.summary}</b><br><span class="muted">${alert.name} · ${labels}</span>`, ago(alert.started_s), quiet],
    [...(view.acknowledged_by ? [] : [button("Look after it", () => ask(`/control/api/alerts/${fingerprint}/acknowledge`, "POST"))]),
      ...(view.silenced_by ? [] : [button("Silence 1 h", () => ask("/control/api/silences", "POST", { matchers: [`alertname="${alert.name}"`, `service="${alert.service}"`], duration_s: 3600, comment: "from the console" }))])]);
  made.id = fingerprint;
  return made;
}

function silence(one) {
  const left = one.ends_s - Date.now() / 1000;
  return row([html`<code>${written(one.matchers)}</code>`, left > 0 ? `${span(left)} more` : `ended ${ago(one.ends_s)}`, one.by, one.comment], left > 0 ? [button("End it", () => ask(`/control/api/silences/${one.id}`, "DELETE"))] : [document.createTextNode("")]);
}

function over({ alert, ended_s, acknowledged_by }) {
  return row([chip(alert.severity), alert.service, html`${alert.summary}<br><span class="muted">${alert.name}</span>`, clock(alert.started_s), span(Math.max(1, ended_s - alert.started_s)), acknowledged_by]);
}

function receiver(one) {
  return row([one.name, one.kind, one.delivered.toLocaleString(), one.waiting, one.failed, one.dropped, one.last_error || "–"]);
}

async function look() {
  const view = await ask("/control/api/alerts");
  const pages = view.active.filter((one) => one.alert.severity === "page").length;
  const held = view.active.filter((one) => one.acknowledged_by || one.silenced_by).length;
  const tile = (number, what, bad) => html`<div><b class="${bad ? "bad" : ""}">${number}</b><span>${what}</span></div>`;
  at("tiles").replaceChildren(tile(view.active.length, "fire now", view.active.length), tile(pages, "of them pages", pages), tile(held, "silenced or looked after"), tile(view.fired_total, "since the start"), tile(view.notified_total, "times told"));
  at("active").replaceChildren(table(["", "Service", "What", "Since", "", ""], view.active.map(firing), "Nothing is wrong."));
  at("silences").replaceChildren(table(["Matchers", "For", "By", "Why", ""], view.silences.map(silence), "No silence."));
  at("receivers").replaceChildren(table(["Name", "Kind", "Delivered", "Waiting", "Failed", "Dropped", "Last error"], view.receivers.map(receiver), "Nobody is told but this page: name a receiver under [[observability.alerts.receivers]] in fourplane.toml."));
  at("history").replaceChildren(table(["", "Service", "What", "Began", "Lasted", "Looked after by"], view.history.map(over), "No alert has ended yet."));
}

at("silence").addEventListener("submit", (event) => {
  event.preventDefault();
  tried(async () => {
    const matchers = at("matchers").value.match(/[A-Za-z_]\w*\s*(?:=~|!~|!=|=)\s*(?:"(?:[^"\\]|\\.)*"|[^,\s]*)/g) ?? [at("matchers").value];
    await ask("/control/api/silences", "POST", { matchers, duration_s: Number(at("duration").value), comment: at("comment").value });
    at("silence").reset();
    toast("Silenced. The alerts stay on this page; nobody is told.");
    await look();
  });
});

watching(look, 2000);
