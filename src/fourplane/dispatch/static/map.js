// The live city and the rider's panel: choose a way, see the price, ask, watch the match, ride, pay, rate.

import { binary, call, el, keep, kept, Line, minutes, Refused } from "./api.js";
import { CityView } from "./cityview.js";

const panel = document.getElementById("panel");
const $ = (id) => document.getElementById(id);
const CAR = '<svg viewBox="0 0 64 30" aria-hidden="true"><path fill="currentColor" d="M6 20c0-5 3-6 8-7l7-6c2-2 4-2.500 7-2.500h12c3 0 5 1 7 3l5 5c5 .6 8 2 8 6v3c0 1-1 2-2 2h-4a5.500 5.500 0 0 0-11 0H23a5.500 5.500 0 0 0-11 0H8c-1 0-2-1-2-2z"/></svg>';
const ride = { from: null, to: null, product: "go", request: null, line: [], approach: [] };
let view, live, info, token, mode = "from", busy = false;

start().catch((error) => show(el("h2", {}, "The map is not here"), el("p", { class: "error" }, error.message),
  el("button", { class: "main", onclick: () => location.reload() }, "Try again")));

async function start() {
  info = await call("GET", "/map");
  $("cityname").textContent = info.name;
  document.title = `${info.name}: the live city`;
  $("attribution").textContent = info.attribution || "A generated city";
  view = new CityView($("map"), info);
  view.onview = look;
  view.ontap = tapped;
  binary("/map/lines").then((buffer) => view.setLines(buffer));
  live = new Line("/live", {
    open: () => look(), bytes: (buffer) => view.setCars(buffer), text: heard,
    state: (on) => { const box = $("connection"); box.textContent = on ? "" : "reconnecting…"; box.className = on ? "" : "lost"; },
  });
  $("zoom-in").onclick = () => view.zoom(1.6);
  $("zoom-out").onclick = () => view.zoom(1 / 1.6);
  $("zoom-all").onclick = () => { view.scale = 9000; [view.cx, view.cy] = view.project(...info.center); view.moved(); };
  $("heat").onclick = toggleHeat;
  figures();
  setInterval(figures, 2000);
  token = kept("dispatch-rider");
  if (token) await resume(); else choose();
  window.cityView = view;
}

function look() {
  live.send({ ...view.window(), ...(ride.request ? { request_id: ride.request.request_id, rider_token: token } : {}) });
}

async function mine(method, path, body, headers = {}) {
  if (!token) { token = (await call("POST", "/guests", {})).token; keep("dispatch-rider", token); }
  try { return await call(method, path, body, { "x-rider-token": token, ...headers }); } catch (error) {
    if (error.status === 401) { token = null; keep("dispatch-rider", null); }
    throw error;
  }
}

async function resume() {
  try { await follow(await mine("GET", "/requests/current")); } catch { choose(); }
}

// -- choosing a way

function show(...children) { panel.replaceChildren(...children.filter(Boolean)); }

function name(place) { return place ? place.name || `${place.lat.toFixed(4)}, ${place.lng.toFixed(4)}` : ""; }

function stops() {
  return el("ol", { class: "stops" },
    el("li", { class: "from" }, ride.from ? "Pick-up" : "Tap the map: where are you?", ride.from && el("small", {}, name(ride.from))),
    el("li", { class: "to" }, ride.to ? "Destination" : ride.from ? "Now tap where you want to go" : "and where to?", ride.to && el("small", {}, name(ride.to))));
}

function choose(problem) {
  Object.assign(ride, { request: null, line: [], approach: [] });
  view.followed = -1;
  mode = ride.from ? "to" : "from";
  if (ride.from && ride.to) ride.to = null;
  $("map").classList.add("picking");
  draw();
  show(el("h2", {}, "Where to?"),
    el("p", {}, "Every dot is a car reporting its place four times a second. Ask for one."),
    stops(), problem && el("p", { class: "error", role: "alert" }, problem),
    ride.from && el("button", { class: "quiet", onclick: () => { ride.from = null; choose(); } }, "Choose another pick-up"),
    el("button", { class: "quiet", onclick: surprise }, "Surprise me"));
}

