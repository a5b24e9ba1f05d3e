// What the storefront gains with JavaScript: search as you type, a cart drawer, forms without a page load.
// Every form works without it; what fails here falls back to the plain form.

const body = document.body;
let cart = body.dataset.cart;
const country = body.dataset.country || "US";
const symbols = { USD: "$", EUR: "€", GBP: "£" };
const money = (amount, currency) =>
  (symbols[currency] || currency + " ") + (amount / 100).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function toast(text) {
  document.querySelector(".toast")?.remove();
  const box = make("div", { class: "toast", role: "status" }, text);
  body.append(box);
  setTimeout(() => box.remove(), 4000);
}

// -- asking again
//
// A request that may be sent twice (it only reads, or carries a key by which the shop knows it again) is sent again, the same to
// the letter, when no answer came, or when 502 or 503 say when to come back. The tries begin within 5 s of the first failure,
// after 0.2, 0.4, 0.8, 1.6, 1.6 s, each drawn from its upper half, so that those who failed together do not return together.

const patience = 5000;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function ask(path, options, told = () => {}) {
  let began = 0;
  for (let tries = 0; ; tries++) {
    let answer = null;
    let failure = null;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      failure = error;
    }
    const least = answer ? answer.headers.get("retry-after") : "0";
    if (answer && !((answer.status === 502 || answer.status === 503) && /^[0-9]+$/.test(least || ""))) return answer;
    const now = performance.now();
    began ||= now;
    const wait = Math.max(1000 * Number(least), Math.min(1600, 200 * 2 ** tries) * (0.5 + Math.random() / 2));
    if (now + wait - began > patience) {
      if (answer) return answer;
      throw new Error("the shop did not answer; nothing is lost, please try again", { cause: failure });
    }
    told();
    await pause(wait);
  }
}

const stillTrying = () => toast("The shop is slow to answer. Still trying…");

async function call(method, path, data) {
  const options = {
    method,
    headers: data ? { "content-type": "application/json" } : {},
    body: data ? JSON.stringify(data) : undefined,
  };
  const answer = await ask(`/commerce/api${path}`, options, method === "GET" ? undefined : stillTrying);
  const found = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(found?.error?.message || "that did not work");
  return found;
}

// -- search as you type

const field = document.getElementById("q");
const list = document.getElementById("suggestions");
let waiting = 0;
let asked = 0;

function hideSuggestions() {
  list.hidden = true;
  field.setAttribute("aria-expanded", "false");
}

async function suggest() {
  const words = field.value.trim();
  if (words.length < 2) return hideSuggestions();
  const number = ++asked;
  try {
    const [found, meant] = await Promise.all([
      call("GET", `/products?limit=5&facets=none&country=${country}&q=${encodeURIComponent(words)}`),
      call("GET", `/suggestions?limit=4&q=${encodeURIComponent(words)}`).catch(() => ({ suggestions: [] })),
    ]);
    if (number !== asked) return;
    const shown = new Set(found.products.map((product) => product.name));
    list.replaceChildren(
      ...meant.suggestions.filter((phrase) => !shown.has(phrase)).map((phrase) =>
        make("a", { href: `/commerce/search?q=${encodeURIComponent(phrase)}`, class: "phrase", role: "option" }, phrase)),
      ...found.products.map((product) =>
        make("a", { href: `/commerce/p/${encodeURIComponent(product.id)}`, role: "option" },
          make("img", { src: product.image, alt: "", width: 40, height: 40 }),
          make("span", {}, product.name),
          make("span", { class: "price" }, money(product.price, product.currency)))),
      make("a", { href: `/commerce/search?q=${encodeURIComponent(words)}`, class: "all", role: "option" },
        found.total ? `All ${found.total.toLocaleString("en")} results` : "Nothing found yet"),
    );
    list.hidden = false;
    field.setAttribute("aria-expanded", "true");
  } catch {
    hideSuggestions();
  }
}

if (field && list) {
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(suggest, 120);
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".search")) hideSuggestions();
  });
  document.querySelector(".search").addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hideSuggestions();
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const links = [...list.querySelectorAll("a")];
    if (list.hidden || !links.length) return;
    event.preventDefault();
    const next = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    (links[next] || field).focus();
  });
}

// -- cart drawer

const drawer = document.getElementById("drawer");
let before = null;

function closeDrawer() {
  drawer.hidden = true;
  before?.focus();
}

