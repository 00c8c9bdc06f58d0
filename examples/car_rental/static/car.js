/* A car on a page, whichever page that is. */

/** The element that shows a car; null where there is none. */
export const shown = (id) => document.querySelector(`[data-car="${Number(id)}"]`);

/** Show a car's status, and return what was shown before; undefined where nothing changed. */
export function showStatus(element, car) {
  const label = element.querySelector(".status");
  const before = label.textContent;
  if (before === car.status) return undefined;
  label.textContent = label.dataset.status = car.status;
  element.classList.remove("changed");
  void element.offsetWidth; // so that the animation begins anew
  element.classList.add("changed");
  return before;
}
