import { fetched, live } from "./live.js";

const { stream, read, me } = document.querySelector("main").dataset;
const list = document.getElementById("people");
const count = document.getElementById("count");
const rows = new Map(); // the elements, by name

const initials = (name) =>
  name
    .split(" ")
    .map((word) => [...word][0].toUpperCase())
    .filter((_, index, all) => index === 0 || index === all.length - 1)
    .join("");

/** A colour that a name always has, dark enough for white letters. */
function colour(name) {
  const number = [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
  return `hsl(${number} 45% 30%)`;
}

function made(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

function row({ name, since }) {
  const element = made("li", "card changed", "");
  const face = made("span", "face", initials(name));
  face.ariaHidden = "true";
  face.style.background = colour(name);
  const words = made("div", "words", "");
  const time = made("time", "soft", `since ${new Date(since).toLocaleTimeString([], { timeStyle: "short" })}`);
  time.dateTime = since;
  words.append(made("strong", "name", name), time);
  element.append(face, words);
  if (name === me) element.append(made("span", "me", "You"));
  return element;
}

let told = new Map(); // what each process of the app told last

/** Everybody who is here, once, however many pages they have open; who came first is first. */
function everybody() {
  const since = new Map();
  for (const visitor of [...told.values()].flatMap(({ visitors }) => visitors)) {
    const known = since.get(visitor.name);
    if (known === undefined || visitor.since < known) since.set(visitor.name, visitor.since);
  }
  return [...since].map(([name, since]) => ({ name, since })).sort((a, b) => (a.since < b.since ? -1 : 1));
}

const newer = (one) => {
  const known = told.get(one.process);
  return known && known.number > one.number ? known : one;
};

/** The processes that are here: the visitors of all others are gone. */
function takeAll({ processes }) {
  told = new Map(processes.map((one) => [one.process, newer(one)]));
  show(everybody());
}

/** What one process tells. */
function takeOne(one) {
  told.set(one.process, newer(one));
  show(everybody());
}

function show(people) {
  const there = new Set(people.map(({ name }) => name));
  for (const [name, element] of rows) {
    if (!there.has(name)) {
      element.remove();
      rows.delete(name);
    }
  }
  people.forEach((person, index) => {
    if (!rows.has(person.name)) rows.set(person.name, row(person));
    const element = rows.get(person.name);
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] || null);
  });
  const words = people.length === 1 ? "One person is here" : `${people.length || "No"} people are here`;
  if (count.textContent !== words) count.textContent = words;
}

live(stream, {
  on: { presence: takeAll, broadcast: takeOne },
  read: async () => takeAll(await fetched(read)),
});