function showDrawer(view) {
  const quote = view.quote;
  before = document.activeElement;
  const close = make("button", { class: "link", onclick: closeDrawer, "aria-label": "Close the cart" }, "Close");
  drawer.replaceChildren(
    make("div", { class: "shade", onclick: closeDrawer }),
    make("section", { role: "dialog", "aria-modal": "true", "aria-label": "Your cart" },
      make("header", {}, make("h2", {}, "In your cart"), close),
      make("ul", { class: "mini" }, ...view.lines.map((line) =>
        make("li", {},
          make("img", { src: line.image, alt: "", width: 48, height: 48 }),
          `${line.quantity} x ${line.name}`, make("span", {}, quote ? money(line.unit * line.quantity, quote.currency) : "")))),
      ...view.notices.map((notice) => make("p", { class: "warn" }, notice.text)),
      quote ? make("p", { class: "grand" }, "Total ", make("strong", {}, money(quote.total, quote.currency)), make("span", { class: "muted" }, " with delivery and tax")) : null,
      make("div", { class: "buttons" },
        make("a", { href: "/commerce/cart", class: "button quiet" }, "View cart"),
        make("a", { href: "/commerce/checkout", class: "button" }, "Checkout"))));
  drawer.hidden = false;
  close.focus();
}

function count(view) {
  const total = view.lines.reduce((sum, line) => sum + line.quantity, 0);
  const badge = document.getElementById("cart-count");
  badge.textContent = total;
  badge.toggleAttribute("data-empty", total === 0);
  document.querySelector(".cart-link").setAttribute("aria-label", `Cart, ${total} items`);
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && drawer && !drawer.hidden) closeDrawer();
});

// Pages of visitors without a cart are shared by all of them; the first addition fetches one.
async function newCart() {
  const made = await call("POST", "/carts");
  document.cookie = `fp_cart=${made.id}; path=/commerce; max-age=${60 * 86400}; samesite=lax`;
  return made.id;
}

const id = () => crypto.getRandomValues(new Uint32Array(2)).join("");

// The form's attempt key makes the order one order, however often it is sent and whichever answer got lost.
async function checkout(event, form) {
  event.preventDefault();
  const button = form.querySelector("#place");
  const before = button.textContent;
  button.disabled = true;
  button.textContent = "One moment…";
  try {
    const sent = { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { accept: "text/html" } };
    const answer = await ask(form.action, sent, () => {
      button.textContent = "Still trying…";
      stillTrying();
    });
    if (answer.redirected) return location.assign(answer.url);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    document.title = page.title;
    const problem = document.querySelector("main [aria-invalid], main [role=alert]") || document.querySelector("main h1");
    problem.tabIndex = problem.tabIndex < 0 && !problem.matches("input") ? -1 : problem.tabIndex;
    problem.focus();
    scrollTo(0, 0);
  } catch (error) {
    button.disabled = false;
    button.textContent = before;
    toast(error.message[0].toUpperCase() + error.message.slice(1));
  }
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  const kind = form.dataset.enhance;
  if (!kind) return;
  if (kind === "checkout") return checkout(event, form);
  const fields = new FormData(form);
  if (kind !== "add") return;
  event.preventDefault();
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    cart ||= await newCart();
    const view = await call("POST", `/carts/${cart}/lines?country=${country}`, {
      sku: fields.get("sku"), quantity: Number(fields.get("quantity")), operation: id(),
    });
    count(view);
    showDrawer(view);
  } catch (error) {
    toast(error.message[0].toUpperCase() + error.message.slice(1));
  } finally {
    button.disabled = false;
  }
});

// A page restored by the back button must not keep its order button disabled.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// -- filters and choices that show at once

document.querySelector(".facets")?.addEventListener("change", (event) => event.currentTarget.requestSubmit());
document.querySelector(".country select")?.addEventListener("change", (event) => event.target.form.requestSubmit());
document.addEventListener("change", (event) => {
  const choice = event.target.closest("[data-reload=checkout]");
  if (!choice) return;
  const fields = new FormData(choice.form);
  for (const name of ["attempt", "expected_total"]) fields.delete(name);
  location.replace(`/commerce/checkout?${new URLSearchParams(fields)}`);
});
const filters = document.querySelector(".filters");
if (filters && matchMedia("(max-width: 760px)").matches) filters.open = false;
body.classList.add("enhanced");
