// Drills: begin one, watch the loop (fault, alert, runbook, recovery), read and save the reports.
import { ago, ask, clock, html, raw, span, text, toast, tried, watching } from "/control/static/watch.js";

const $ = (id) => document.getElementById(id);
const NAMES = {
  "zone-down": ["Zone down", "Everything that stands in one place is gone for a while"],
  kill: ["Kill", "The process dies and is away for three seconds"],
  slow: ["Slow release", "A change makes every answer slower, until it is taken back"],
  "10x": ["10× load", "Nine times as many clients on top for fifteen seconds"],
};
let drawn = "";

function buttons(view) {
  const key = JSON.stringify([view.kinds, view.running]);
  if (key === drawn) return;
  drawn = key;
  $("systems").replaceChildren(...Object.entries(view.kinds).map(([system, kinds]) => {
    const card = document.createElement("article");
    card.append(html`<h3>${system}</h3><div class="row"></div>`);
    for (const kind of kinds) {
      const button = document.createElement("button");
      button.className = kind === "zone-down" ? "button" : "button quiet";
      button.type = "button";
      button.dataset.drill = `${system}-${kind}`;
      [button.textContent, button.title] = NAMES[kind];
      button.disabled = view.running;
      button.addEventListener("click", () => tried(async () => {
        await ask("/control/api/drills", "POST", { system, kind });
        toast("The drill begins with its own clients: first a look at how things are, then the fault. This page shows it.");
        await look();
      }));
      card.querySelector(".row").append(button);
    }
    return card;
  }));
}

function now(view, runs, alerts) {
  const drill = view.records[0];
  if (!drill || (drill.status !== "running" && Date.now() / 1000 - drill.updated_s > 300)) {
    $("now").replaceChildren(html`<p class="empty">No drill is under way. Begin one above; “zone down” for streaming shows the whole loop in about a minute and a half.</p>`);
    return;
  }
  const rows = drill.lines.slice(1, 30).map((line) => ({ at: line.at_s, kind: "drill", said: line.text.split("\n").filter((one) => !one.startsWith("  ")).join(" · ") }));
  for (const alert of [...alerts.active.map((one) => ({ ...one.alert, ended: 0 })), ...alerts.history.map((one) => ({ ...one.alert, ended: one.ended_s }))]) {
    if (alert.started_s < drill.began_s) continue;
    rows.push({ at: alert.started_s, kind: "alert", said: `${alert.name}: ${alert.summary}` });
    if (alert.ended) rows.push({ at: alert.ended, kind: "alert", said: `${alert.name} is over` });
  }
  for (const run of runs) {
    if (run.began_s < drill.began_s) continue;
    for (const step of run.steps) if (step.kind !== "alert") rows.push({ at: step.at_s, kind: "runbook", said: `${run.runbook}: ${step.name}${step.told ? ` (${step.told})` : ""}` });
    if (run.ended_s) rows.push({ at: run.ended_s, kind: "runbook", said: `${run.runbook}: ${run.outcome}` });
  }
  rows.sort((one, other) => one.at - other.at);
  $("now").replaceChildren(html`<h3>${drill.title} <span class="verdict ${drill.status}">${drill.status === "completed" ? "healed" : drill.status}</span></h3>
    <ol>${raw(rows.map((row) => `<li><time>${clock(row.at)}</time><b class="${row.kind}">${row.kind}</b><span>${text(row.said)}</span></li>`).join(""))}</ol>`);
}

