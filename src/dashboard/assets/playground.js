// The playground: the plan first, then progress, previews and images as they come. Without it the form gives whole pages.
"use strict";

{
  const form = document.getElementById("playground");
  const [plan, results] = ["[data-plan]", "[data-results]"].map((place) => document.querySelector(place));
  const cancel = form.querySelector("[data-cancel]");
  let running = null;
  let addresses = [];

  // What the gateway says when it refuses: a page of which one part matters.
  class Refused extends Error {}

  const problem = (text) => {
    const shown = document.createElement("div");
    shown.className = "problem";
    shown.setAttribute("role", "alert");
    shown.textContent = text;
    return shown;
  };

  const post = async (path, doing, signal) => {
    const body = new FormData(form);
    body.set("do", doing);
    const response = await fetch(path, { method: "POST", body, signal });
    if (response.ok) return response;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    throw new Refused("refused", { cause: page.querySelector(".problem") || problem(`${response.status} ${response.statusText}`) });
  };

  const events = async function* (response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const fields = Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: (.*)/s)));
        text = text.slice(end + 2);
        if (fields.event) yield [fields.event, JSON.parse(fields.data)];
      }
    }
  };

  const address = (parts, type) => {
    addresses.push(URL.createObjectURL(new Blob(parts, { type })));
    return addresses.at(-1);
  };

  const column = (whole) => {
    const part = (name) => whole.querySelector(`[data-${name}]`);
    const bar = whole.querySelector("progress");
    const began = Date.now();
    const images = { preview: [], image: [] };
    const previews = [];
    const tick = () => (part("elapsed").textContent = `${((Date.now() - began) / 1000).toFixed(1)} s`);
    const clock = setInterval(tick, 100);
    const end = (state) => {
      if (!bar.isConnected) return;
      clearInterval(clock);
      tick();
      bar.remove();
      part("state").textContent = state;
    };
    const take = (kind) => ({ image, data }) => {
      (images[kind][image] ||= []).push(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)));
    };
    return {
      end,
      progress: ({ fraction, state }) => {
        if (fraction != null) bar.value = fraction;
        if (state && part("state").textContent !== state) part("state").textContent = state;
      },
      preview: take("preview"),
      "preview-end": ({ image, type, number }) => {
        if (!previews[image]) {
          previews[image] = document.createElement("img");
          const item = document.createElement("li");
          item.append(previews[image]);
          part("previews").append(item);
        }
        previews[image].src = address(images.preview[image] || [], type);
        previews[image].alt = `preview ${number} of image ${image + 1}`;
        images.preview[image] = [];
      },
      image: take("image"),
      answer: ({ html }) => {
        end("done");
        part("previews").remove();
        const answer = document.createElement("template");
        answer.innerHTML = html;
        for (const image of answer.content.querySelectorAll("[data-image]")) {
          image.src = address(images.image[image.dataset.image] || [], image.dataset.type);
        }
        part("outcome").append(answer.content);
      },
      failure: ({ html }) => {
        end("failed");
        part("previews").remove();
        part("outcome").innerHTML = html;
      },
    };
  };

  const generate = async (doing, signal) => {
    addresses.forEach((made) => URL.revokeObjectURL(made));
    addresses = [];
    let columns = [];
    try {
      for await (const [name, data] of events(await post("/playground/stream", doing, signal))) {
        if (name === "columns") {
          results.innerHTML = data.html;
          columns = [...results.querySelectorAll("[data-column]")].map(column);
        } else {
          columns[data.column][name]?.(data);
        }
      }
    } finally {
      for (const one of columns) one.end(signal.aborted ? "cancelled" : "the answer ended early");
    }
  };

  const run = async (doing, signal) => {
    results.replaceChildren();
    const each = new FormData(form).has("each");
    if (doing !== "confirmed") {
      plan.innerHTML = await (await post("/playground/plan", doing, signal)).text();
    }
    if (doing === "explain") return;
    // What several requests cost is said first, and asked about.
    if (each && doing !== "confirmed") plan.querySelector("[data-confirmed]")?.focus();
    else await generate(doing, signal);
  };

  // The address has what is no prompt, to be kept or sent on.
  const remember = () => {
    const fields = [...form.querySelectorAll("[data-in-address]")].filter((field) => (field.type === "checkbox" ? field.checked : field.value));
    const query = new URLSearchParams(fields.map((field) => [field.name, field.value]));
    history.replaceState(null, "", query.size ? `/playground?${query}` : "/playground");
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    const pressed = event.submitter;
    const buttons = [...document.querySelectorAll("button[name=do]")];
    running = new AbortController();
    remember();
    for (const button of buttons) button.disabled = true;
    cancel.hidden = false;
    cancel.focus();
    try {
      await run(pressed?.value || "explain", running.signal);
    } catch (error) {
      if (error instanceof Refused) results.replaceChildren(error.cause);
      else if (error.name !== "AbortError") results.prepend(problem("the gateway does not answer"));
    }
    running = null;
    for (const button of buttons) button.disabled = false;
    if (document.activeElement === cancel && pressed?.isConnected) pressed.focus();
    cancel.hidden = true;
  });

  cancel.addEventListener("click", () => running?.abort());

  // What was agreed to was another request.
  form.addEventListener("input", () => plan.querySelector("[data-confirmed]")?.closest("div").remove());
}