function surprise() {
  const near = (spread) => ({ lat: info.center[0] + (Math.random() - 0.5) * spread, lng: info.center[1] + (Math.random() - 0.5) * spread * 1.3 });
  ride.from = near(0.02);
  const angle = Math.random() * 6.28, away = 0.012 + Math.random() * 0.01;
  ride.to = { lat: ride.from.lat + Math.sin(angle) * away, lng: ride.from.lng + Math.cos(angle) * away * 1.3 };
  prices();
}

function tapped(place) {
  if (busy || (ride.request && !ended(ride.request))) return;
  if (ride.request) { ride.from = ride.to = null; mode = "from"; }
  ride[mode] = place;
  if (mode === "from") choose(); else prices();
}

async function prices() {
  busy = true;
  $("map").classList.remove("picking");
  draw();
  show(el("h2", {}, "Looking at the roads…"), stops(), el("div", { class: "bar" }, el("i")));
  try {
    const query = `start_latitude=${ride.from.lat}&start_longitude=${ride.from.lng}&end_latitude=${ride.to.lat}&end_longitude=${ride.to.lng}`;
    const [products, costs, times] = await Promise.all(
      [call("GET", "/products"), call("GET", `/estimates/price?${query}`), call("GET", `/estimates/time?${query}`)]);
    ride.offers = products.products.map((product, n) => ({ ...product, ...costs.prices[n], soon: times.times[n].estimate }));
    await quote(ride.offers.some((offer) => offer.product_id === ride.product) ? ride.product : "go");
    view.fit([...ride.line, [ride.from.lat, ride.from.lng], [ride.to.lat, ride.to.lng]]);
  } catch (error) {
    if (error.code === "no_road") (/destination/.test(error.message) ? (ride.to = null) : (ride.from = ride.to = null));
    else ride.to = null;
    choose(error.message);
  } finally { busy = false; }
}

async function quote(product) {
  ride.product = product;
  ride.estimate = await mine("POST", "/requests/estimate", { product_id: product, start_latitude: ride.from.lat,
    start_longitude: ride.from.lng, end_latitude: ride.to.lat, end_longitude: ride.to.lng });
  ride.line = ride.estimate.trip.line;
  draw();
  offers();
}

function offers(problem) {
  const trip = ride.estimate.trip, fare = ride.estimate.fare;
  show(el("h2", {}, `${trip.distance_estimate.toFixed(1)} km, ${minutes(trip.duration_estimate)}`), stops(),
    fare.surge_multiplier > 1 && el("div", { class: "surge" }, "⚡", el("span", {}, fare.surge_reason)),
    el("div", { class: "products", role: "radiogroup", "aria-label": "Kind of ride" }, ...ride.offers.map((offer) => {
      const button = el("button", { class: "product", role: "radio", type: "button", "aria-checked": String(offer.product_id === ride.product),
        onclick: () => quote(offer.product_id).catch((error) => offers(error.message)) },
      el("b", {}, offer.display_name), el("span", { class: "price" }, offer.estimate),
      el("small", {}, offer.description), el("small", { class: "soon" }, offer.soon == null ? "none near" : minutes(offer.soon)));
      button.insertAdjacentHTML("afterbegin", CAR);
      return button;
    })),
    problem && el("p", { class: "error", role: "alert" }, problem),
    el("label", { class: "check" }, el("input", { type: "checkbox", id: "pin", checked: ride.pin === true, onchange: (event) => { ride.pin = event.target.checked; } }),
      "Start only when I have told the driver my PIN"),
    el("button", { class: "main", id: "ask", onclick: ask }, `Ask for ${ride.offers.find((o) => o.product_id === ride.product).display_name} · ${fare.display}`),
    el("button", { class: "quiet", onclick: () => choose() }, "Back"),
    breakdown(fare));
}

function breakdown(fare) {
  return el("details", {}, el("summary", {}, "How the price comes about"),
    el("table", { class: "receipt" }, ...fare.breakdown.map(({ label, amount }) => row(label, amount)), total(fare.display)));
}

const money = ({ amount, currency }) => new Intl.NumberFormat(undefined, { style: "currency", currency }).format(
  amount / 10 ** new Intl.NumberFormat("en", { style: "currency", currency }).resolvedOptions().maximumFractionDigits);
const row = (label, amount) => el("tr", {}, el("td", {}, label), el("td", {}, money(amount)));
const total = (text) => el("tr", { class: "total" }, el("td", {}, "Total"), el("td", {}, text));

