/** Small parts that both views show. */
import type { ComponentChildren } from "preact";
import { useId, useState } from "preact/hooks";

import { type ChatRequest, SERVER } from "./api";
import type { Reply } from "./replies";
import { type Language, LANGUAGES, snippet } from "./snippets";

export function Facts({ reply }: { reply: Reply }) {
  if (reply.firstTokenMs === null) return null;
  return (
    <dl class="facts">
      <div>
        <dt>applied</dt>
        <dd>{reply.applied ?? "not said"}</dd>
      </div>
      <div>
        <dt>tokens</dt>
        <dd>{reply.numTokens}</dd>
      </div>
      <div>
        <dt>first token</dt>
        <dd>{Math.round(reply.firstTokenMs)} ms</dd>
      </div>
      {reply.finish && (
        <div>
          <dt>ended by</dt>
          <dd>{reply.finish}</dd>
        </div>
      )}
    </dl>
  );
}

interface PromptProps {
  label: string;
  busy: boolean;
  onSend: (text: string) => void;
  onStop: () => void;
  text: string;
  onText: (text: string) => void;
  children?: ComponentChildren;
}

export function Prompt({ label, busy, onSend, onStop, text, onText, children }: PromptProps) {
  const id = useId();
  const send = () => {
    if (!busy && text.trim()) onSend(text.trim());
  };
  return (
    <form
      class="prompt"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <label for={id}>{label}</label>
      <textarea
        id={id}
        rows={2}
        value={text}
        onInput={(event) => onText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            send();
          }
          if (event.key === "Escape") onStop();
        }}
      />
      <div class="row">
        {busy ? (
          <button type="button" onClick={onStop}>
            Stop
          </button>
        ) : (
          <button type="submit" class="main">
            Send
          </button>
        )}
        {children}
        <small>Enter sends, Shift+Enter breaks the line, Esc stops.</small>
      </div>
    </form>
  );
}

export function CopyAs({ request }: { request: ChatRequest }) {
  const id = useId();
  const [language, setLanguage] = useState<Language>("curl");
  const [copied, setCopied] = useState("");
  const code = snippet(language, SERVER, request);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(code);
      setCopied("copied");
    } catch {
      setCopied("the browser does not let this page copy: select the text"); // not on https or localhost
    }
  };
  return (
    <details class="copy">
      <summary>Copy as code</summary>
      <div class="row">
        <label for={id}>Language</label>
        <select
          id={id}
          value={language}
          onChange={(event) => {
            setLanguage(event.currentTarget.value as Language);
            setCopied("");
          }}
        >
          {LANGUAGES.map((each) => (
            <option key={each}>{each}</option>
          ))}
        </select>
        <button type="button" onClick={copy}>
          Copy
        </button>
        <span role="status">{copied}</span>
      </div>
      <pre tabindex={0} aria-label={`The request as ${language}`} role="region">
        {code}
      </pre>
    </details>
  );
}
