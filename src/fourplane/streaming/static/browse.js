// Browse and watch: a hero, rows of what was begun, of genres and series, search; a title's own page; the player.
import { Player, clock } from "/streaming/static/player.js";

const get = (id) => document.getElementById(id), options = new URLSearchParams(location.search);
let titles = [], begun = [], player = null;
const region = () => options.get("region") || sessionStorage.getItem("region") || "us";
const poster = (t) => `/streaming/api/titles/${t.id}/poster.jpg?${t.version}`;
const length = (s) => (s >= 3600 ? `${Math.floor(s / 3600)} h ${Math.round(s / 60) % 60} min` : s >= 90 ? `${Math.round(s / 60)} min` : `${Math.round(s)} s`);
const place = (t) => (t.about.series ? `S${t.about.season || 1} E${t.about.episode || 1}` : "");
const facts = (t) => [place(t), t.about.year || "", t.about.rating && `${t.about.rating}+`.replace(/\D\+$/, (m) => m[0]), length(t.duration_s), t.height ? (t.height >= 2160 ? "4K" : `${t.height}p`) : "", t.plays === 1 ? "1 play" : `${t.plays} plays`].filter(Boolean).join(" · ");

const brief = (t) => [place(t), t.about.year || "", length(t.duration_s)].filter(Boolean).join(" · ");

function element(name, properties, ...children) { const made = Object.assign(document.createElement(name), properties); made.append(...children.filter(Boolean)); return made; }
const json = (path) => fetch(path).then((a) => (a.ok ? a.json() : null)).catch(() => null);

function tile(title, at) {
  const frame = element("div", { className: "frame" });
  if (title.version) frame.append(element("img", { src: poster(title), alt: "", loading: "lazy", onerror() { this.remove(); } }), element("span", { className: "length", textContent: clock(title.duration_s) }));
  else frame.append(element("span", { className: "waiting", textContent: "Being encoded" }));
  if (at) { const bar = element("i", { className: "seen" }); bar.style.width = `${Math.min(100, 100 * at / title.duration_s)}%`; frame.append(bar); }
  const href = !title.version ? "/streaming/studio" : at ? `/streaming/watch/${title.id}` : `/streaming/title/${title.id}`;
  return element("a", { className: "tile", href }, frame, element("b", { textContent: title.name }), element("span", { className: "facts", textContent: title.version ? brief(title) : "not ready yet" }));
}

function row(name, tiles) {
  const id = `row-${name.replace(/\W+/g, "-")}`;
  return element("section", { className: "row" }, element("h2", { id, textContent: name }), element("div", { className: tiles.length > 5 ? "strip" : "shelf", role: "list" }, ...tiles));
}

function rows() {
  const here = location.pathname.match(/\/title\/([\w-]+)/)?.[1];
  if (here) {  // below one title: what shares a genre with it, else the rest
    const known = titles.find((t) => t.id === here), others = titles.filter((t) => t.id !== here && t.version && (!known?.about.series || t.about.series !== known.about.series));
    const like = known ? others.filter((t) => t.about.genres.some((g) => known.about.genres.includes(g))) : [];
    return others.length ? [row(like.length ? "More like this" : "More to watch", (like.length ? like : others).slice(0, 12).map((t) => tile(t)))] : [];
  }
  const ready = titles.filter((t) => t.version), genres = new Map(), series = new Map(), made = [];
  for (const t of ready) { for (const g of t.about.genres) genres.set(g, [...(genres.get(g) || []), t]); if (t.about.series) series.set(t.about.series, [...(series.get(t.about.series) || []), t]); }
  if (begun.length) made.push(row("Continue watching", begun.map((b) => tile(b.title, b.at_s))));
  const loved = [...ready].sort((a, b) => b.plays - a.plays).filter((t) => t.plays).slice(0, 12);
  if (loved.length > 2) made.push(row("Watched most", loved.map((t) => tile(t))));
  for (const [name, some] of series) if (some.length > 1 && some.length < ready.length) made.push(row(name, some.sort((a, b) => a.about.season - b.about.season || a.about.episode - b.about.episode).map((t) => tile(t))));
  for (const [name, some] of [...genres].sort((a, b) => b[1].length - a[1].length).slice(0, 8)) if (some.length > 2 && some.length < ready.length) made.push(row(name, some.map((t) => tile(t))));
  made.push(row("All titles", titles.map((t) => tile(t))));
  return made;
}

async function list(words = "") {
  const [answer, mine] = await Promise.all([json(`/streaming/api/titles?region=${region()}&q=${encodeURIComponent(words)}`), words ? null : json("/streaming/api/continue")]);
  if (!answer) return;
  titles = answer.titles; if (mine) begun = mine.begun;
  get("empty").hidden = titles.length > 0 || words !== "";
  const watching = /\/(watch|title)\//.test(location.pathname), first = titles.find((t) => t.version);
  if (words) get("rows").replaceChildren(titles.length ? row(`Found for “${words}”`, titles.map((t) => tile(t))) : element("p", { className: "muted", textContent: `Nothing matches “${words}”.` }));
  else get("rows").replaceChildren(...(titles.length ? rows() : []));
  get("hero").hidden = watching || !first || words !== "";
  if (!get("hero").hidden) {
    const text = element("div", { className: "text" }, element("h1", { textContent: first.name }), element("p", { textContent: first.description || facts(first) }), element("div", { className: "acts" }, element("a", { className: "play", href: `/streaming/watch/${first.id}`, textContent: "▶ Play" }), element("a", { className: "more", href: `/streaming/title/${first.id}`, textContent: "About it" })));
    get("hero").replaceChildren(element("img", { src: poster(first), alt: "" }), text);
  }
}

