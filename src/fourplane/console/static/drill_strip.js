// The drill of a system as it runs, in one line above its diagram: what it is, how long, what happened last, where it all is told.
import { ask, html, span } from "/control/static/watch.js";

const LOOK_MS = 2000, SHOWN_S = 180, BEGINS_S = 30;

export function strip(holder, system) {
  let timer = 0, last = "", begun = "", begunAt = 0; // the drill somebody began here
  holder.hidden = true;
  holder.setAttribute("role", "status");

  async function look() {
    clearTimeout(timer);
    if (!holder.isConnected) return; // another page is shown by now
    try { await show(); } catch { // who serves this page may be what the drill killed
      holder.querySelector(".said")?.replaceChildren("nobody answers this page just now; it asks again");
      timer = setTimeout(look, LOOK_MS);
    }
  }

  async function show() {
    const { records } = await ask("/control/api/drills");
    const drill = records.find((one) => one.system === system && (!begun || one.id >= begun));
    if (!drill && begun && Date.now() / 1000 - begunAt < BEGINS_S) { // its process takes a moment to begin
      timer = setTimeout(look, LOOK_MS);
      holder.className = "drill-strip running";
      holder.replaceChildren(html`<b>The drill begins</b> <span class="said">its clients look at how things are, before anything is broken</span> <a class="button quiet" href="/control/drills">Follow it</a>`);
      holder.hidden = false;
      return;
    }
    if (!drill || (drill.status !== "running" && Date.now() / 1000 - drill.updated_s > SHOWN_S)) { holder.hidden = true; return; }
    const running = drill.status === "running";
    const said = running ? await newest(drill) : Object.entries(drill.told).slice(1, 3).map(([key, value]) => `${key}: ${value}`).join(" · ");
    if (running) timer = setTimeout(look, LOOK_MS);
    const key = `${drill.id} ${drill.status} ${said}`;
    if (key === last && !running) return;
    last = key;
    const place = running ? "/control/drills" : Object.keys(drill.told).length ? `/control/drills/${drill.id}.html` : "/control/drills";
    holder.className = `drill-strip ${drill.status}`;
    holder.replaceChildren(html`<b>${drill.title}</b> <span class="how">${running ? span(Math.max(1, Math.round(Date.now() / 1000 - drill.began_s))) : drill.status === "completed" ? "healed" : drill.status}</span>
      <span class="said">${said}</span> <a class="button quiet" href="${place}">${running ? "Follow it" : "Report"}</a>`);
    holder.hidden = false;
  }

  look();
  return (id) => { begun = id; begunAt = Date.now() / 1000; look(); };
}

// The latest of what the runner said, what fires, and what a runbook did.
async function newest(drill) {
  const [alerts, runs] = await Promise.all([ask("/control/api/alerts").catch(() => ({ active: [] })), ask("/control/api/runbooks").catch(() => ({ runs: [] }))]);
  const line = drill.lines.at(-1);
  const found = line ? [{ at: line.at_s, said: line.text.split("\n").at(-1).trim() }] : [];
  for (const { alert } of alerts.active) if (alert.started_s >= drill.began_s) found.push({ at: alert.started_s, said: `${alert.name}: ${alert.summary}` });
  for (const run of runs.runs) {
    if (run.began_s < drill.began_s) continue;
    for (const step of run.steps) if (step.kind !== "alert") found.push({ at: step.at_s, said: `runbook ${run.runbook}: ${step.name}` });
    if (run.ended_s) found.push({ at: run.ended_s, said: `runbook ${run.runbook}: ${run.outcome}` });
  }
  return found.sort((one, other) => other.at - one.at)[0]?.said ?? "it looks at how things are, before anything is broken";
}
