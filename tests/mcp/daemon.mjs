// The official TypeScript client as the plugin's daemon: run as `node daemon.mjs WORKSPACE COMMAND ARGUMENT...`.
//
// Its codex is the script of `tests/it/mcp_clients.rs`. It prints `ok` when all is as it should be, and ends with an
// error where something is not.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages are installed beside the build, not beside this file.
const require = createRequire(process.env.MCP_CLIENT_PACKAGES + "/");
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = await load("@modelcontextprotocol/sdk/client/stdio.js");
const { LoggingMessageNotificationSchema } = await load("@modelcontextprotocol/sdk/types.js");
const { z } = await load("zod");

const LIMIT = setTimeout(() => {
  console.error("it took more than 30 seconds");
  process.exit(1);
}, 30_000);

const [workspace, command, ...args] = process.argv.slice(2);
const client = new Client({ name: "test", version: "1" });

const events = [];
const logs = [];
const calls = [];
const waiting = [];
const look = () => waiting.forEach((wake) => wake());
const waitFor = (done) =>
  new Promise((resolve) => {
    const wake = () => {
      if (done()) {
        waiting.splice(waiting.indexOf(wake), 1);
        resolve();
      }
    };
    waiting.push(wake);
    wake();
  });
const has = (members) => () =>
  events.some((event) => Object.entries(members).every(([name, value]) => event[name] === value));

const event = z.object({ type: z.string() }).passthrough();
client.setNotificationHandler(
  z.object({
    method: z.literal("notifications/plexum/provider/event"),
    params: z.object({ stream: z.number(), event }),
  }),
  ({ params }) => {
    events.push(params.event);
    look();
  },
);
client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => {
  logs.push(params);
  look();
});
client.setRequestHandler(
  z.object({
    method: z.literal("plexum/host/tool/call"),
    params: z.object({ name: z.string(), arguments: z.any(), _meta: z.any() }),
  }),
  ({ params }) => {
    calls.push(params);
    return { content: [{ type: "text", text: "sent" }], isError: false };
  },
);

const transport = new StdioClientTransport({ command, args, env: process.env });
await client.connect(transport);
assert.equal(client.getServerVersion().name, "plexum-openai-provider");
const { contract, manifest } = client.getServerCapabilities().experimental.plexum;
assert.equal(contract, 2);
assert.deepEqual(manifest.contracts.provider.models, ["codex", "codex-mini"]);
await client.ping();

const stream = (text, tools, options) =>
  client.request(
    {
      method: "plexum/provider/stream",
      params: {
        agent: { id: "alice", workspace },
        request: { messages: [{ role: "user", content: text }], tools },
      },
    },
    z.object({ stop_reason: z.string() }).passthrough(),
    options,
  );

const result = await stream("Hello", []);
assert.equal(result.stop_reason, "end_turn");
assert.equal(result.thread_state, "new");
await waitFor(has({ type: "message_end", stop_reason: "end_turn" }));
const types = events.map((event) => event.type);
assert.deepEqual(types, ["message_start", "text_delta", "message_end"]);
assert.equal(events[1].text, "Hello.");
assert.deepEqual(logs, []);

// The turn's debug lines are told once they are asked for.
await client.setLoggingLevel("debug");
events.length = 0;
const stop = new AbortController();
const running = stream("Work", [], { signal: stop.signal });
await waitFor(has({ type: "text_delta", text: "At work." }));
await waitFor(() => logs.some((log) => log.level === "debug"));
assert.ok(logs.every((log) => log.logger === "plexum-openai"));
await client.ping();
stop.abort("enough");
await assert.rejects(running);
await waitFor(has({ type: "message_end", stop_reason: "cancelled" }));

// A request of the plugin's own.
events.length = 0;
await stream("Send", [{ name: "fabric_send" }]);
await waitFor(has({ type: "message_end", stop_reason: "end_turn" }));
assert.ok(has({ type: "text_delta", text: "sent" })(), JSON.stringify(events));
assert.equal(calls.length, 1);
assert.equal(calls[0].name, "fabric_send");
assert.equal(calls[0]._meta.agent_id, "alice");

await assert.rejects(client.request({ method: "plexum/nothing" }, z.any()), { code: -32601 });
await client.close();
clearTimeout(LIMIT);
console.log("ok");
