// Operations: all cars, where supply, demand and surge are, every ride, and any ride once more from its track.

import { binary, call, el, Line, minutes, Refused } from "./api.js";
import { CityView } from "./cityview.js";

const panel = document.getElementById("panel");
const $ = (id) => document.getElementById(id);
const WORDS = { processing: "searching", offered: "asking", accepted: "on the way", arriving: "at the pick-up", in_progress: "riding",
  completed: "done", rider_canceled: "cancelled", driver_canceled: "given back", no_drivers_available: "nobody free" };
const FIRST = ["in_progress", "arriving", "accepted"]; // what is worth a look comes first
const CLASSES = { processing: "wait", offered: "wait", accepted: "busy", arriving: "busy", in_progress: "ride", completed: "free" };
let view, live, info, replay = null, heatTimer = 0, listTimer = 0, before = null, note = "";

start().catch((error) => show(el("h2", {}, "The city is not here"), el("p", { class: "error" }, error.message)));

async function start() {
  info = await call("GET", "/map");
  document.title = `${info.name}: operations`;
  $("attribution").textContent = info.attribution || "A generated city";
  view = new CityView($("map"), info);
  window.cityView = view;
  view.onview = () => live.send(view.window());
  binary("/map/lines").then((buffer) => view.setLines(buffer));
  live = new Line("/live", { open: () => live.send(view.window()), bytes: (buffer) => view.setCars(buffer),
    state: (on) => { $("connection").textContent = on ? "" : "reconnecting…"; } });
  $("zoom-in").onclick = () => view.zoom(1.6);
  $("zoom-out").onclick = () => view.zoom(1 / 1.6);
  $("zoom-all").onclick = () => { view.scale = 9000; [view.cx, view.cy] = view.project(...info.center); view.moved(); };
  for (const button of document.querySelectorAll("[data-heat]")) button.onclick = () => heat(button);
  figures();
  setInterval(figures, 2000);
  let frames = 0;
  setInterval(() => {
    $("smooth").textContent = `${view.cars.size.toLocaleString()} cars, ${(view.frames || 0) - frames} frames/s, ${(view.drawMs || 0).toFixed(1)} ms each${note && ` · ${note}`}`;
    frames = view.frames || 0;
  }, 1000);
  await list();
}

function show(...children) { panel.replaceChildren(...children.filter(Boolean)); }

async function heat(chosen) {
  for (const button of document.querySelectorAll("[data-heat]")) button.setAttribute("aria-checked", String(button === chosen));
  clearInterval(heatTimer);
  const mode = (view.heatMode = chosen.dataset.heat || "all");
  view.overlays.heat = [];
  note = "";
  if (mode === "all") return;
  const load = async () => {
    const { cells } = await call("GET", "/heat");
    if (view.heatMode !== mode) return;
    view.overlays.heat = cells;
    const told = { supply: (cell) => cell.free, demand: (cell) => cell.asks, surge: (cell) => cell.surge > 1 }[mode];
    note = cells.some(told) ? "" : { supply: "no free car", demand: "nobody asked lately", surge: "no surge now" }[mode];
  };
  heatTimer = setInterval(() => load().catch(() => {}), 3000);
  await load();
}

async function figures() {
  try {
    const now = await call("GET", "/statistics"), at = performance.now();
    const put = (id, value) => { $(id).textContent = typeof value === "number" ? value.toLocaleString() : value; };
    put("f-free", now.available); put("f-reserved", now.reserved); put("f-riding", now.riding); put("f-waiting", now.rides.searching);
    put("f-match", now.match_p99_s ? `${now.match_p99_s.toFixed(1)} s` : "–");
    put("f-earned", (now.rides.earned / 100).toLocaleString(undefined, { style: "currency", currency: info.currency }));
    if (before) put("f-rate", Math.round(((now.feed.positions - before.positions) * 1000) / (at - before.at)));
    before = { positions: now.feed.positions, at };
  } catch (error) { if (!(error instanceof Refused)) throw error; }
}

// -- rides

async function list() {
  clearInterval(listTimer);
  replay = null;
  Object.assign(view.overlays, { routes: [], pins: [], ghosts: [] });
  const load = async () => {
    const { trips } = await call("GET", "/operations/trips");
    if (replay || (panel.matches(":hover") && panel.querySelector(".trip"))) return; // nothing moves under a hand
    const rank = ({ status }) => (FIRST.includes(status) ? 0 : CLASSES[status] === "wait" ? 2 : 1);
    const rows = trips.sort((a, b) => rank(a) - rank(b)).map((trip) => el("button", { class: "trip", type: "button", onclick: () => play(trip.request_id) },
      el("i", { class: `dot ${CLASSES[trip.status] ?? "gone"}` }), el("b", {}, WORDS[trip.status] ?? trip.status),
      el("span", {}, trip.driver >= 0 ? `car ${trip.driver}` : "no car yet"), el("span", { class: "price" }, trip.total),
      el("small", {}, `${new Date(trip.requested_at * 1000).toLocaleTimeString()} · ${(trip.metres / 1000).toFixed(1)} km`)));
    show(el("h2", {}, "Rides"), rows.length ? el("p", {}, "Under way first, then ended. Choose one to see it again.") : el("p", {}, "Nobody has asked for a ride yet."),
      el("div", { class: "trips" }, ...rows));
  };
  try {
    await load();
    listTimer = setInterval(() => load().catch(() => {}), 3000);
  } catch (error) {
    if (![401, 403].includes(error.status)) throw error;
    show(el("h2", {}, "The city, live"), el("p", {}, "Cars, supply, demand and surge are for everybody. Single rides and their replay are an operator's: ",
      el("a", { href: "/console/" }, "log in on the console"), " and come back."));
  }
}

