"use strict";
// Supabase's official JavaScript client receives; in its default serializer version, 2.0.0.

const path = require("node:path");
const { createRequire } = require("node:module");
const installed = createRequire(path.join(__dirname, "..", "..", "interop", "js", "client.js"));
const { RealtimeClient } = installed("@supabase/realtime-js");
const WebSocket = globalThis.WebSocket ?? installed("ws");

const told = JSON.parse(process.argv.at(-1));
const topics = told.topics ?? 1, callbacks = told.channels ?? 1;
const each = Math.floor(told.messages / topics);
const seconds = () => Number(process.hrtime.bigint()) / 1e9;
let joined = 0, over = 0, first = null;

function fail(words) {
  process.stderr.write(words + "\n");
  process.exit(1);
}

function callback() {
  let next = 0;
  return (message) => {
    const payload = message.payload;
    const number = told.binary ? Number(new DataView(payload).getBigUint64(0)) : payload.n;
    if (number !== next) fail(`message ${number} came where ${next} was expected`);
    if (first === null) first = seconds();
    next += 1;
    if (next === each) finish();
  };
}

function finish() {
  over += 1;
  if (over < topics * callbacks) return;
  const took = seconds() - first;
  // what comes twice comes now, and fails
  setTimeout(() => {
    const figure = told.channels === undefined ? "messages/s" : "callbacks/s";
    process.stdout.write(JSON.stringify({ [figure]: (each * topics * callbacks - 1) / took }) + "\n");
    process.exit(0);
  }, 20);
}

const scheme = told.ca ? "wss" : "ws";
const client = new RealtimeClient(`${scheme}://127.0.0.1:${told.port}/realtime/v1`, {
  params: { apikey: "k" },
  transport: WebSocket,
});
const channels = Array.from({ length: topics }, (_, index) => client.channel(`bench-${index}`));
for (const channel of channels) {
  for (let index = 0; index < callbacks; index += 1) channel.on("broadcast", { event: "x" }, callback());
  channel.subscribe((status, error) => {
    if (status !== "SUBSCRIBED") fail(`${status} ${error}`);
    joined += 1;
    if (joined === topics) channels[0].send({ type: "broadcast", event: "go", payload: { messages: told.messages } });
  });
}
setTimeout(() => fail("not all messages came within 40 s"), 40_000);
