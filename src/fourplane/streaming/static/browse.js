// Browse and watch: a hero, a shelf of titles, and the player on /streaming/watch/<title>.
import { Player, clock } from "/streaming/static/player.js";

const get = (id) => document.getElementById(id), options = new URLSearchParams(location.search);
let titles = [], player = null;
const region = () => options.get("region") || sessionStorage.getItem("region") || "us";
const poster = (t) => `/streaming/api/titles/${t.id}/poster.jpg?${t.version}`;
const facts = (t) => [t.height ? `${t.height}p` : "", `${t.rungs} rungs`, t.plays === 1 ? "1 play" : `${t.plays} plays`].filter(Boolean).join(" · ");

function element(name, properties, ...children) { const made = Object.assign(document.createElement(name), properties); made.append(...children); return made; }

function tile(title) {
  const frame = element("div", { className: "frame" });
  if (title.version) frame.append(element("img", { src: poster(title), alt: "", loading: "lazy", onerror() { this.remove(); } }), element("span", { className: "length", textContent: clock(title.duration_s) }));
  else frame.append(element("span", { className: "waiting", textContent: "Being encoded" }));
  return element("a", { className: "tile", href: title.version ? `/streaming/watch/${title.id}` : "/streaming/studio" }, frame, element("b", { textContent: title.name }), element("span", { className: "facts", textContent: title.version ? facts(title) : "not ready yet" }));
}

async function list(words = "") {
  const answer = await fetch(`/streaming/api/titles?q=${encodeURIComponent(words)}`); if (!answer.ok) return;
  titles = (await answer.json()).titles;
  get("shelf").replaceChildren(...titles.map(tile)); get("empty").hidden = titles.length > 0 || words !== "";
  if (words && !titles.length) get("shelf").replaceChildren(element("p", { className: "muted", textContent: `Nothing matches “${words}”.` }));
  const first = titles.find((t) => t.version), watching = location.pathname.includes("/watch/");
  get("hero").hidden = watching || !first || words !== "";
  if (!get("hero").hidden) {
    const text = element("div", { className: "text" }, element("h1", { textContent: first.name }), element("p", { textContent: first.description || `${clock(first.duration_s)} · ${facts(first)}` }), element("a", { className: "play", href: `/streaming/watch/${first.id}`, textContent: "▶ Play" }));
    get("hero").replaceChildren(element("img", { src: poster(first), alt: "" }), text);
  }
}

async function route() {
  if (player) { player.close(); player = null; }
  const id = location.pathname.match(/\/watch\/([\w-]+)/)?.[1], stage = get("stage");
  stage.hidden = !id; document.title = "Streaming · Fourplane";
  if (!id) return list();
  get("hero").hidden = true;
  const title = titles.find((t) => t.id === id) || { id, name: "" };
  const box = element("div", {}); stage.replaceChildren(box);
  player = new Player(box, { title, region: region(), engine: options.get("engine"), autoplay: true });
  window.player = player; player.node.focus({ preventScroll: true }); scrollTo(0, 0);
  if (!titles.length) await list();
  const known = titles.find((t) => t.id === id), where = element("select", { ariaLabel: "Region you watch from" });
  for (const [value, name] of [["us", "Watching from the US"], ["eu", "Watching from Europe"], ["asia", "Watching from Asia"]]) where.add(new Option(name, value, false, value === region()));
  where.onchange = () => { sessionStorage.setItem("region", where.value); options.delete("region"); route(); };
  stage.append(element("div", { className: "under" }, element("h1", { textContent: known ? known.name : "" }), element("span", { className: "muted", textContent: known ? facts(known) : "" }), where));
  if (known) document.title = `${known.name} · Fourplane`;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/streaming/watch/'], a.brand[href='/streaming/']");
  if (link && !event.metaKey && !event.ctrlKey && event.button === 0) { event.preventDefault(); history.pushState(null, "", link.getAttribute("href")); route(); }
});
addEventListener("popstate", route);
let typing; get("words").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => list(get("words").value.trim()), 150); });
get("search").addEventListener("submit", (event) => event.preventDefault());
route();
