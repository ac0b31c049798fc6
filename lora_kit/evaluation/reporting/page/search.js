"use strict";
// Search over the changed items. The state is in the URL fragment: #q=words&show=lost&task=1.
const form = document.getElementById("search");
const [query, show, task, count] = ["query", "show", "task", "count"].map((id) => document.getElementById(id));

const fold = (text) => text.normalize("NFC").toLowerCase();

// Searchable text of an item: ids, slices and texts, without the labels of the page.
const searchText = (item) => fold(
  [...item.querySelectorAll("bdi, dd")]
    .flatMap((element) => [...element.childNodes])
    .filter((node) => node.nodeType === Node.TEXT_NODE)
    .map((node) => node.data)
    .join("\n"));

const tasks = [...document.querySelectorAll("div.task")].map((element) => ({
  element,
  number: element.dataset.task,
  groups: [...element.querySelectorAll("details")].map((details) => ({
    element: details,
    show: details.dataset.show,
    open: details.open,
    hits: details.querySelector(".hits"),
    items: [...details.querySelectorAll("li")].map((item) => ({ element: item, text: null })),
  })),
  empty: [...element.querySelectorAll("p.none")],
}));
const total = tasks.flatMap((one) => one.groups).reduce((sum, group) => sum + group.items.length, 0);
let searched = "";

function search() {
  const words = fold(query.value).split(/\s+/).filter(Boolean);
  const filtered = words.length > 0 || show.value !== "" || task.value !== "";
  let matches = 0;
  for (const one of tasks) {
    let here = 0;
    for (const group of one.groups) {
      const selected = (!show.value || show.value === group.show) && (!task.value || task.value === one.number);
      let hits = 0;
      for (const item of group.items) {
        if (words.length && item.text === null) item.text = searchText(item.element);
        const hit = selected && words.every((word) => item.text.includes(word));
        item.element.hidden = !hit;
        hits += hit;
      }
      group.element.hidden = filtered && hits === 0;
      group.hits.hidden = hits === group.items.length;
      group.hits.textContent = `${hits} matching`;
      if (words.join(" ") !== searched) group.element.open = words.length ? hits > 0 : group.open;
      here += hits;
    }
    one.element.hidden = filtered && here === 0;
    for (const line of one.empty) line.hidden = filtered;
    matches += here;
  }
  searched = words.join(" ");
  count.value = filtered ? `${matches} of ${total} items` : `${total} items`;
}

function read() {
  const state = new URLSearchParams(location.hash.slice(1));
  query.value = state.get("q") ?? "";
  for (const [field, name] of [[show, "show"], [task, "task"]]) {
    field.value = state.get(name) ?? "";
    if (field.selectedIndex < 0) field.value = "";
  }
  search();
}

function write() {
  const state = new URLSearchParams();
  if (query.value.trim()) state.set("q", query.value.trim());
  if (show.value) state.set("show", show.value);
  if (task.value) state.set("task", task.value);
  const fragment = String(state);
  history.replaceState(null, "", fragment ? `#${fragment}` : location.href.split("#")[0]);
}

let waiting = 0;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { search(); write(); }, 120);
});
addEventListener("hashchange", read);
form.hidden = total === 0;
read();
