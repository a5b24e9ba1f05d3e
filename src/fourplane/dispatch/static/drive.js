// The driver's page: go online, get offers over the location feed, drive by tapping the map or letting the car go its way.

import { binary, call, el, keep, kept, Line, minutes } from "./api.js";
import { CityView } from "./cityview.js";

const panel = document.getElementById("panel");
const $ = (id) => document.getElementById(id);
const KINDS = ["Go", "Comfort", "Van"];
let view, info, me, state = null, feed = null, live = null, at = null, way = [], sequence = Math.floor(Date.now() / 62.5) >>> 0, timer = 0, problem = "";

start().catch((error) => show(el("h2", {}, "The city is not here"), el("p", { class: "error" }, error.message)));

async function start() {
  info = await call("GET", "/map");
  $("attribution").textContent = info.attribution || "A generated city";
  view = new CityView($("map"), info);
  window.cityView = view;
  view.ontap = (place) => { if (state?.online && !state.trip) { at = place; report(); } };
  binary("/map/lines").then((buffer) => view.setLines(buffer));
  live = new Line("/live", { open: () => live.send(view.window()), bytes: (buffer) => view.setCars(buffer) });
  view.onview = () => live.send(view.window());
  $("zoom-in").onclick = () => view.zoom(1.6);
  $("zoom-out").onclick = () => view.zoom(1 / 1.6);
  me = kept("dispatch-driver");
  if (me) { try { await refresh(); connect(); } catch { me = null; } }
  render();
}

const mine = (method, path, body) => call(method, `/drivers/me${path}`, body, { "x-driver-token": me.token });
function show(...children) { panel.replaceChildren(...children.filter(Boolean)); }

async function act(verb, more = {}) {
  problem = "";
  try {
    const trip = state?.trip?.trip ?? state?.offer?.trip ?? "";
    state = await mine("POST", `/${verb}`, { trip, ...more });
    if (verb === "online") { at ??= { lat: info.center[0] + (Math.random() - 0.5) * 0.01, lng: info.center[1] + (Math.random() - 0.5) * 0.01 }; report(); }
  } catch (error) { problem = error.message; await refresh().catch(() => {}); }
  await plan();
  render();
}

async function refresh() {
  state = await mine("GET", "");
  if (state.lat != null) at = { lat: state.lat, lng: state.lng };
  const earnings = await mine("GET", "/earnings");
  $("earned").textContent = earnings.total;
}

function connect() {
  feed?.close();
  feed = new Line(`/feed?token=${encodeURIComponent(me.feed_token)}`, {
    open: () => report(),
    text: async (news) => { if (news.kind === "offer" || news.kind === "driver_trip") { await refresh().catch(() => {}); await plan(); render(); } },
    state: (on) => { $("connection").textContent = on ? "" : "reconnecting…"; },
  });
  clearInterval(timer);
  timer = setInterval(() => { step(); report(); }, 1000);
}

function report() {
  if (!at || !state?.online) return;
  sequence = (sequence + 1) >>> 0;
  feed?.send({ positions: [{ driver: me.driver, lat: at.lat, lng: at.lng, sequence }] });
}

// The way to the next stop, asked of the city like any rider's estimate would be.
async function plan() {
  const trip = state?.trip, goal = trip?.status === "accepted" ? trip.pickup : trip?.status === "in_progress" ? trip.dropoff : null;
  way = [];
  if (goal && at) {
    try { way = (await call("GET", `/map/route?start_latitude=${at.lat}&start_longitude=${at.lng}&end_latitude=${goal.lat}&end_longitude=${goal.lng}`)).line; } catch { way = [[goal.lat, goal.lng]]; }
    view.fit([[at.lat, at.lng], ...way]);
  }
  draw();
}

