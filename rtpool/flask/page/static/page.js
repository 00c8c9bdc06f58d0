// Keeps the page up to date, and presses its buttons without leaving it. All that is shown is text (textContent), made
// by the server for the page as it was served as well.
"use strict";

(() => {
  const find = (id) => document.getElementById(id);
  const app = document.body.dataset.app;
  let source = null;
  let issuesShown = "";

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

  function makeIssue(issue) {
    const item = make("li");
    item.dataset.severity = issue.severity;
    const heading = make("h3");
    heading.append(make("b", issue.severity), ` ${issue.title} `, make("code", issue.code));
    const seen = make("p", undefined, "seen");
    seen.append(make("span", issue.subject, "subject"), `: ${issue.observed}`);
    const advice = make("p", undefined, "advice");
    advice.append(make("b", "What to do:"), ` ${issue.advice}`);
    item.append(heading, seen, make("p", issue.meaning, "meaning"), advice);
    if (issue.stack) {
      const details = make("details");
      const stack = make("pre", issue.stack);
      stack.tabIndex = 0;
      details.append(make("summary", "Where it is"), stack);
      item.append(details);
    }
    return item;
  }

  function showIssues(issues, note) {
    say(find("issues-note"), note);
    find("issues-empty").hidden = issues.length > 0;
    const text = JSON.stringify(issues);
    if (text === issuesShown) return; // what is open stays open
    issuesShown = text;
    find("issue-list").replaceChildren(...issues.map(makeIssue));
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

  function standing(words, state) {
    say(find("live"), words);
    mark(find("live"), "state", state);
  }

  function watch() {
    if (source !== null || document.hidden) return;
    source = new EventSource(document.body.dataset.events);
    source.addEventListener("look", (event) => {
      show(JSON.parse(event.data));
      standing("live", "live");
    });
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) {
        standing("not live: the app does not answer, trying again", "lost");
        return;
      }
      source = null; // refused, or too many watch: the browser gives up, and we do not
      standing("not live: refused, trying again", "lost");
      setTimeout(watch, 5000);
    });
  }

  function rest() {
    if (!document.hidden) {
      watch();
    } else if (source !== null) { // nobody looks: the app need not either
      source.close();
      source = null;
    }
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
  addEventListener("pagehide", () => { source?.close(); source = null; });
  addEventListener("pageshow", watch);
})();
