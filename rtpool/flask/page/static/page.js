// Keeps the page up to date, and presses its buttons without leaving it. All that is shown is text (textContent), made
// by the server for the page as it was served as well.
"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const app = document.body.dataset.app;
  // Text that is the same is not touched: a live region would say it again.
  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function mark(element, name, value) {
    if ((element.dataset[name] || "") === value) return;
    if (value) element.dataset[name] = value;
    else delete element.dataset[name];
  }

  function make(name, text, className) {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  // As many children as there are things, each filled anew; those that stay keep their place and their focus.
  function fill(parent, things, create, update) {
    while (parent.children.length > things.length) parent.lastElementChild.remove();
    things.forEach((thing, index) => {
      const child = parent.children[index] || parent.appendChild(create());
      update(child, thing);
    });
  }

  function showFigure(element, figure) {
    mark(element, "tone", figure.tone);
    say(element.querySelector("dt"), figure.label);
    say(element.querySelector("b"), figure.value);
    say(element.querySelector("small"), figure.note);
  }

  function makeFigure() {
    const element = make("div");
    const value = make("dd");
    value.append(make("b"), make("small"));
    element.append(make("dt"), value);
    return element;
  }

  function showTable(table, shown) {
    const headings = [...table.tHead.rows[0].cells];
    say(table.caption.querySelector("small"), shown.note);
    fill(
      table.tBodies[0],
      shown.rows,
      () => {
        const row = make("tr");
        row.setAttribute("role", "row");
        for (const heading of headings) {
          const cell = make("td", "", heading.className);
          cell.setAttribute("role", "cell");
          cell.dataset.label = heading.textContent;
          row.append(cell);
        }
        return row;
      },
      (row, { tone, cells }) => {
        mark(row, "tone", tone);
        cells.forEach((text, index) => say(row.cells[index], text));
      },
    );
    table.parentElement.querySelector(".empty").hidden = shown.rows.length > 0;
  }

  // What an issue says, by the class of the element that says it.
  const ISSUE = ["severity", "title", "code", "subject", "observed", "meaning", "advice", "stack"];

  function makeIssue(hasStack) {
    const item = make("li");
    const line = (name, ...parts) => {
      const element = make(name);
      element.append(...parts);
      item.append(element);
    };
    line("h3", make("b", "", "severity"), " ", make("span", "", "title"), " ", make("code", "", "code"));
    line("p", make("b", "", "subject"), ": ", make("span", "", "observed"));
    line("p", make("span", "", "meaning"));
    line("p", make("b", "What to do:"), " ", make("span", "", "advice"));
    if (hasStack) {
      const stack = make("pre", "", "stack");
      stack.tabIndex = 0;
      line("details", make("summary", "Where it is"), stack);
    }
    return item;
  }

  function showIssues(issues, note) {
    const list = find("issue-list");
    say(find("issues-note"), note);
    find("issues-empty").hidden = issues.length > 0;
    const present = new Map([...list.children].map((item) => [item.dataset.key, item]));
    const items = issues.map((issue) => {
      const key = `${issue.code} ${issue.subject}`;
      const hasStack = issue.stack !== "";
      let item = present.get(key);
      if (!item || hasStack !== (item.querySelector(".stack") !== null)) item = makeIssue(hasStack);
      mark(item, "key", key);
      mark(item, "severity", issue.severity);
      for (const part of ISSUE) {
        const element = item.querySelector(`.${part}`);
        if (element !== null) say(element, issue[part]);
      }
      return item;
    });
    // Only where it differs: what is taken out and put back loses the focus.
    if (items.length !== list.children.length || items.some((item, index) => item !== list.children[index])) {
      list.replaceChildren(...items);
    }
  }

  function show(model) {
    document.title = `${model.word} · ${app} · rtpool`;
    for (const id of ["pool", "url", "word", "status"]) say(find(id), model[id]);
    mark(find("health"), "verdict", model.verdict);
    fill(find("reasons"), model.reasons, () => make("li"), say);
    fill(find("figures"), model.figures, makeFigure, showFigure);
    showIssues(model.issues, model.issues_note);
    for (const table of document.querySelectorAll("table[data-table]")) {
      showTable(table, model.tables[table.dataset.table]);
    }
  }

  // Live

  const { events, look } = document.body.dataset;
  const AGAIN = 3000; // milliseconds
  let source = null;
  let timer = null;

  function standing(words, state) {
    say(find("live"), words);
    mark(find("live"), "state", state);
  }

  function stop() {
    source?.close();
    clearTimeout(timer);
    source = timer = null;
  }

  function later() {
    timer = setTimeout(() => { timer = null; watch(); }, AGAIN);
  }

  function watch() {
    if (source !== null || timer !== null || document.hidden) return;
    if (events === undefined) {
      ask();
      return;
    }
    source = new EventSource(events);
    source.addEventListener("look", (event) => {
      show(JSON.parse(event.data));
      standing("live", "live");
    });
    source.addEventListener("error", () => {
      if (source === null || source.readyState !== EventSource.CLOSED) {
        standing("not live: the app does not answer, trying again", "lost");
        return;
      }
      source = null; // refused, or too many watch: the browser gives up, and we do not
      standing("not live: refused, trying again", "lost");
      later();
    });
  }

  // Where a stream would be all that the server does, it is asked now and then.
  async function ask() {
    later();
    try {
      const answer = await fetch(look);
      if (!answer.ok) throw new Error(answer.statusText);
      const model = await answer.json();
      show(model);
      standing(`live, as of ${model.at}`, "live");
    } catch {
      standing("not live: the app does not answer, trying again", "lost");
    }
  }

  // Where nobody looks the app need not either.
  function rest() {
    if (document.hidden) stop();
    else watch();
  }

  // Buttons

  function tell(result) {
    const box = find("result");
    const list = make("ul");
    list.append(...result.details.map((line) => make("li", line)));
    box.dataset.tone = result.ok ? "good" : "bad";
    box.replaceChildren(make("p", result.words), ...(result.details.length ? [list] : []));
  }

  async function press(event) {
    event.preventDefault();
    const form = event.currentTarget;
    const button = form.querySelector("button");
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
    find("result").replaceChildren(make("p", `${button.textContent} …`));
    delete find("result").dataset.tone;
    try {
      const answer = await fetch(form.action, {
        method: "POST",
        body: new URLSearchParams(new FormData(form)),
        headers: { Accept: "application/json" },
      });
      tell(await answer.json());
    } catch {
      tell({ ok: false, words: "The app did not answer: open the page again.", details: [] });
    } finally {
      button.removeAttribute("aria-disabled");
    }
  }

  for (const form of document.querySelectorAll("form.action")) form.addEventListener("submit", press);
  document.addEventListener("visibilitychange", rest);
  // A page that is left ends its stream at once, also where it is kept for the way back.
  addEventListener("pagehide", stop);
  addEventListener("pageshow", watch);
})();
