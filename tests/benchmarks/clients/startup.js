"use strict";
// Supabase's official JavaScript client, from the start of Node to the first message.

const path = require("node:path");
const { createRequire } = require("node:module");
const installed = createRequire(path.join(__dirname, "..", "..", "interop", "js", "client.js"));
const { RealtimeClient } = installed("@supabase/realtime-js");
const WebSocket = globalThis.WebSocket ?? installed("ws");

const told = JSON.parse(process.argv.at(-1));
const seconds = () => Number(process.hrtime.bigint()) / 1e9; // the monotonic clock of Python

const client = new RealtimeClient(`ws://127.0.0.1:${told.port}/realtime/v1`, {
  params: { apikey: "k" },
  transport: WebSocket,
});
const channel = client.channel("it");
channel.on("broadcast", { event: "x" }, () => {
  process.stdout.write(JSON.stringify({ ms: (seconds() - told.started) * 1e3 }) + "\n");
  process.exit(0);
});
channel.subscribe((status) => {
  if (status !== "SUBSCRIBED") process.exit(1);
  channel.send({ type: "broadcast", event: "say", payload: { messages: 1, size: 250 } });
});
