// Vercel's AI SDK: options under the provider's name go into the body.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const baseURL = `${process.env.MEET_URL}/v1`;
const apiKey = process.env.MEET_API_KEY ?? "none";
const meet = createOpenAICompatible({ name: "meet", baseURL, apiKey });
const models = await (await fetch(`${baseURL}/models`, { headers: { authorization: `Bearer ${apiKey}` } })).json();
const model = models.data[0].id;
const ask = { prompt: "Why is the sky blue?", maxOutputTokens: 16, maxRetries: 0 };

const { text, response } = await generateText({
  model: meet(model), ...ask, providerOptions: { meet: { preference: { concise: 0.7 } } },
});
console.log("field:", response.headers["x-meet-preference"], "|", text);

let streamed = "";
for await (const piece of streamText({ model: meet(`${model}:detailed`), ...ask }).textStream) streamed += piece;
console.log("stream:", streamed);
