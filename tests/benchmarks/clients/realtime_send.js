"use strict";
// Supabase's official JavaScript client sends; in its default serializer version, 2.0.0.

const path = require("node:path");
const { createRequire } = require("node:module");
const installed = createRequire(path.join(__dirname, "..", "..", "interop", "js", "client.js"));
const { RealtimeClient } = installed("@supabase/realtime-js");
const WebSocket = globalThis.WebSocket ?? installed("ws");

const PAUSE = 5; // milliseconds between two messages at a low rate
const told = JSON.parse(process.argv.at(-1));
const micros = () => Number(process.hrtime.bigint()) / 1e3;
const payload = (n) => ({ n, t: 0, pad: "x".repeat(225) });
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function fail(words) {
  process.stderr.write(words + "\n");
  process.exit(1);
}

function say(figures) {
  process.stdout.write(JSON.stringify(figures) + "\n");
  process.exit(0);
}

const client = new RealtimeClient(`ws://127.0.0.1:${told.port}/realtime/v1`, {
  params: { apikey: "k" },
  transport: WebSocket,
});
const channel = client.channel("bench-0", { config: { broadcast: { self: true } } });
const send = (event, body) => channel.send({ type: "broadcast", event, payload: body });

async function publish() {
  const counted = new Promise((resolve) => channel.on("broadcast", { event: "counted" }, resolve));
  const checked = new Promise((resolve) => channel.on("broadcast", { event: "checked" }, resolve));
  await subscribed();
  await send("count", { messages: told.messages });
  const started = micros();
  for (let n = 0; n < told.messages; n++) await send("x", payload(n));
  await counted;
  const took = micros() - started;
  const { wrong } = (await checked).payload;
  if (wrong) fail(wrong);
  say({ "messages/s": told.messages / (took / 1e6) });
}

async function roundTrips() {
  const sent = [], took = [];
  let came = () => {};
  channel.on("broadcast", { event: "x" }, (message) => {
    if (message.payload.n !== took.length) fail(`message ${message.payload.n} came where ${took.length} was expected`);
    took.push(micros() - sent[took.length]);
    came();
  });
  await subscribed();
  const began = micros();
  for (let n = 0; n < told.messages; n++) {
    const wait = told.rate === null ? PAUSE : (began + (n / told.rate) * 1e6 - micros()) / 1e3;
    if (wait > 0) await sleep(wait);
    const back = new Promise((resolve) => (came = resolve));
    sent.push(micros());
    send("x", payload(n));
    if (told.rate === null) await back;
  }
  while (took.length < told.messages) await sleep(1);
  const counted = took.slice(Math.floor(told.messages / 10)).sort((a, b) => a - b);
  const at = (percent) => counted[Math.min(counted.length - 1, Math.floor((counted.length * percent) / 100))];
  say({ "us p50": at(50), "us p95": at(95), "us p99": at(99) });
}

function subscribed() {
  return new Promise((resolve) => {
    channel.subscribe((status, error) => (status === "SUBSCRIBED" ? resolve() : fail(`${status} ${error}`)));
  });
}

setTimeout(() => fail("not done within 50 s"), 50_000);
(told.what === "publish" ? publish() : roundTrips()).catch((error) => fail(String(error)));
