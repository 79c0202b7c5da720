// The page of the mail that was received. Everything of a message is put into the document as text;
// its HTML is shown by a frame that may do nothing (page.py says why). Messages are numbers, and the
// one that is read is in the address: #/12.
"use strict";

const PAGE = 50; // messages asked for at a time, at least
const MOST = 200; // and at most
const SHOWN = 500_000; // characters of a source
const $ = (id) => document.getElementById(id);

const state = {
  messages: [], // as the server lists them, the newest first
  total: 0,
  next: null, // where older ones begin
  search: "",
  seen: new Set(), // those that were read here
  current: null, // the message that is read, with all details
  view: null, // the tab that was chosen last
};

// ---- Small things ----

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function ask(path, options) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw Object.assign(new Error(answer.error ?? `status ${response.status}`), { status: response.status });
}

const askJSON = async (path, options) => (await ask(path, options)).json();

let silence;
function say(text) {
  $("said").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => ($("said").textContent = ""), 4000);
}

// Whatever goes wrong is told, and the page goes on.
const guarded = (work) => (...args) => Promise.resolve(work(...args)).catch((error) => say(error.message));

const byUnit = (n, unit) => `${n >= 10 ? Math.round(n) : n.toFixed(1)} ${unit}`;
function sizeOf(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1024 ** 2 ? byUnit(bytes / 1024, "KB") : byUnit(bytes / 1024 ** 2, "MB");
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
function timeOf(text) {
  const date = new Date(text);
  const today = date.toDateString() === new Date().toDateString();
  const short = (today ? clock : day).format(date);
  return make("time", { dateTime: text, title: full.format(date) }, short);
}

// ---- The list ----

function line(message) {
  const from = message.from || message.sender || "<>";
  const to = message.recipients.join(", ");
  const link = make(
    "a",
    { href: `#/${message.id}` },
    make("span", { className: "from" }, make("bdi", {}, from)),
    make("span", { className: "when" }, ...clip(message), timeOf(message.received)),
    make("span", { className: message.subject ? "subject" : "subject empty" }, make("bdi", {}, message.subject || "no subject")),
    make("span", { className: "preview" }, make("bdi", {}, `${to}${message.preview ? " — " : ""}${message.preview}`)),
  );
  link.dataset.id = message.id;
  link.classList.toggle("new", !state.seen.has(message.id));
  if (state.current?.id === message.id) link.setAttribute("aria-current", "true");
  return make("li", {}, link);
}

function clip(message) {
  if (!message.attachments) return [];
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M13 7.5 7.7 12.8a3 3 0 0 1-4.3-4.3L9 3a2 2 0 0 1 2.8 2.8L6.3 11.3a1 1 0 0 1-1.4-1.4L9.5 5.3");
  icon.setAttribute("viewBox", "0 0 16 16");
  icon.setAttribute("role", "img");
  icon.setAttribute("aria-label", message.attachments === 1 ? "1 attachment" : `${message.attachments} attachments`);
  icon.append(path);
  return [icon];
}

const linkOf = (id) => $("messages").querySelector(`a[data-id="${id}"]`);

// Messages never change, so lines that are there already stay: what has the focus, or is being
// clicked at, is not taken away.
function showLines() {
  const lines = new Map([...$("messages").children].map((each) => [Number(each.firstChild.dataset.id), each]));
  const wanted = new Set(state.messages.map((message) => message.id));
  for (const [id, each] of lines) if (!wanted.has(id)) each.remove();
  let next = $("messages").firstChild;
  for (const message of state.messages) {
    const there = lines.get(message.id);
    if (there && there === next) next = next.nextSibling;
    else $("messages").insertBefore(there ?? line(message), next);
  }
}

function showList() {
  const focused = document.activeElement?.dataset?.id;
  showLines();
  if (focused && !linkOf(focused)) ($("messages").querySelector("a") ?? $("search")).focus();
  const found = `${state.messages.length}${state.next ? "+" : ""}`;
  $("count").textContent = state.search ? `${found} of ${state.total} found` : `${state.total} ${state.total === 1 ? "message" : "messages"}`;
  $("older").hidden = state.next === null;
  $("clear").disabled = state.total === 0;
  $("none").hidden = state.messages.length > 0;
  $("none-text").textContent = state.search ? "No message has all these words." : "No mail yet. What is sent here appears by itself.";
  document.title = state.total ? `(${state.total}) Mail · becket` : "Mail · becket";
}

let latest = 0; // answers to questions that were asked before are too late
async function load() {
  const mine = ++latest;
  const limit = Math.min(Math.max(PAGE, state.messages.length), MOST);
  const query = new URLSearchParams({ search: state.search, limit });
  const answer = await askJSON(`api/messages?${query}`);
  if (mine !== latest) return;
  Object.assign(state, answer);
  showList();
}

async function loadOlder() {
  const mine = ++latest;
  const query = new URLSearchParams({ search: state.search, limit: PAGE, before: state.next });
  const answer = await askJSON(`api/messages?${query}`);
  if (mine !== latest) return;
  const first = answer.messages[0];
  state.messages.push(...answer.messages);
  state.next = answer.next;
  state.total = answer.total;
  showList();
  if (first) linkOf(first.id).focus();
}

// Many changes at once are one question.
let planned = null;
function loadSoon() {
  planned ??= setTimeout(() => {
    planned = null;
    guarded(load)();
  }, 80);
}

// ---- A message ----

const idOf = () => Number(/^#\/(\d{1,15})$/.exec(location.hash)?.[1] ?? 0);

function close() {
  state.current = null;
  $("message").hidden = true;
  $("nothing").hidden = false;
  $("panel").replaceChildren();
  document.querySelector(".panes").classList.remove("reading");
  mark();
}

function mark() {
  for (const link of $("messages").querySelectorAll("a")) {
    const id = Number(link.dataset.id);
    link.classList.toggle("new", !state.seen.has(id));
    if (state.current?.id === id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function open() {
  const id = idOf();
  if (!id) return close();
  let message;
  try {
    message = await askJSON(`api/messages/${id}`);
  } catch (error) {
    if (id === idOf()) location.hash = "";
    throw error;
  }
  if (id !== idOf()) return; // another was chosen meanwhile
  state.current = message;
  state.seen.add(id);
  showMessage(message);
  mark();
  linkOf(id)?.scrollIntoView({ block: "nearest" });
}

function fact(name, value) {
  return value ? [make("dt", {}, name), make("dd", {}, make("bdi", {}, value))] : [];
}

function showMessage(message) {
  $("nothing").hidden = true;
  $("message").hidden = false;
  document.querySelector(".panes").classList.add("reading");
  $("subject").textContent = message.subject || "no subject";
  $("subject").classList.toggle("empty", !message.subject);
  $("download").href = `api/messages/${message.id}/source?download`;
  const client = [message.helo, message.peer && `[${message.peer}]`, message.tls && "by TLS", message.login && `as ${message.login}`];
  $("facts").replaceChildren(
    ...fact("From", message.from),
    ...fact("To", message.to),
    ...fact("Cc", message.cc),
    ...fact("Date", message.date),
    ...fact("Envelope", `${message.sender || "<>"} → ${message.recipients.join(", ")}`),
    ...fact("Received", `${full.format(new Date(message.received))}, ${sizeOf(message.size)}`),
    ...fact("Client", client.filter(Boolean).join(" ")),
  );
  $("problem").hidden = !message.problem;
  $("problem").textContent = message.problem;
  showTabs(message);
}

function showTabs(message) {
  $("tab-html").hidden = !message.html;
  $("tab-text").hidden = message.text === null && message.html;
  $("tab-files").hidden = message.attachments === 0;
  $("tab-files").textContent = `Attachments (${message.attachments})`;
  const there = tabs();
  const wanted = there.find((tab) => tab.dataset.view === state.view) ?? there[0];
  showView(wanted.dataset.view);
}

const tabs = () => [...$("tabs").children].filter((tab) => !tab.hidden);

function showView(view) {
  for (const tab of $("tabs").children) {
    const chosen = tab.dataset.view === view;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  const panel = $("panel");
  panel.setAttribute("aria-labelledby", `tab-${view}`);
  panel.replaceChildren();
  panel.scrollTop = 0;
  guarded(VIEWS[view])(panel, state.current);
}

const VIEWS = {
  html(panel, message) {
    const frame = make("iframe", { title: "The message's HTML", referrerPolicy: "no-referrer" });
    frame.setAttribute("sandbox", "allow-popups allow-popups-to-escape-sandbox");
    frame.src = `api/messages/${message.id}/html`;
    panel.append(frame);
  },
  text(panel, message) {
    if (message.cut) panel.append(cut(`api/messages/${message.id}/text`));
    if (message.text) panel.append(make("pre", { className: "text" }, ...withLinks(message.text)));
    else panel.append(make("p", { className: "note" }, "The message has no text."));
  },
  files(panel, message) {
    panel.append(make("div", { className: "files" }, ...message.parts.filter((part) => part.attached).map((part) => file(message, part))));
  },
  headers(panel, message) {
    const rows = message.headers.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
    panel.append(make("table", {}, make("tbody", {}, ...rows)));
  },
  async source(panel, message) {
    const response = await ask(`api/messages/${message.id}/source`);
    const text = await response.text();
    if (state.current !== message || panel.getAttribute("aria-labelledby") !== "tab-source") return;
    panel.replaceChildren();
    if (text.length > SHOWN) panel.append(cut(`api/messages/${message.id}/source?download`));
    panel.append(make("pre", { className: "source" }, text.slice(0, SHOWN)));
  },
};

function cut(path) {
  return make("p", { className: "note" }, "This is the beginning; ", make("a", { href: path, target: "_blank" }, "all of it"), " is large.");
}

function file(message, part) {
  const link = make("a", { href: `api/messages/${message.id}/parts/${part.path}` });
  link.setAttribute("download", part.name);
  link.append(make("b", {}, make("bdi", {}, part.name)), make("small", {}, `${part.type}, ${sizeOf(part.size)}`));
  return link;
}

// Addresses in text become links; nothing else does.
function* withLinks(text) {
  for (const piece of text.split(/(\bhttps?:\/\/[^\s<>"]+[^\s<>".,;:!?)\]}'])/)) {
    if (/^https?:\/\//.test(piece)) yield make("a", { href: piece, target: "_blank", rel: "noopener noreferrer" }, piece);
    else yield piece;
  }
}

// ---- What a person does ----

function neighbour(step) {
  const ids = state.messages.map((message) => message.id);
  const at = ids.indexOf(idOf());
  return at < 0 ? ids[0] : ids[at + step];
}

function go(step) {
  const id = neighbour(step);
  if (id === undefined) return;
  location.hash = `#/${id}`;
  linkOf(id)?.focus();
}

async function remove() {
  const message = state.current;
  if (!message) return;
  const then = neighbour(1) ?? neighbour(-1);
  await ask(`api/messages/${message.id}`, { method: "DELETE" });
  state.messages = state.messages.filter((each) => each.id !== message.id);
  location.hash = then === undefined ? "" : `#/${then}`;
  say("Message deleted");
  await load();
}

async function removeAll() {
  if ($("sure").returnValue !== "yes") return;
  const { deleted } = await askJSON("api/messages", { method: "DELETE" });
  location.hash = "";
  say(`${deleted} ${deleted === 1 ? "message" : "messages"} deleted`);
  await load();
}

function back() {
  const link = linkOf(idOf());
  location.hash = "";
  (link ?? $("search")).focus();
}

function escape() {
  if (document.activeElement === $("search")) {
    $("search").value = "";
    search();
    $("search").blur();
  } else if (idOf()) back();
}

const search = guarded(async () => {
  state.search = $("search").value.trim();
  state.messages = [];
  await load();
});

const KEYS = {
  j: () => go(1),
  k: () => go(-1),
  "/": () => $("search").focus(),
  "#": guarded(remove),
  "?": () => $("help").showModal(),
  Delete: guarded(remove),
  Escape: escape,
};
const IN_LIST = { ArrowDown: KEYS.j, ArrowUp: KEYS.k };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input");
  const inList = event.target === document.body || $("messages").contains(event.target);
  let act = typing && event.key !== "Escape" ? undefined : KEYS[event.key];
  if (inList) act ??= IN_LIST[event.key];
  if (!typing && state.current && /^[1-5]$/.test(event.key)) {
    const tab = $("tabs").children[event.key - 1];
    if (!tab.hidden) act = () => choose(tab);
  }
  if (!act) return;
  event.preventDefault();
  act();
});

function choose(tab) {
  state.view = tab.dataset.view;
  showView(state.view);
  tab.focus();
}

$("tabs").addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (tab) choose(tab);
});
$("tabs").addEventListener("keydown", (event) => {
  const there = tabs();
  const at = there.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(there.at(to % there.length));
});

let typed;
$("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(search, 150);
});
$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typed);
  search();
});
$("older").addEventListener("click", guarded(loadOlder));
$("delete").addEventListener("click", guarded(remove));
$("back").addEventListener("click", back);
$("clear").addEventListener("click", () => {
  $("sure").returnValue = "";
  $("sure").showModal();
});
$("sure").addEventListener("close", guarded(removeAll));
$("help-button").addEventListener("click", () => $("help").showModal());
$("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the message's
  $("main").focus();
});
window.addEventListener("hashchange", guarded(open));

// ---- Live updates ----

function tell(name, text) {
  $("live").dataset.state = name;
  $("live").querySelector("b").textContent = text;
}

function listen() {
  const events = new EventSource("api/events");
  events.addEventListener("ready", () => {
    tell("live", "Live");
    loadSoon();
  });
  events.addEventListener("reset", loadSoon);
  events.addEventListener("added", loadSoon);
  events.addEventListener("removed", (event) => {
    if (JSON.parse(event.data).ids.includes(idOf())) location.hash = "";
    loadSoon();
  });
  events.addEventListener("error", () => {
    tell("lost", "Connection lost");
    if (events.readyState !== EventSource.CLOSED) return; // it tries again by itself
    setTimeout(listen, 2000);
  });
}

guarded(open)();
listen();
