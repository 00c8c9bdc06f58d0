import { shown, showStatus } from "./car.js";
import { fetched, live } from "./live.js";

const KEPT = 30; // lines of news, also when the page is loaded anew in this tab
const data = document.querySelector("main").dataset; // where the app has what
const list = document.getElementById("news");
let news = JSON.parse(sessionStorage.getItem("news") || "[]");

function showNews() {
  const lines = news.map(({ time, text }) => {
    const line = document.createElement("li");
    const moment = document.createElement("time");
    moment.textContent = time;
    line.append(moment, text);
    return line;
  });
  list.replaceChildren(...lines);
  list.hidden = !lines.length;
  document.getElementById("no-news").hidden = lines.length > 0;
}

function tell(text) {
  news = [{ time: new Date().toLocaleTimeString(), text }, ...news].slice(0, KEPT);
  sessionStorage.setItem("news", JSON.stringify(news));
  showNews();
}

function take(car) {
  const element = shown(car.id);
  const before = element && showStatus(element, car);
  if (before) tell(`${car.model} is ${car.status} now, was ${before}`);
}

function remove(car) {
  const element = shown(car.id);
  if (!element) return;
  tell(`${element.querySelector(".model").textContent} is no longer for rent`);
  element.remove();
}

async function read() {
  const cars = await fetched(data.read);
  const there = new Set(cars.map((car) => String(car.id)));
  for (const element of document.querySelectorAll("[data-car]")) {
    if (!there.has(element.dataset.car)) remove({ id: element.dataset.car });
  }
  cars.forEach(take);
}

showNews();
live(data.stream, { read, on: { change: ({ type, car }) => (type === "DELETE" ? remove(car) : take(car)) } });
