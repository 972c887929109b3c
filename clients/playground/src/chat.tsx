/** A chat, under the preferences that the sliders ask for. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";

import type { ChatRequest, Message } from "./api";
import { CopyAs, Facts, Prompt } from "./parts";
import { type Reply, useAsking } from "./replies";
import type { ViewProps } from "./view";

interface Turn {
  question: string;
  reply: Reply;
}

export function Chat({ apiKey, listing, options, preference }: ViewProps) {
  const [turns, setTurns] = useState<Turn[]>([]);
  const [question, setQuestion] = useState<string | null>(null);
  const [text, setText] = useState("");
  const asking = useAsking(apiKey);
  const log = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  // What comes is in sight, unless somebody has scrolled to what came before.
  useLayoutEffect(() => {
    if (atEnd.current) log.current!.scrollTop = log.current!.scrollHeight;
  });

  const requestOf = (asked: string): ChatRequest => {
    const before = turns.flatMap((turn): Message[] => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.reply.text },
    ]);
    const messages: Message[] = [...before, { role: "user", content: asked }];
    return { model: listing.model, messages, ...options, preference };
  };
  const send = async (asked: string) => {
    atEnd.current = true;
    setQuestion(asked);
    setText("");
    const replies = await asking.send(requestOf(asked));
    if (replies?.[0]) setTurns((before) => [...before, { question: asked, reply: replies[0]! }]);
    else setText((typed) => typed || asked);
    setQuestion(null);
  };
  return (
    <>
      <div
        class="log"
        role="log"
        aria-label="Chat"
        tabindex={0}
        ref={log}
        onScroll={({ currentTarget: { scrollHeight, clientHeight, scrollTop } }) => {
          atEnd.current = scrollHeight - clientHeight - scrollTop < 8;
        }}
      >
        {turns.length === 0 && question === null && <p>Set a preference, ask, then ask again with another.</p>}
        {turns.map((turn, index) => (
          <TurnShown key={index} question={turn.question} reply={turn.reply} />
        ))}
        {question !== null && asking.replies[0] && <TurnShown question={question} reply={asking.replies[0]} />}
      </div>
      {asking.error && <p role="alert">{asking.error}</p>}
      <Prompt label="Message" busy={asking.busy} onSend={send} onStop={asking.stop} text={text} onText={setText}>
        <button type="button" disabled={asking.busy || turns.length === 0} onClick={() => setTurns([])}>
          New chat
        </button>
      </Prompt>
      <CopyAs request={requestOf(text || turns.at(-1)?.question || "Why is the sky blue?")} />
    </>
  );
}

function TurnShown({ question, reply }: Turn) {
  return (
    <article>
      <p class="question">{question}</p>
      <p class="reply">{reply.text || "…"}</p>
      <Facts reply={reply} />
    </article>
  );
}