async function ask() {
  $("ask").disabled = true;
  try {
    const key = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
    await follow(await mine("POST", "/requests", { fare_id: ride.estimate.fare.fare_id, pin: ride.pin === true }, { "idempotency-key": key }));
  } catch (error) {
    if (error.code === "token_expired") { await quote(ride.product); offers("The price was too old; this is the new one."); } else offers(error.message);
  }
}

// -- a ride under way

const ended = (request) => ["completed", "rider_canceled", "driver_canceled", "no_drivers_available"].includes(request.status);

async function follow(request) {
  const before = ride.request?.status;
  ride.request = request;
  ride.from = request.pickup;
  ride.to = request.destination;
  $("map").classList.remove("picking");
  view.followed = request.driver && !ended(request) ? request.driver.profile.number : -1;
  if (before !== request.status) {
    look();
    if (!ended(request)) {
      try {
        const lines = await mine("GET", `/requests/${request.request_id}/map`);
        ride.line = lines.ride; ride.approach = lines.approach;
      } catch { /* the lines are only drawing */ }
    } else { ride.approach = []; }
    const driver = request.driver && request.driver.lat != null ? [[request.driver.lat, request.driver.lng]] : [];
    if (request.status === "accepted") view.fit([...driver, [ride.from.lat, ride.from.lng]]);
    if (request.status === "in_progress") view.fit([...ride.line, ...driver]);
    if (request.status === "processing") view.fit([[ride.from.lat - 0.006, ride.from.lng - 0.008], [ride.from.lat + 0.006, ride.from.lng + 0.008]]);
  }
  draw();
  await status();
}

async function heard(news) {
  if (!ride.request || (news.trip ?? news.request_id) !== ride.request.request_id) return;
  if (news.kind === "trip") await follow(await mine("GET", `/requests/${ride.request.request_id}`));
  if (news.kind === "place" && $("togo")) $("togo").textContent = minutes(news.eta_s);
}

function person(driver) {
  if (!driver) return null;
  const { name: who, rating, color, vehicle, plate, number } = driver.profile;
  const face = el("span", { class: "avatar" }, who[0]);
  face.style.background = `hsl(${(number * 67) % 360} 55% 42%)`;
  return el("div", { class: "person" }, face,
    el("div", {}, el("b", {}, `${who} ★ ${rating.toFixed(2)}`), el("small", {}, `${color} ${vehicle}`)), el("span", { class: "plate" }, plate));
}

async function status() {
  const request = ride.request, cancel = el("button", { class: "quiet", onclick: giveUp }, "Cancel the ride");
  switch (request.status) {
    case "processing":
      show(el("h2", {}, "Finding your driver"), el("p", {}, "Requests wait up to two seconds together; then everybody gets the best car for all."),
        el("div", { class: "bar" }, el("i")), stops(), cancel);
      break;
    case "accepted":
      show(el("h2", {}, "Your driver is coming"), el("div", { class: "big", id: "togo" }, minutes(request.eta_s)), person(request.driver),
        request.pin && el("p", {}, "Tell your driver this PIN: ", el("b", {}, request.pin)), stops(), cancel, await why());
      break;
    case "arriving":
      show(el("h2", {}, "Your driver is here"), person(request.driver), request.pin && el("p", {}, "Your PIN: ", el("b", {}, request.pin)), stops(), cancel);
      break;
    case "in_progress":
      show(el("h2", {}, "On your way"), el("div", { class: "big", id: "togo" }, minutes(request.eta_s)), person(request.driver), stops(), await why());
      break;
    default:
      await receipt();
  }
}

async function giveUp() {
  try { await follow(await mine("DELETE", `/requests/${ride.request.request_id}`)); } catch (error) {
    panel.append(el("p", { class: "error", role: "alert" }, error.message));
  }
}