function table(head, rows, nothing) {
  if (!rows.length) return html`<p class="empty">${nothing}</p>`;
  return html`<table><thead><tr>${raw(head.map((one) => `<th scope="col">${text(one)}</th>`).join(""))}</tr></thead><tbody>${raw(rows.map((cells) => `<tr>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join(""))}</tbody></table>`;
}

function reports(records) {
  const rows = records.filter((one) => one.status !== "running").map((one) => {
    const link = (kind, name) => `<a class="button quiet small" href="/control/drills/${text(one.id)}.${kind}"${kind === "html" ? "" : " download"}>${name}</a>`;
    const told = Object.entries(one.told).slice(1, 6).map(([key, value]) => `${text(key)}: <b>${text(value)}</b>`).join("<br>");
    const links = Object.keys(one.told).length ? `${link("html", "Open")} ${link("md", "Markdown")} ${link("json", "Record")}` : link("json", "Record");
    return [ago(one.began_s), `<b>${text(one.title)}</b>`, `<span class="verdict ${text(one.status)}">${one.status === "completed" ? "healed" : text(one.status)}</span>`, told, `<div class="row">${links}</div>`];
  });
  $("reports").replaceChildren(table(["When", "Drill", "Ended", "What it was like", ""], rows, "No drill has been run yet."));
}

let open = new Set();
function runsOf(runs) {
  document.querySelectorAll("#runs details").forEach((one) => open[one.open ? "add" : "delete"](one.dataset.run));
  const rows = runs.slice(0, 20).map((run) => {
    const steps = run.steps.map((step) => `<li class="${step.ok ? "" : "no"}"><time>${clock(step.at_s)}</time><b>${text(step.kind)}</b><span>${text(step.name)}${step.told ? `: ${text(step.told)}` : ""}</span></li>`).join("");
    return [ago(run.began_s), `<details data-run="${text(run.id)}"${open.has(run.id) ? " open" : ""}><summary><b>${text(run.title)}</b></summary><ol class="steps">${steps}</ol></details>`, text(run.alert.summary), `<span class="verdict ${text(run.outcome)}">${run.ended_s ? text(run.outcome) : `${text(run.phase)} …`}</span>`, run.ended_s ? span(Math.max(1, run.ended_s - run.began_s)) : ""];
  });
  $("runs").replaceChildren(table(["When", "Runbook", "Because", "Outcome", "Took"], rows, "No alert has started a runbook yet."));
}

function changes({ versions }) {
  const undone = new Set(versions.map((one) => one.takes_back));
  $("changes").replaceChildren(table(["Version", "When", "Who", "What", "Note", ""], [...versions].reverse().slice(0, 15).map((one) => [one.version, ago(one.at_s), text(one.who), `<code>${text(one.name)}</code> ${one.before} → <b>${one.value}</b>`, text(one.note), one.takes_back || undone.has(one.version) ? "" : `<button class="button quiet small" type="button" data-back="${one.version}">Take back</button>`]), "Nothing was changed while it ran."));
  for (const button of document.querySelectorAll("[data-back]")) button.addEventListener("click", () => tried(async () => { await ask("/control/api/changes/rollback", "POST", { version: Number(button.dataset.back) }); await look(); }));
}

function books(listed) {
  $("books").replaceChildren(...listed.map(({ runbook, runs_last_hour }) => {
    const card = document.createElement("article");
    card.className = "card objective book";
    const steps = [...runbook.checks.map((one) => ["check", one.name]), ...runbook.actions.map((one) => ["do", one.name]), ...(runbook.verify ? [["verify", runbook.verify.name]] : []), ...runbook.undo.map((one) => ["undo", one.name]), ...runbook.escalate.map((one) => ["else", one.name])];
    card.append(html`<h3>${runbook.title}<small>${runbook.study}</small></h3><p>when <code>${runbook.alert}</code> fires · ${runs_last_hour} of ${runbook.per_hour_max} runs this hour</p><ol class="steps">${raw(steps.map(([kind, name]) => `<li><time>${kind}</time><span style="grid-column: 2 / -1">${text(name)}</span></li>`).join(""))}</ol>`);
    return card;
  }));
}

async function look() {
  const [view, all, alerts, versions] = await Promise.all([ask("/control/api/drills"), ask("/control/api/runbooks"), ask("/control/api/alerts"), ask("/control/api/changes")]);
  buttons(view);
  now(view, all.runs, alerts);
  reports(view.records);
  runsOf(all.runs);
  changes(versions);
  if (!$("books").children.length) books(all.runbooks);
}

$("halt").addEventListener("click", () => tried(async () => {
  const { ended } = await ask("/control/api/halt", "POST");
  toast(ended ? `${ended} faults ended.` : "Nothing was broken on purpose.");
  await look();
}));
watching(look, 1500);
