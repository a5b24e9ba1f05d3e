/* Users, sessions, rooms and queues of one worker, every two seconds while the page is seen. */

const API = "/messaging/api/operations";
const $ = (id) => document.getElementById(id);
const FIGURES = { sessions: "sessions", connections: "connections", users_in_memory: "people in memory", rooms: "groups", writes_waiting: "writes waiting", worker: "worker" };

function cell(text, kind = "") {
  const td = document.createElement("td");
  td.textContent = typeof text === "number" ? text.toLocaleString() : text;
  td.className = kind;
  return td;
}

function rows(id, found, make) {
  $(id).replaceChildren(...found.map((one) => { const tr = document.createElement("tr"); tr.append(...make(one)); return tr; }));
  $(`no-${id}`).hidden = found.length > 0;
}

function ending(user) {
  const button = document.createElement("button");
  button.className = "button quiet small";
  button.textContent = "End";
  button.setAttribute("aria-label", `End the sessions of ${user}`);
  button.onclick = async () => {
    button.disabled = true;
    const answer = await fetch(`${API}/end`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ user }) });
    $("state").textContent = answer.ok ? `The sessions of ${user} were ended.` : `Not ended: ${(await answer.json().catch(() => ({}))).message || answer.status}`;
    show();
  };
  const td = document.createElement("td");
  td.append(button);
  return td;
}

async function show() {
  let answer;
  try {
    answer = await fetch(`${API}?find=${encodeURIComponent($("find").value)}`);
  } catch {
    $("state").textContent = "reconnecting…";
    return;
  }
  if (answer.status === 401 || answer.status === 403) {
    $("state").textContent = "Only for operators: ./fourplane operator prints a link that makes this browser one.";
    return;
  }
  if (!answer.ok) { $("state").textContent = `The server says ${answer.status}.`; return; }
  const now = await answer.json();
  if ($("state").textContent.endsWith("…") || $("state").textContent.startsWith("Only")) $("state").textContent = "";
  $("figures").replaceChildren(...Object.entries(FIGURES).map(([key, title]) => {
    const div = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = title; dd.textContent = now[key].toLocaleString(); div.append(dt, dd);
    return div;
  }));
  rows("sessions", now.session_rows, (one) => [cell(one.user), cell(one.resource), cell(one.state, one.state === "online" ? "" : "bad"),
    cell(one.peer + (one.secure ? " (TLS)" : "")), cell(one.unacknowledged, "n"), cell(one.unsent_bytes, "n"), cell(one.waiting, "n"), ending(one.user)]);
  rows("rooms", now.room_rows, (one) => [cell(one.room), cell(one.occupants, "n"), cell(one.persistent ? "yes" : "until empty"), cell(one.remembered, "n")]);
}

$("find").oninput = show;
setInterval(() => { if (!document.hidden) show(); }, 2000);
show();
