/** The words that go over the wire, as types, and what is made of them. Pure: sends nothing. */
import type { ChatCompletionMessageParam } from "openai/resources/chat/completions";

/** A label, several labels, a strength for each label, or null for an uncontrolled reply. */
export type PreferenceValue = string | readonly string[] | Readonly<Record<string, number>> | null;

/** The user's message, or all messages of a chat as OpenAI's API has them. */
export type Messages = string | readonly ChatCompletionMessageParam[];

/** What was measured of a preference: the median of an attribute at each strength. */
export interface Calibration {
  readonly attribute: string;
  readonly strengths: readonly number[];
  readonly medians: readonly number[];
  readonly recommended: number;
}

/** A preference that the server knows, as `GET /v1/preferences` describes it. */
export interface Preference {
  readonly id: string;
  readonly description: string;
  readonly aliases: readonly string[];
  readonly axis: string;
  readonly opposite: string | null;
  readonly default: boolean;
  readonly strength_range: readonly [number, number];
  readonly version: string;
  readonly trained_examples: number;
  readonly calibration: Calibration | null;
}

/** What may be changed of a preference; a field that is not given stays as it is. */
export interface PreferenceChange {
  description?: string;
  aliases?: string[];
  enabled?: boolean;
  /** The revision to serve again; 0 is the bundle's own. */
  revision?: number;
}

/** What a change answers: the preference as it is now. Of one that is disabled the server says no more than its name. */
export type ChangedPreference = Revised &
  ((Preference & { readonly enabled?: undefined }) | { readonly id: string; readonly enabled: false });

interface Revised {
  readonly revision: number;
  /** Of the whole registry: it grows by one with every change. */
  readonly generation: number;
}

export const APPLIED_HEADER = "X-Meet-Preference";

/** Messages as the API has them. */
export function chatOf(messages: Messages): ChatCompletionMessageParam[] {
  return typeof messages === "string" ? [{ role: "user", content: messages }] : [...messages];
}

/** The address of the API under a server's address; `/v1` at its end may be left out. */
export function apiUrl(baseURL: string): string {
  const bare = baseURL.replace(/\/+$/, "");
  return bare.endsWith("/v1") ? bare : `${bare}/v1`;
}

/** Where a preference stands under the API. */
export function pathOf(name: string): string {
  return `/preferences/${encodeURIComponent(name)}`;
}

/** Options of the SDK's `post` and `patch`: an archive as it is, fields as JSON. */
export function changeOf(change: Uint8Array | PreferenceChange): { body: unknown; headers?: Record<string, string> } {
  return change instanceof Uint8Array ? { body: change, headers: { "Content-Type": "application/zip" } } : { body: change };
}
