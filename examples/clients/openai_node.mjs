// openai-node: unknown fields are sent as they are; in TypeScript, say `as any` or use `meet-client`.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.MEET_URL}/v1`, apiKey: process.env.MEET_API_KEY ?? "none" });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Why is the sky blue?" }];

const { data, response } = await client.chat.completions
  .create({ model, messages, max_tokens: 16, preference: { concise: 0.7, detailed: -0.5 } })
  .withResponse();
console.log("field:", response.headers.get("x-meet-preference"), "|", data.choices[0].message.content);

let text = "";
for await (const chunk of await client.chat.completions.create({
  model: `${model}:concise`, messages, max_tokens: 16, stream: true,
})) {
  text += chunk.choices[0]?.delta.content ?? "";
}
console.log("stream:", text);
