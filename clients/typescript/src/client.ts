/** The client. It only sends: requests and replies are made elsewhere. */
import OpenAI, { type ClientOptions } from "openai";
import type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatCompletionCreateParams,
} from "openai/resources/chat/completions";
import type { Stream } from "openai/streaming";

import { type PlacedText, repliesFrom, type Reply, ReplyStream } from "./reply.js";
import {
  apiUrl,
  type ChangedPreference,
  changeOf,
  chatOf,
  type Messages,
  pathOf,
  type Preference,
  type PreferenceChange,
  type PreferenceValue,
} from "./words.js";

/** Options of the SDK's client, and the model to ask: the first that the server lists, unless named. */
export interface MeetOptions extends ClientOptions {
  model?: string;
}

type SdkOptions = Omit<ChatCompletionCreateParams, "messages" | "model" | "stream">;

/** Options of the SDK's `chat.completions.create`, and which preference; left out, the server applies its default. */
export type ChatOptions = SdkOptions & { preference?: PreferenceValue };

type Extra = { preference?: PreferenceValue; preferences?: readonly PreferenceValue[] };

/** A client of one MEET server; `openai` is the SDK's client that it sends with. */
export class MeetClient {
  readonly openai: OpenAI;
  private model: string | undefined;

  constructor({ baseURL, apiKey, model, ...options }: MeetOptions = {}) {
    // Never OPENAI_API_KEY, which the SDK would fall back on: it is no business of this server's.
    this.openai = new OpenAI({
      ...options,
      baseURL: apiUrl(baseURL ?? "http://127.0.0.1:8000"),
      apiKey: apiKey ?? "none",
    });
    this.model = model;
  }

  /** The reply to a message, or to the last of several. */
  async chat(messages: Messages, options: ChatOptions = {}): Promise<Reply> {
    const { data, response } = await this.create<ChatCompletion>(messages, { ...options, stream: false });
    const reply = repliesFrom(data, response)[0];
    if (reply === undefined) throw new Error("the server's reply has no choices");
    return reply;
  }

  /** As `chat`, piece by piece as it is written. */
  async stream(messages: Messages, options: ChatOptions = {}): Promise<ReplyStream<string>> {
    const { data, response } = await this.create<Stream<ChatCompletionChunk>>(messages, { ...options, stream: true });
    return new ReplyStream(data, response, (_, text) => text);
  }

  /** One reply to the same message for each of `preferences`, in their order, from one request. */
  async chatEach(
    messages: Messages,
    preferences: readonly PreferenceValue[],
    options: SdkOptions = {},
  ): Promise<Reply[]> {
    const { data, response } = await this.create<ChatCompletion>(messages, { ...options, preferences, stream: false });
    return repliesFrom(data, response);
  }

  /** As `chatEach`, piece by piece as they are written. */
  async streamEach(
    messages: Messages,
    preferences: readonly PreferenceValue[],
    options: SdkOptions = {},
  ): Promise<ReplyStream<PlacedText>> {
    const asked = { ...options, preferences, stream: true };
    const { data, response } = await this.create<Stream<ChatCompletionChunk>>(messages, asked);
    return new ReplyStream(data, response, (index, text) => ({ index, text }));
  }

  /** What the server knows. */
  async preferences(): Promise<Preference[]> {
    const listing = await this.openai.get<{ data?: Preference[] }>("/preferences");
    if (!Array.isArray(listing.data)) throw new Error("the server lists no preferences: is it a MEET server?");
    return listing.data;
  }

  /** One of them, by its name or an alias. */
  async preference(name: string): Promise<Preference> {
    return await this.openai.get<Preference>(pathOf(name));
  }

  /** Adds the preference that a zip archive is of. This and the next two need an admin key. */
  async addPreference(archive: Uint8Array): Promise<ChangedPreference> {
    return await this.openai.post<ChangedPreference>("/preferences", changeOf(archive));
  }

  /** Gives it another control, a zip archive, or changes fields. */
  async changePreference(name: string, change: Uint8Array | PreferenceChange): Promise<ChangedPreference> {
    return await this.openai.patch<ChangedPreference>(pathOf(name), changeOf(change));
  }

  /** Removes it. */
  async removePreference(name: string): Promise<void> {
    await this.openai.delete(pathOf(name));
  }

  private async create<Answer>(
    messages: Messages,
    body: SdkOptions & Extra & { stream: boolean },
  ): Promise<{ data: Answer; response: Response }> {
    const request = { ...body, messages: chatOf(messages), model: await this.modelName() };
    const answer = await this.openai.chat.completions.create(request as ChatCompletionCreateParams).withResponse();
    return { data: answer.data as Answer, response: answer.response };
  }

  private async modelName(): Promise<string> {
    this.model ??= (await this.openai.models.list()).data[0]?.id;
    if (this.model === undefined) throw new Error("the server lists no models");
    return this.model;
  }
}
