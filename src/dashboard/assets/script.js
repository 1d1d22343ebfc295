// What pages do by themselves. Without it they are whole, only not live.
"use strict";

const root = document.documentElement;

// The theme of the system, or the other one.
const themed = (theme) => theme && root.setAttribute("data-theme", theme);
themed(localStorage.getItem("theme"));
for (const button of document.querySelectorAll("[data-theme-switch]")) {
  button.addEventListener("click", () => {
    const shown = root.getAttribute("data-theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    const other = shown === "dark" ? "light" : "dark";
    localStorage.setItem("theme", other);
    themed(other);
  });
}

// Moments are written in UTC; the reader's own time is a hint.
const localise = (within) => {
  for (const time of within.querySelectorAll("time[datetime]")) {
    time.title = new Date(time.dateTime).toLocaleString();
  }
};
localise(document);

// Rows that stand in the order in which requests came, the newest first.
const insert = (body, piece) => {
  const template = document.createElement("template");
  template.innerHTML = piece;
  for (const row of [...template.content.children]) {
    const known = document.getElementById(row.id);
    if (known) continue;
    const after = [...body.children].find((other) => Number(other.dataset.at) <= Number(row.dataset.at));
    row.classList.add("fresh");
    localise(row);
    body.insertBefore(row, after || null);
  }
  while (body.children.length > Number(body.dataset.atMost)) body.lastElementChild.remove();
};

// A piece that stands for all that was there.
const replace = (whole, piece) => {
  const focused = whole.contains(document.activeElement) && document.activeElement.id;
  whole.innerHTML = piece;
  localise(whole);
  if (focused) document.getElementById(focused)?.focus();
};

const state = document.querySelector("[data-live-state]");
const say = (kind, text) => {
  if (!state || state.dataset.liveState === kind) return;
  state.dataset.liveState = kind;
  state.textContent = text;
};

for (const shown of document.querySelectorAll("[data-live]")) {
  let source = null;
  const start = () => {
    source = new EventSource(shown.dataset.live);
    source.addEventListener("piece", (event) => {
      say("live", "live");
      if (shown.dataset.atMost) insert(shown, event.data);
      else replace(shown, event.data);
    });
    source.addEventListener("nothing", () => say("live", "live"));
    source.addEventListener("failure", (event) => say("away", event.data));
    source.addEventListener("error", () => say("away", "the gateway does not answer"));
  };
  const stop = () => {
    source?.close();
    source = null;
  };
  start();
  // A browser opens few connections to one address: a page that is put away leaves its own to others.
  addEventListener("pagehide", stop);
  const button = document.querySelector("[data-live-switch]");
  button?.addEventListener("click", () => {
    const pauses = source !== null;
    if (pauses) stop();
    else start();
    button.setAttribute("aria-pressed", String(pauses));
    if (pauses) say("paused", "paused");
  });
}

// What takes longer than the page comes after it. Where it does not come, there is a link.
for (const place of document.querySelectorAll("[data-load]")) {
  place.setAttribute("aria-busy", "true");
  fetch(place.dataset.load)
    .then(async (answer) => {
      if (answer.ok && !answer.redirected) replace(place, await answer.text());
    })
    .catch(() => {})
    .finally(() => place.removeAttribute("aria-busy"));
}

// A form that takes its time is sent once, and says so.
for (const form of document.querySelectorAll("form[data-slow]")) {
  form.addEventListener("submit", () => {
    for (const button of form.querySelectorAll("button")) {
      button.disabled = true;
      button.textContent = "Working…";
    }
  });
}

// What cannot be undone is asked for twice.
for (const form of document.querySelectorAll("form[data-confirm]")) {
  form.addEventListener("submit", (event) => {
    if (!confirm(form.dataset.confirm)) event.preventDefault();
  });
}

// A key that is shown once. Without TLS browsers give no clipboard to pages, so it is also selected.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: copy it";
    }
  });
}

// `/` goes to the filter, `j` and `k` down and up the rows.
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  if (event.key === "/") {
    const field = document.querySelector("[role=search] input, [role=search] select");
    if (!field) return;
    field.focus();
    event.preventDefault();
  }
  if (event.key === "j" || event.key === "k") {
    const rows = [...document.querySelectorAll("a.row")];
    const at = rows.indexOf(document.activeElement);
    const next = at < 0 ? 0 : at + (event.key === "j" ? 1 : -1);
    rows[next]?.focus();
  }
});
