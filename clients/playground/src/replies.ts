/** Asking, and what has come back so far. */
import { useRef, useState } from "preact/hooks";

import { ask, type ChatRequest } from "./api";

export interface Reply {
  text: string;
  applied: string | null;
  finish: string | null;
  numTokens: number;
  firstTokenMs: number | null;
}

export const NOTHING: Reply = { text: "", applied: null, finish: null, numTokens: 0, firstTokenMs: null };

export interface Asking {
  replies: Reply[];
  busy: boolean;
  error: string | null;
  /** Asks; the replies as they were when all ended, or null where asking failed or was stopped. */
  send: (request: ChatRequest) => Promise<Reply[] | null>;
  stop: () => void;
  clear: () => void;
}

export function useAsking(apiKey: string): Asking {
  const [replies, setReplies] = useState<Reply[]>([]);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const running = useRef<AbortController | null>(null);

  const send = async (request: ChatRequest) => {
    const abort = (running.current = new AbortController());
    const started = performance.now();
    const current = Array.from({ length: request.preferences?.length ?? 1 }, () => NOTHING);
    setBusy(true);
    setError(null);
    setReplies(current);
    try {
      await ask(apiKey, request, abort.signal, (piece) => {
        const before = current[piece.index] ?? NOTHING;
        current[piece.index] = {
          text: before.text + piece.text,
          applied: piece.applied,
          finish: piece.finish ?? before.finish,
          numTokens: before.numTokens + piece.numTokens,
          firstTokenMs: before.firstTokenMs ?? (piece.numTokens || piece.text ? performance.now() - started : null),
        };
        setReplies([...current]);
      });
      return current;
    } catch (failure) {
      if (abort.signal.aborted) return current.some((reply) => reply.text) ? current : null;
      setError(failure instanceof Error ? failure.message : String(failure));
      return null;
    } finally {
      setBusy(false);
    }
  };
  return {
    replies,
    busy,
    error,
    send,
    stop: () => running.current?.abort(),
    clear: () => {
      setReplies([]);
      setError(null);
    },
  };
}
