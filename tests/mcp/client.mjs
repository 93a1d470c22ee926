// The official TypeScript client against `mcp-host`: run as `node client.mjs COMMAND ARGUMENT...`.
//
// The tools that it expects are those of `tests/it/mcp_clients.rs`. It prints `ok` when all is as it should be,
// and ends with an error where something is not.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The packages are installed beside the build, not beside this file.
const require = createRequire(process.env.MCP_CLIENT_PACKAGES + "/");
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { Client } = await load("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = await load("@modelcontextprotocol/sdk/client/stdio.js");

const TOOLS = ["echo", "slow", "release", "never", "cancelled", "picture", "table", "fail"];
const LIMIT = setTimeout(() => {
  console.error("it took more than 30 seconds");
  process.exit(1);
}, 30_000);

const text = (result) => result.content.map((block) => block.text ?? "").join("");
const pause = () => new Promise((done) => setTimeout(done, 10));

const client = new Client({ name: "test", version: "1" });
const [command, ...args] = process.argv.slice(2);
await client.connect(new StdioClientTransport({ command, args }));
assert.equal(client.getServerVersion().name, "plexum-openai");
await client.ping();

const call = (name, args = {}, options) =>
  client.callTool({ name, arguments: args }, undefined, options);

const listed = await client.listTools();
assert.deepEqual(listed.tools.map((tool) => tool.name), TOOLS);
assert.equal(listed.nextCursor, undefined);
await assert.rejects(client.listTools({ cursor: "0-99" }), { code: -32602 });

// 50 calls beside one that is not answered before they all are. That one also asks for progress: this client
// drops what is told in one piece with the answer.
let released = false;
const told = [];
const slow = call("slow", {}, { onprogress: (progress) => told.push(progress) }).then((result) => {
  released = true;
  return result;
});
const echoes = await Promise.all(Array.from({ length: 50 }, (_, n) => call("echo", { n })));
echoes.forEach((result, n) => assert.deepEqual(JSON.parse(text(result)), { n }));
assert.equal(released, false);
await client.ping();
await call("release");
assert.equal(text(await slow), "released");
assert.deepEqual(told, [{ progress: 0, message: "slow is running" }]);

// What is cancelled reaches the daemon, and everything goes on.
const stop = new AbortController();
const never = call("never", {}, { signal: stop.signal });
const seen = async () => JSON.parse(text(await call("cancelled")));
while ((await seen()).never < 1) await pause();
stop.abort("enough");
await assert.rejects(never);
while ((await seen()).cancelled < 1) await pause();

const [picture] = (await call("picture")).content;
assert.deepEqual(picture, { type: "image", data: "iVBORw0KGgo=", mimeType: "image/png" });
const table = await call("table");
assert.deepEqual(table.structuredContent, { rows: [1, 2] });
assert.deepEqual(JSON.parse(text(table)), { rows: [1, 2] });
const failed = await call("fail");
assert.equal(failed.isError, true);
assert.equal(text(failed), "no such luck");
const gone = await call("gone");
assert.equal(gone.isError, true);
assert.match(text(gone), /no tool 'gone'/);
await assert.rejects(client.request({ method: "resources/list" }, { parse: (x) => x }));

await client.close();
clearTimeout(LIMIT);
console.log("ok");
