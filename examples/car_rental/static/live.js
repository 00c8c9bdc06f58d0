/*
 * A stream of rtpool.flask, and what the reader of the page is told about it. The same file in each example.
 *
 * The page's contents are read anew whenever they may be older than the next event: at the beginning, when the stream
 * has come back, when it says that something may be missing. Events that come meanwhile are taken after that.
 */

const AGAIN = 2000; // milliseconds until something that failed is tried again
const SHOWN = 5000; // milliseconds that a notice of something past is shown

const AWAY = "Live updates are paused: the service they come from cannot be reached. Trying again…";
const LOST = "Live updates are paused: this page's server cannot be reached. Trying again…";
const STALE = "What you see may be out of date: it could not be read anew. Trying again…";

/**
 * Listen to a stream.
 *
 * @param {string} url the stream's
 * @param {Object} handlers
 * @param {Object<string, function(Object): void>} handlers.on by the event's name, what is done with its data
 * @param {function(): Promise<void>} handlers.read reads the page's contents anew; rejects when that failed
 */
export function live(url, { on, read }) {
  const notice = document.getElementById("notice");
  const standing = document.getElementById("standing");
  let source;
  let lost = false; // no stream from the page's server
  let away = false; // the stream is there, but nothing behind it
  let stale = false; // the contents could not be read
  let past = ""; // what is over, but the reader should know
  let reading = false;
  let again = false; // to be read once more
  let waiting = []; // events that came while reading
  const timers = {};

  function later(name, then, milliseconds) {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(then, milliseconds);
  }

  function show() {
    const paused = lost || away;
    const words = lost ? LOST : away ? AWAY : stale ? STALE : past;
    if (notice.textContent !== words) notice.textContent = words;
    standing.dataset.standing = paused ? "paused" : "live";
    standing.textContent = paused ? "Paused" : "Live";
  }

  function take(name, data) {
    if (reading) waiting.push([name, data]);
    else on[name](data);
  }

  async function readAnew(missed) {
    again = true;
    if (missed) past = "Some changes may have been missed. Reading everything anew…";
    if (reading) return;
    reading = true;
    try {
      while (again) {
        again = false;
        await read();
      }
      stale = false;
    } catch {
      stale = true;
      later("read", readAnew, AGAIN);
    }
    reading = false;
    for (const [name, data] of waiting.splice(0)) on[name](data);
    if (past && !stale) {
      past = `Some changes may have been missed. Everything was read anew at ${new Date().toLocaleTimeString()}.`;
      later("past", () => { past = ""; show(); }, SHOWN);
    }
    show();
  }

  function open(missed) {
    source = new EventSource(url);
    source.onopen = () => {
      lost = false;
      readAnew(missed);
      missed = false; // from now on the stream itself says so
    };
    source.onerror = () => {
      lost = true;
      show();
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again, and says where it was
      later("open", () => open(true), AGAIN);
      readAnew(true); // it was refused, and this may tell why
    };
    source.addEventListener("status", (event) => {
      const { status } = JSON.parse(event.data);
      away = status !== "joined" && status !== "joining";
      if (status === "joined") readAnew(false); // what was read before that may be older than the first event
      show();
    });
    source.addEventListener("gap", () => {
      away = false; // events flow again
      readAnew(true);
    });
    for (const name of Object.keys(on)) source.addEventListener(name, (event) => take(name, JSON.parse(event.data)));
  }

  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => {
    if (event.persisted) open(true);
  });
  open(false);
}

/** What a URL of this app has, as JSON; where it is not allowed any more, the page is loaded anew to say so. */
export async function fetched(url) {
  const answer = await fetch(url, { cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) location.reload();
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return answer.json();
}
