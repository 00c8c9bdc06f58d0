import { shown, showStatus } from "./car.js";
import { fetched, live } from "./live.js";

const data = document.querySelector("main").dataset; // where the app has what
const trouble = document.getElementById("trouble");

function count() {
  const found = [...document.querySelectorAll("[data-car] .status")].map((label) => label.textContent);
  for (const element of document.querySelectorAll("[data-count]")) {
    element.textContent = found.filter((status) => status === element.dataset.count).length;
  }
}

function take(car) {
  const element = shown(car.id);
  if (!element) {
    location.reload(); // a car that came while the page was open
    return;
  }
  const select = element.querySelector("select");
  if (showStatus(element, car) && document.activeElement !== select) select.value = car.status;
  element.querySelector(".customer").textContent = car.customer || "";
  count();
}

function remove(car) {
  shown(car.id)?.remove();
  count();
}

async function read() {
  const cars = await fetched(data.read);
  const there = new Set(cars.map((car) => String(car.id)));
  for (const element of document.querySelectorAll("[data-car]")) {
    if (!there.has(element.dataset.car)) element.remove();
  }
  cars.forEach(take);
  count();
}

// The status on the page changes by the event that comes back from the database, not by what was sent.
document.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button");
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // a disabled one would lose the focus
  trouble.textContent = "";
  try {
    const answer = await fetch(form.action, { method: "POST", body: new FormData(form), redirect: "manual" });
    if (answer.type !== "opaqueredirect") throw new Error(`${answer.status}`);
  } catch {
    trouble.textContent = "The status could not be changed. Please try again.";
  }
  button.removeAttribute("aria-disabled");
});

live(data.stream, { read, on: { change: ({ type, car }) => (type === "DELETE" ? remove(car) : take(car)) } });
