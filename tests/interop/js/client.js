"use strict";
// Drives Supabase's own JavaScript client: commands in on stdin, replies and what its callbacks got out on stdout, one
// JSON object a line, bytes as {"$bytes": base64}. ../driver.py is the other end.

const readline = require("node:readline");
const { RealtimeClient, postgresChangesFilter } = require("@supabase/realtime-js");
const WebSocket = globalThis.WebSocket ?? require("ws");

const clients = new Map();
const channels = new Map();

function encode(value) {
  const pack = (_, v) => (v instanceof ArrayBuffer ? { $bytes: Buffer.from(v).toString("base64") } : v);
  return JSON.stringify(value, pack);
}

function decode(line) {
  const unpack = (_, v) => (v?.$bytes === undefined ? v : new Uint8Array(Buffer.from(v.$bytes, "base64")).buffer);
  return JSON.parse(line, unpack);
}

function emit(message) {
  process.stdout.write(encode(message) + "\n");
}

const commands = {
  connect({ client, url, key, vsn, timeout, heartbeat }) {
    const options = {
      params: { apikey: key },
      transport: WebSocket,
      vsn,
      timeout: timeout * 1000,
      reconnectAfterMs: () => 20,
      heartbeatCallback: (status) => emit({ client, kind: "heartbeat", status }),
    };
    if (heartbeat) options.heartbeatIntervalMs = heartbeat * 1000;
    clients.set(client, new RealtimeClient(url, options));
  },

  channel({ client, channel, topic, config }) {
    channels.set(channel, clients.get(client).channel(topic, { config }));
  },

  filter({ conditions }) {
    const built = postgresChangesFilter();
    for (const [method, ...given] of conditions) built[method](...given);
    return built.build();
  },

  on({ client, channel, type, filter }) {
    const name = type === "presence" ? `presence ${filter.event}` : type;
    const heard = (args) => emit({ client, channel, kind: name, args });
    channels.get(channel).on(type, filter, heard);
  },

  subscribe({ client, channel }) {
    channels.get(channel).subscribe((status, error) => {
      emit({ client, channel, kind: "status", status, error: error?.message ?? null });
    });
  },

  send: ({ channel, event, payload }) => channels.get(channel).send({ type: "broadcast", event, payload }),
  http_send: async ({ channel, event, payload }) => (await channels.get(channel).httpSend(event, payload)).success,
  track: ({ channel, payload }) => channels.get(channel).track(payload),
  untrack: ({ channel }) => channels.get(channel).untrack(),
  presence_state: ({ channel }) => channels.get(channel).presenceState(),
  state: ({ channel }) => channels.get(channel).state,
  set_auth: ({ client, token }) => clients.get(client).setAuth(token),
  unsubscribe: ({ channel }) => channels.get(channel).unsubscribe(),

  disconnect({ client }) {
    clients.get(client).disconnect(); // closes at once and looks after it every 150 ms: nothing to wait for
    clients.delete(client);
  },
};

async function obey(line) {
  const { id, command, ...rest } = decode(line);
  try {
    emit({ reply: id, value: (await commands[command](rest)) ?? null });
  } catch (error) {
    emit({ reply: id, failure: String(error) });
  }
}

readline.createInterface({ input: process.stdin }).on("line", obey).on("close", () => process.exit(0));