function chips(words, link) { return element("span", { className: "chips" }, ...words.map((word) => element("a", { className: "chip", href: link(word), textContent: word }))); }
const search = (word) => `/streaming/?q=${encodeURIComponent(word)}`;

async function about(id) {
  const seen = await json(`/streaming/api/titles/${id}`), stage = get("stage");
  if (!seen) { stage.replaceChildren(element("p", { className: "empty", textContent: "There is no such title." })); return; }
  const t = seen.title, a = t.about, many = new Intl.DisplayNames([navigator.language || "en"], { type: "language" });
  const named = (tag) => { try { return many.of(tag); } catch { return tag; } };
  const sounds = [...new Set(seen.tracks.filter((x) => x.kind === "audio").map((x) => (x.language ? named(x.language) : "")))].filter(Boolean), rungs = seen.tracks.filter((x) => x.kind === "video");
  document.title = `${t.name} · Fourplane`;
  const rowsOf = [["With", a.cast.length && chips(a.cast, search)], ["Genres", a.genres.length && chips(a.genres, search)], ["Series", a.series && element("span", { textContent: `${a.series}, ${place(t)}` })],
    ["Sound", sounds.length && element("span", { textContent: sounds.join(", ") })], ["Captions", seen.captions.length && element("span", { textContent: seen.captions.map(named).join(", ") })],
    ["Picture", rungs.length && element("span", { textContent: rungs.map((r) => r.name.split("-")[0]).filter((n, i, all) => all.indexOf(n) === i).reverse().join(", ") })]].filter(([, value]) => value);
  const resume = seen.at_s > 5 && seen.at_s < 0.95 * t.duration_s;
  stage.replaceChildren(element("article", { className: "about" }, element("div", { className: "still" }, element("img", { src: poster(t), alt: "", onerror() { this.remove(); } })),
    element("div", {}, element("h1", { textContent: t.name }), element("p", { className: "muted", textContent: facts(t) }),
      element("div", { className: "acts" }, t.version ? element("a", { className: "play", href: `/streaming/watch/${t.id}`, textContent: resume ? `▶ Go on at ${clock(seen.at_s)}` : "▶ Play" }) : element("span", { className: "pill running", textContent: "being encoded" })),
      t.description && element("p", { className: "long", textContent: t.description }),
      element("dl", {}, ...rowsOf.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", {}, value)])))));
  if (seen.episodes.length > 1) {
    const seasons = [...new Set(seen.episodes.map((e) => e.about.season))];
    for (const season of seasons) stage.append(row(seasons.length > 1 || season ? `Season ${season || 1}` : "Episodes", seen.episodes.filter((e) => e.about.season === season).map((e) => tile(e))));
  }
}

async function watch(id) {
  const stage = get("stage"), title = titles.find((t) => t.id === id) || { id, name: "" };
  const box = element("div", {}); stage.replaceChildren(box);
  player = new Player(box, { title, region: region(), engine: options.get("engine"), autoplay: true });
  window.player = player; player.node.focus({ preventScroll: true }); scrollTo(0, 0);
  if (!titles.length) await list();
  const known = titles.find((t) => t.id === id), where = element("select", { ariaLabel: "Region you watch from" });
  for (const [value, name] of [["us", "Watching from the US"], ["eu", "Watching from Europe"], ["asia", "Watching from Asia"]]) where.add(new Option(name, value, false, value === region()));
  where.onchange = () => { sessionStorage.setItem("region", where.value); options.delete("region"); route(); };
  stage.append(element("div", { className: "under" }, element("h1", {}, element("a", { href: `/streaming/title/${id}`, textContent: known ? known.name : "" })), element("span", { className: "muted", textContent: known ? facts(known) : "" }), where));
  if (!known) return;
  document.title = `${known.name} · Fourplane`;
  const later = titles.filter((t) => known.about.series && t.about.series === known.about.series && (t.about.season > known.about.season || (t.about.season === known.about.season && t.about.episode > known.about.episode)));
  const next = later.sort((a, b) => a.about.season - b.about.season || a.about.episode - b.about.episode)[0];
  if (next) player.video.addEventListener("ended", () => { history.pushState(null, "", `/streaming/watch/${next.id}`); route(); });
}

async function route() {
  if (player) { player.close(); player = null; }
  const [, kind, id] = location.pathname.match(/\/(watch|title)\/([\w-]+)/) || [], stage = get("stage");
  stage.hidden = !kind; document.title = "Streaming · Fourplane"; document.body.classList.toggle("watching", kind === "watch");
  if (kind) get("hero").hidden = true;
  if (kind === "watch") return watch(id);
  if (kind === "title") { scrollTo(0, 0); await about(id); if (!titles.length) await list(); return; }
  const words = new URLSearchParams(location.search).get("q") || "";
  get("words").value = words;
  return list(words);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/streaming/watch/'], a[href^='/streaming/title/'], a[href^='/streaming/?q='], a.brand[href='/streaming/']");
  if (link && !event.metaKey && !event.ctrlKey && event.button === 0) { event.preventDefault(); history.pushState(null, "", link.getAttribute("href")); route(); }
});
addEventListener("popstate", route);
let typing; get("words").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => list(get("words").value.trim()), 150); });
get("search").addEventListener("submit", (event) => event.preventDefault());
route();
