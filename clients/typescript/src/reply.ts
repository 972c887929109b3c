/** What comes back: a whole reply, or one piece after another. Knows the SDK's types and no addresses. */
import type { ChatCompletion, ChatCompletionChunk } from "openai/resources/chat/completions";
import type { Stream } from "openai/streaming";

import { APPLIED_HEADER } from "./words.js";

/** A reply. `applied` is what the server says it applied; null where it is no MEET server. */
export interface Reply {
  readonly text: string;
  readonly applied: string | null;
  readonly finishReason: string | null;
  readonly completion: ChatCompletion;
}

/** Some text of the reply that stands at `index` among several. */
export interface PlacedText {
  readonly index: number;
  readonly text: string;
}

/** Every choice of a completion, in order. Each of several says what was applied; one has it in the header. */
export function repliesFrom(completion: ChatCompletion, response: Response): Reply[] {
  const ordered = [...completion.choices].sort((a, b) => a.index - b.index);
  return ordered.map((choice) => ({
    text: choice.message.content ?? "",
    applied: ("preference" in choice ? String(choice.preference) : null) ?? response.headers.get(APPLIED_HEADER),
    finishReason: choice.finish_reason,
    completion,
  }));
}

/**
 * A reply as it is written: `for await` gives its pieces. `applied` is known before the first one.
 * Leaving the loop early, or `close`, ends the request, and generation with it.
 */
export class ReplyStream<Piece> implements AsyncIterable<Piece> {
  readonly applied: string | null;

  constructor(
    private readonly stream: Stream<ChatCompletionChunk>,
    response: Response,
    private readonly read: (index: number, text: string) => Piece,
  ) {
    this.applied = response.headers.get(APPLIED_HEADER);
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Piece> {
    for await (const chunk of this.stream) {
      const choice = chunk.choices[0];
      if (choice?.delta.content) yield this.read(choice.index, choice.delta.content);
    }
  }

  close(): void {
    this.stream.controller.abort();
  }
}
