/**
 * Asks a MEET server for a preference: a thin layer on the `openai` package, for Node and browsers.
 *
 *     const client = new MeetClient({ baseURL: "http://127.0.0.1:8000" });
 *     (await client.chat("Why is the sky blue?", { preference: "concise" })).text;
 *
 * Errors are those of the SDK: `APIConnectionError`, `BadRequestError` and their kin.
 */
export { MeetClient } from "./client.js";
export type { ChatOptions, MeetOptions } from "./client.js";
export { ReplyStream } from "./reply.js";
export type { PlacedText, Reply } from "./reply.js";
export type {
  Calibration,
  ChangedPreference,
  Messages,
  Preference,
  PreferenceChange,
  PreferenceValue,
} from "./words.js";