async function play(id) {
  clearInterval(listTimer);
  const trip = await call("GET", `/operations/trips/${id}`);
  const track = trip.track.map(([us, lat, lng]) => ({ at: us / 1e6, lat, lng }));
  const first = trip.events[0].at_us / 1e6, last = Math.max(trip.events.at(-1).at_us / 1e6, track.at(-1)?.at ?? 0);
  replay = { trip, track, first, last, at: first, going: true, speed: Math.max(1, (last - first) / 25) };
  const clock = el("output", { class: "big", id: "clock" }, ""), bar = el("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": "Time of the replay",
    oninput: () => { replay.going = false; replay.at = first + ((last - first) * bar.value) / 1000; paint(); } });
  const button = el("button", { class: "main", type: "button", onclick: () => {
    if (replay.at >= last) replay.at = first;
    replay.going = !replay.going;
    paint();
  } }, "Pause");
  const steps = el("ol", { class: "timeline" }, ...trip.events.map((event) => el("li", { "data-at": event.at_us / 1e6 },
    el("small", {}, `+${(event.at_us / 1e6 - first).toFixed(1)} s`), ` ${tell(event)}`)));
  const story = trip.decisions.at(-1);
  show(el("button", { class: "quiet back", type: "button", onclick: list }, "← All rides"), clock, bar, button, steps,
    story && el("details", {}, el("summary", {}, "Why this car?"), el("p", {}, `${story.text}.`)),
    !track.length && el("p", {}, "No track was kept: the ride ended between two looks at the car."));
  Object.assign(replay, { clock, bar, button, steps });
  view.fit([[trip.pickup.lat, trip.pickup.lng], [trip.dropoff.lat, trip.dropoff.lng], ...track.map(({ lat, lng }) => [lat, lng])]);
  let was = performance.now();
  const go = (now) => {
    if (!replay || replay.trip !== trip) return;
    if (replay.going) replay.at = Math.min(last, replay.at + ((now - was) / 1000) * replay.speed);
    if (replay.at >= last) replay.going = false;
    was = now;
    paint();
    requestAnimationFrame(go);
  };
  requestAnimationFrame(go);
}

function paint() {
  const { trip, track, first, last, at, clock, bar, button, steps } = replay;
  const next = track.findIndex((point) => point.at > at), passed = next < 0 ? track : track.slice(0, next);
  const a = passed.at(-1), b = next < 0 ? null : track[next], ghosts = [];
  if (a) {
    const share = b ? (at - a.at) / (b.at - a.at) : 0, to = b ?? a, from = b ? a : track.at(-2) ?? a;
    const place = { lat: a.lat + (to.lat - a.lat) * share, lng: a.lng + (to.lng - a.lng) * share };
    ghosts.push({ ...place, angle: Math.atan2(-(to.lat - from.lat), (to.lng - from.lng) * view.squeeze) });
    passed.push(place);
  }
  const started = trip.events.find((event) => event.type === "started")?.at_us / 1e6;
  const line = (points, colour) => points.length > 1 && { line: points.map(({ lat, lng }) => [lat, lng]), colour };
  Object.assign(view.overlays, { ghosts,
    routes: [line(passed.filter((point) => !(point.at > started)), "--approach"), line(passed.filter((point) => point.at === undefined || point.at > started), "--route")]
      .filter(Boolean).slice(0, started && at > started ? 2 : 1),
    pins: [{ ...trip.pickup, kind: "from", label: "Pick-up" }, { ...trip.dropoff, kind: "to", label: "Destination" }] });
  clock.textContent = new Date(at * 1000).toLocaleTimeString();
  bar.value = last > first ? ((at - first) / (last - first)) * 1000 : 1000;
  button.textContent = replay.going ? "Pause" : at >= last ? "Once more" : "Go on";
  for (const item of steps.children) item.classList.toggle("past", Number(item.dataset.at) <= at);
}

function tell(event) {
  const texts = { requested: "asked for a ride", offered: `offered to car ${event.driver}, ${event.eta_s < 45 ? "close by" : `${minutes(event.eta_s)} away`}`, accepted: `car ${event.driver} accepted`,
    offer_closed: `car ${event.driver}: ${event.reason}`, arrived: "the car is there", started: "rider aboard", completed: "arrived",
    released: event.reason, ended: event.reason, settled: `payment ${event.payment}`, rated: `${event.by} gave ${event.stars} ★` };
  return texts[event.type] ?? event.type;
}
