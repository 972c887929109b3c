// Against the server at MEET_URL, whose bundle has `concise` and `detailed`; the project's tests start one.
import assert from "node:assert/strict";
import test from "node:test";

import { BadRequestError, NotFoundError } from "openai";

import { MeetClient } from "../dist/index.js";

const baseURL = process.env.MEET_URL;
assert.ok(baseURL, "MEET_URL is not set");
const client = new MeetClient({ baseURL, maxRetries: 0 });
const question = "What is rain?";
const options = { max_tokens: 8, temperature: 0 };

test("a reply says what was applied", async () => {
  const reply = await client.chat(question, { ...options, preference: "concise" });
  assert.match(reply.applied, /^concise=1; version=[0-9a-f]{12}$/);
  assert.equal(reply.completion.usage.completion_tokens, 8);
  assert.equal(reply.finishReason, "length");
});

test("mixes, strengths and no control", async () => {
  const mixed = await client.chat(question, { ...options, preference: { concise: 0.7, detailed: -0.5 } });
  assert.match(mixed.applied, /^concise=0\.7,detailed=-0\.5; version=/);
  const none = await client.chat([{ role: "user", content: question }], { ...options, preference: null });
  assert.equal(none.applied, "none");
  const left = await client.chat(question, options);
  assert.equal(left.text, none.text);
});

test("a stream has the pieces of the whole reply", async () => {
  const whole = await client.chat(question, { ...options, preference: "detailed" });
  const stream = await client.stream(question, { ...options, preference: "detailed" });
  assert.equal(stream.applied, whole.applied);
  let text = "";
  for await (const piece of stream) text += piece;
  assert.equal(text, whole.text);
});

test("a stream may be left", async () => {
  const stream = await client.stream(question, { ...options, max_tokens: 200, preference: "detailed" });
  for await (const piece of stream) {
    assert.ok(piece);
    break;
  }
  const other = await client.stream(question, { ...options, max_tokens: 200 });
  other.close();
});

test("one reply for each preference, whole and streaming", async () => {
  const asked = ["concise", null, { detailed: 0.5 }];
  const replies = await client.chatEach(question, asked, options);
  assert.deepEqual(
    replies.map((reply) => reply.applied),
    ["concise=1", "none", "detailed=0.5"],
  );
  const texts = ["", "", ""];
  for await (const { index, text } of await client.streamEach(question, asked, options)) texts[index] += text;
  assert.deepEqual(
    texts,
    replies.map((reply) => reply.text),
  );
});

test("preferences are listed", async () => {
  const [concise, detailed] = await client.preferences();
  assert.equal(concise.id, "concise");
  assert.deepEqual(detailed.aliases, (await client.preference("detailed")).aliases);
  await assert.rejects(client.preference("a/b?c"), NotFoundError);
});

test("errors are those of the SDK", async () => {
  await assert.rejects(
    client.chat(question, { preference: "terse" }),
    (error) => error instanceof BadRequestError && error.code === "unknown_preference",
  );
});

test("changes go as the server wants them", async () => {
  const sent = [];
  const fetch = async (url, { method, headers, body }) => {
    sent.push([method, new URL(url).pathname, new Headers(headers).get("content-type"), body]);
    return Response.json({ id: "added" });
  };
  const admin = new MeetClient({ baseURL, apiKey: "admin", fetch });
  const archive = new Uint8Array([80, 75]);
  assert.equal((await admin.addPreference(archive)).id, "added");
  await admin.changePreference("added", { enabled: false });
  await admin.removePreference("added");
  assert.deepEqual(sent.map((each) => each.slice(0, 3)), [
    ["POST", "/v1/preferences", "application/zip"],
    ["PATCH", "/v1/preferences/added", "application/json"],
    ["DELETE", "/v1/preferences/added", null],
  ]);
  assert.deepEqual(new Uint8Array(await new Response(sent[0][3]).arrayBuffer()), archive);
  assert.equal(sent[1][3], '{"enabled":false}');
});