async function receipt() {
  const request = ride.request, done = request.status === "completed";
  view.followed = -1;
  const paper = await mine("GET", `/requests/${request.request_id}/receipt`);
  const again = el("button", { class: "main", onclick: () => { ride.from = ride.to = null; choose(); } }, "Another ride");
  if (!done) {
    const titles = { no_drivers_available: "No driver was free", rider_canceled: "The ride was cancelled", driver_canceled: "The driver cancelled" };
    show(el("h2", {}, titles[request.status]), el("p", {}, `${request.reason}.`),
      Number(paper.total_charged) > 0 && el("table", { class: "receipt" }, ...paper.charges.map(({ label, amount }) => row(label, amount))), again);
    return;
  }
  const stars = el("div", { class: "stars", role: "group", "aria-label": "Rate your driver" }, ...[1, 2, 3, 4, 5].map((count) =>
    el("button", { type: "button", "aria-label": `${count} stars`, class: (request.stars ?? 0) >= count && "on", onclick: async () => {
      ride.request = await mine("POST", `/requests/${request.request_id}/rating`, { stars: count });
      await receipt();
    } }, "★")));
  const charged = request.paid === "captured" ? "Charged to your card" : "The charge is on its way";
  show(el("h2", {}, "You have arrived"), person(request.driver),
    el("table", { class: "receipt" }, ...paper.charges.map(({ label, amount }) => row(label, amount)), total(money(request.fare.total))),
    el("p", {}, `${charged}. ${paper.distance_km.toFixed(1)} km in ${minutes(paper.duration_s)}.`), stars, again, await why(), never(request));
}

// "Not this driver again", behind a fold so that nobody taps it by accident.
function never(request) {
  const told = el("p", {}, "Matching will leave this driver out for you."), button = el("button", { class: "quiet", type: "button", onclick: async () => {
    await mine("POST", `/requests/${request.request_id}/block`, {});
    button.replaceWith(told);
  } }, `Never again with ${request.driver.profile.name}`);
  return el("details", {}, el("summary", {}, "Something was wrong?"), button);
}

async function why() {
  let story;
  try { story = await mine("GET", `/requests/${ride.request.request_id}/story`); } catch { return null; }
  const last = story.decisions.at(-1);
  if (!last) return null;
  const rows = [...last.candidates].sort((a, b) => a.cost - b.cost).slice(0, 6).map((candidate) =>
    el("tr", { class: candidate.driver === last.driver && "won" }, el("td", {}, `#${candidate.driver}`), el("td", {}, `${(candidate.metres / 1000).toFixed(2)} km`),
      el("td", {}, `${(candidate.eta_s / 60).toFixed(1)} min`), el("td", {}, candidate.rating.toFixed(2)), el("td", {}, candidate.cost.toFixed(0))));
  return el("details", {}, el("summary", {}, "Why this driver?"), el("p", {}, `${last.text}.`),
    el("table", { class: "why" }, el("tr", {}, ...["driver", "line", "by road", "★", "cost"].map((title) => el("th", {}, title))), ...rows));
}

// -- drawing

function draw() {
  const routes = [], pins = [];
  const active = !ride.request || !ended(ride.request);
  if (ride.line.length) routes.push({ line: ride.line, colour: "--route", dashed: ride.request?.status === "accepted" });
  if (ride.approach.length && ride.request?.status === "accepted") routes.push({ line: ride.approach, colour: "--approach" });
  if (ride.from && ride.request?.status !== "in_progress") pins.push({ ...ride.from, kind: "from", label: active && !ride.to ? "Pick-up" : "", pulse: ride.request?.status === "processing" });
  if (ride.to) pins.push({ ...ride.to, kind: "to", label: ride.request ? "" : ride.estimate?.trip ? minutes(ride.estimate.trip.duration_estimate) : "" });
  Object.assign(view.overlays, { routes, pins });
}

let heatTimer = 0;
async function toggleHeat() {
  const on = $("heat").getAttribute("aria-pressed") !== "true";
  $("heat").setAttribute("aria-pressed", String(on));
  clearInterval(heatTimer);
  if (!on) { view.overlays.heat = []; return; }
  const load = async () => { view.overlays.heat = (await call("GET", "/heat")).cells; };
  heatTimer = setInterval(() => load().catch(() => {}), 5000);
  await load();
}

let before = null;
async function figures() {
  try {
    const now = await call("GET", "/statistics"), at = performance.now();
    $("f-free").textContent = (now.available ?? 0).toLocaleString();
    $("f-reserved").textContent = (now.reserved ?? 0).toLocaleString();
    $("f-riding").textContent = (now.riding ?? 0).toLocaleString();
    $("f-match").textContent = now.match_p50_s ? `${now.match_p50_s.toFixed(1)} s` : "–";
    if (before) $("f-rate").textContent = Math.round(((now.feed.positions - before.positions) * 1000) / (at - before.at)).toLocaleString();
    before = { positions: now.feed.positions, at };
  } catch (error) { if (!(error instanceof Refused)) throw error; }
}
