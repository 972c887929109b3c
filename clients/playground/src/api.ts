/** What the page asks of the server. Knows the wire, and nothing of what is shown. */

export interface Calibration {
  attribute: string;
  strengths: number[];
  medians: number[];
  recommended: number;
}

export interface Preference {
  id: string;
  description: string;
  axis: string;
  opposite: string | null;
  default: boolean;
  strength_range: [number, number];
  calibration: Calibration | null;
}

export type PreferenceValue = string | string[] | Record<string, number> | null;

export interface Message {
  role: "user" | "assistant";
  content: string;
}

/** The body of a chat completion; `preference` for one reply, `preferences` for one each. */
export interface ChatRequest {
  model: string;
  messages: Message[];
  max_tokens: number;
  temperature: number;
  preference?: PreferenceValue;
  preferences?: PreferenceValue[];
}

/** A piece of the reply at `index`. */
export interface Piece {
  index: number;
  text: string;
  numTokens: number;
  finish: string | null;
  applied: string | null;
}

export interface Listing {
  model: string;
  preferences: Preference[];
}

/** The server's address: where the page lies, which behind a proxy may be a path. */
export const SERVER = location.origin + location.pathname.replace(/\/[^/]*$/, "");

function headers(key: string): Record<string, string> {
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function answered(response: Response): Promise<Response> {
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    const error = JSON.parse(text).error;
    message = error?.message ?? error ?? text;
  } catch {
    // Not JSON: some proxy's words.
  }
  throw new Error(`${response.status}: ${message || response.statusText}`);
}

/** The first model and all preferences. */
export async function list(key: string): Promise<Listing> {
  const get = async (path: string) => (await answered(await fetch(SERVER + path, { headers: headers(key) }))).json();
  const [models, preferences] = await Promise.all([get("/v1/models"), get("/v1/preferences")]);
  return { model: models.data[0].id, preferences: preferences.data };
}

/** Streams a reply, or several: `onPiece` gets every piece as it comes. */
export async function ask(
  key: string,
  request: ChatRequest,
  signal: AbortSignal,
  onPiece: (piece: Piece) => void,
): Promise<void> {
  // `return_token_ids` is vLLM's: an event may hold several tokens, and only their ids count them.
  const body = JSON.stringify({ ...request, stream: true, return_token_ids: true });
  const sent = fetch(`${SERVER}/v1/chat/completions`, { method: "POST", headers: headers(key), body, signal });
  const response = await answered(await sent);
  const applied = response.headers.get("x-meet-preference");
  for await (const data of events(response)) {
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message ?? String(event.error));
    for (const choice of event.choices) {
      onPiece({
        index: choice.index,
        text: choice.delta.content ?? "",
        numTokens: choice.token_ids?.length ?? 0,
        finish: choice.finish_reason,
        applied: choice.preference ?? applied,
      });
    }
  }
}

async function* events(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop() ?? "";
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : ""; // else a comment, or the end of an event
      if (data && data !== "[DONE]") yield data;
    }
  }
}
