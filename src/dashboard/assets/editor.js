// A text with the numbers of its lines, and a way to those that are wrong.
"use strict";

const editor = document.getElementById("config");
const numbers = document.querySelector(".sheet .lines");

// As many numbers as lines. The sheet grows with them, so that both scroll together.
const recount = () => {
  const lines = Math.max(editor.value.split("\n").length, 7);
  if (lines === numbers.childElementCount) return;
  while (numbers.childElementCount > lines) numbers.lastElementChild.remove();
  while (numbers.childElementCount < lines) {
    const number = document.createElement("span");
    number.textContent = numbers.childElementCount + 1;
    number.id = "line-" + number.textContent;
    numbers.append(number);
  }
  editor.rows = lines;
};
editor.addEventListener("input", recount);

// From a problem to its line, with the line selected.
for (const link of document.querySelectorAll("a[data-line]")) {
  link.addEventListener("click", (event) => {
    const before = editor.value.split("\n").slice(0, link.dataset.line - 1);
    const start = before.reduce((sum, line) => sum + line.length + 1, 0);
    const end = editor.value.indexOf("\n", start);
    event.preventDefault();
    document.getElementById("line-" + link.dataset.line)?.scrollIntoView({ block: "center" });
    editor.focus({ preventScroll: true });
    editor.setSelectionRange(start, end < 0 ? editor.value.length : end);
  });
}