function step() {
  let left = 28; // metres a second: brisk, so that a ride fits a coffee
  while (left > 0 && way.length && at) {
    const [lat, lng] = way[0];
    const dy = (lat - at.lat) * 111195, dx = (lng - at.lng) * 111195 * view.squeeze, away = Math.hypot(dx, dy);
    if (away <= left) { at = { lat, lng }; way.shift(); left -= away; } else {
      at = { lat: at.lat + ((lat - at.lat) * left) / away, lng: at.lng + ((lng - at.lng) * left) / away };
      left = 0;
    }
  }
  draw();
  const togo = $("togo");
  if (togo) togo.textContent = way.length ? minutes(way.length * 2) : "there";
}

function draw() {
  const routes = way.length && at ? [{ line: [[at.lat, at.lng], ...way], colour: "--route" }] : [];
  const pins = at ? [{ ...at, kind: "from", label: "You" }] : [];
  const goal = state?.offer ?? state?.trip;
  if (goal) pins.push({ ...goal.pickup, kind: "from", label: "Pick-up", pulse: true }, { ...goal.dropoff, kind: "to", label: "Destination" });
  Object.assign(view.overlays, { routes, pins });
}

async function register(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  try {
    me = await call("POST", "/drivers", { name: form.get("name"), vehicle: Number(form.get("vehicle")) });
    keep("dispatch-driver", me);
    await refresh();
    connect();
  } catch (error) { problem = error.message; }
  render();
}

function render() {
  draw();
  const trouble = problem && el("p", { class: "error", role: "alert" }, problem);
  const button = (text, verb, more) => el("button", { class: "main", onclick: () => act(verb, more) }, text);
  const quiet = (text, verb) => el("button", { class: "quiet", onclick: () => act(verb) }, text);
  if (!me) {
    const kind = el("fieldset", { class: "kinds" }, el("legend", {}, "Your car"), ...KINDS.map((name, n) => el("label", {},
      el("input", { type: "radio", name: "vehicle", value: n, checked: n === 0 }), name)));
    show(el("h2", {}, "Drive in ", info.name), el("form", { onsubmit: register },
      el("label", { class: "field" }, "Your name", el("input", { name: "name", required: true, maxlength: 40, autocomplete: "given-name" })), kind, trouble,
      el("button", { class: "main", type: "submit" }, "Start driving")));
  } else if (state?.offer) {
    const offer = state.offer;
    show(el("h2", {}, "A ride for you"), el("div", { class: "big" }, offer.earnings), el("p", {}, `${offer.product}, pick-up in ${minutes(offer.eta_s)}`), trouble,
      button("Accept", "accept"), quiet("Decline", "decline"));
  } else if (state?.trip) {
    const trip = state.trip, pin = el("input", { id: "pin", inputmode: "numeric", maxlength: 4, "aria-label": "The rider's PIN" });
    if (trip.status === "accepted") show(el("h2", {}, "To the pick-up"), el("div", { class: "big", id: "togo" }, "…"), trouble, button("I am here", "arrive"), quiet("Cancel", "cancel"));
    else if (trip.status === "arriving") show(el("h2", {}, "Waiting for the rider"), trip.pin && el("label", { class: "field" }, "The rider's PIN", pin), trouble,
      el("button", { class: "main", onclick: () => act("start", { pin: pin.value }) }, "Start the ride"), quiet("The rider did not come", "cancel"));
    else show(el("h2", {}, "Riding"), el("div", { class: "big", id: "togo" }, "…"), trouble, button("Finish the ride", "finish"));
  } else if (state?.online) {
    show(el("h2", {}, `Online, ${state.profile.name}`), el("p", {}, "Offers come here by themselves. Tap the map to be somewhere else."), trouble,
      el("div", { class: "bar" }, el("i")), quiet("Go offline", "offline"));
  } else {
    show(el("h2", {}, `Hello ${state?.profile.name ?? ""}`), el("p", {}, state ? `${state.profile.color} ${state.profile.vehicle}, ${state.profile.plate}, ★ ${state.profile.rating.toFixed(2)}` : ""),
      trouble, button("Go online", "online"));
  }
}
