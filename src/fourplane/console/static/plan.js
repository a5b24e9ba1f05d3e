// The plan page: asks /control/api/plan whenever an input changes; the address holds the question, so it can be sent.
const SYSTEMS = ["streaming", "dispatch", "commerce", "messaging"];
const STUDY_USERS = { streaming: 2e8, dispatch: 1e8, commerce: 3e8, messaging: 2e9 };
const WAIT_MS = 150;
const at = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const changed = new Map();
let shown = "";
let timer = 0;

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function people(number) {
  for (const [size, unit] of [[1e9, " B"], [1e6, " M"], [1e3, " k"]]) {
    if (number >= size) return `${+(number / size).toPrecision(2)}${unit}`;
  }
  return String(number);
}

function usersNow() {
  const value = 10 ** Number(at("users").value);
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(value)) - 1);
  return Math.round(value / unit) * unit;
}

function question() {
  const query = new URLSearchParams({ system: systemNow(), users: String(usersNow()) });
  for (const name of ["regions", "zones"]) if (at(name).value !== "0") query.set(name, at(name).value);
  for (const [name, value] of changed) query.set(name, value);
  return query;
}

const systemNow = () => document.querySelector("input[name=system]:checked").value;

function fill(table, head, rows, planes = []) {
  const top = element("thead", "");
  top.append(element("tr", ""));
  for (const name of head) top.firstChild.append(element("th", name));
  const body = element("tbody", "");
  rows.forEach((cells, number) => {
    const row = element("tr", "");
    if (planes[number]) row.style.setProperty("--plane", `var(--${planes[number]})`);
    for (const text of cells) {
      const cell = element("td", "");
      if (["measured", "assumed", "derived"].includes(text)) cell.append(element("span", text, `basis ${text}`));
      else cell.textContent = text;
      row.append(cell);
    }
    body.append(row);
  });
  table.replaceChildren(top, body);
}

function tile(what, text) {
  const made = element("div", "");
  made.append(element("b", text), element("span", what));
  return made;
}

function show(answer) {
  const { plan } = answer;
  at("headline").textContent = answer.headline;
  at("headline").classList.remove("wrong");
  const month = answer.headline.match(/zones?, (\S+) a month/)[1];
  at("tiles").replaceChildren(
    tile("phase", `${plan.phase} of 4`),
    tile("machines", plan.machines.toLocaleString("en")),
    tile("a month", month),
    tile("availability", `${(plan.availability * 100).toFixed(4)} %`),
    tile("regions × zones", `${plan.regions} × ${plan.zones}`),
  );
  fill(at("lines"), answer.head, answer.rows, plan.lines.map((line) => line.plane));
  at("remarks").replaceChildren(...answer.remarks.map((text) => element("li", text)));
  at("study-title").textContent = `The case study's own table, ${people(plan.study_users)} users`;
  fill(at("study"), answer.study_head, plan.study);
  const figures = plan.figures.map((one) => [one.name, Number(one.value.toPrecision(3)).toLocaleString("en"), one.unit, one.basis, one.source]);
  fill(at("figures"), ["figure", "value", "unit", "basis", "from"], figures);
  if (shown !== plan.system) habits(plan);
}

function habits(plan) {
  shown = plan.system;
  at("habits").replaceChildren(
    ...plan.assumptions.map((one) => {
      const label = element("label", one.what);
      const input = document.createElement("input");
      input.type = "number";
      input.step = "any";
      input.min = "0";
      input.name = one.name;
      input.value = one.value;
      input.addEventListener("input", () => {
        if (input.value === "") changed.delete(one.name);
        else changed.set(one.name, input.value);
        later();
      });
      label.append(input);
      return label;
    }),
  );
}

async function ask() {
  const query = question();
  history.replaceState(null, "", `?${query}`);
  at("save").href = `/control/api/plan.html?${query}`;
  const answer = await fetch(`/control/api/plan?${query}`);
  const told = await answer.json();
  if (answer.ok) return show(told);
  at("headline").textContent = told.error.message;
  at("headline").classList.add("wrong");
}

function later() {
  at("people").textContent = people(usersNow());
  clearTimeout(timer);
  timer = setTimeout(ask, WAIT_MS);
}

function build() {
  const wanted = SYSTEMS.includes(asked.get("system")) ? asked.get("system") : "messaging";
  for (const name of SYSTEMS) {
    const label = element("label", "");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: "system", value: name, checked: name === wanted });
    input.addEventListener("change", () => {
      changed.clear();
      at("users").value = Math.log10(STUDY_USERS[name]);
      later();
    });
    label.append(input, element("span", name));
    document.querySelector(".systems").append(label);
  }
  for (const [id, most] of [["regions", 6], ["zones", 4]]) {
    for (let number = 0; number <= most; number += 1) {
      const option = element("option", number ? String(number) : "as the phase has");
      option.value = String(number);
      at(id).append(option);
    }
    at(id).value = asked.get(id) ?? "0";
    at(id).addEventListener("change", later);
  }
  for (const [name, value] of asked) if (!["system", "users", "regions", "zones"].includes(name)) changed.set(name, value);
  at("users").value = Math.log10(Number(asked.get("users")) || STUDY_USERS[wanted]);
  at("users").addEventListener("input", later);
  at("people").textContent = people(usersNow());
}

build();
await ask();
