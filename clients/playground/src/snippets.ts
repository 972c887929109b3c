/** A request as code that can be run elsewhere. Never holds a key: it names a variable. Pure. */
import type { ChatRequest } from "./api";

export const LANGUAGES = ["curl", "Python", "TypeScript"] as const;
export type Language = (typeof LANGUAGES)[number];

export function snippet(language: Language, server: string, request: ChatRequest): string {
  return { curl, Python: python, TypeScript: typescript }[language](server, request);
}

function curl(server: string, request: ChatRequest): string {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return [
    `curl ${server}/v1/chat/completions -H 'content-type: application/json' \\`,
    `  -H "authorization: Bearer $MEET_API_KEY" -d '${body}'`,
  ].join("\n");
}

function python(server: string, { preference, preferences, ...options }: ChatRequest): string {
  const extra = preferences === undefined ? { preference } : { preferences };
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${server}/v1", api_key=os.environ.get("MEET_API_KEY", "none"))
reply = client.chat.completions.create(
${Object.entries(options)
  .map(([name, value]) => `    ${name}=${pythonValue(value)},`)
  .join("\n")}
    extra_body=${pythonValue(extra)},
)
for choice in reply.choices:
    print(choice.message.content)`;
}

function typescript(server: string, request: ChatRequest): string {
  // The SDK's types do not know the field; at run time it sends what it is given.
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${server}/v1", apiKey: process.env.MEET_API_KEY ?? "none" });
const request = ${JSON.stringify(request, null, 2)};
const reply = await client.chat.completions.create(request as OpenAI.ChatCompletionCreateParamsNonStreaming);
for (const choice of reply.choices) console.log(choice.message.content);`;
}

function pythonValue(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, inner]) => `${JSON.stringify(name)}: ${pythonValue(inner)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value);
}
