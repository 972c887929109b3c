/** Two to four preferences side by side on one prompt, from one request. */
import { useState } from "preact/hooks";

import type { ChatRequest, PreferenceValue } from "./api";
import { CopyAs, Facts, Prompt } from "./parts";
import { said } from "./preferences";
import { NOTHING, useAsking } from "./replies";
import type { ViewProps } from "./view";

const NONE = "none"; // no preference can be called so
const MIX = "=sliders"; // nor so

export function Compare({ apiKey, listing, options, preference }: ViewProps) {
  const names = listing.preferences.map((p) => p.id);
  const [columns, setColumns] = useState([names[0] ?? NONE, names[1] ?? NONE]);
  const [text, setText] = useState("");
  const [last, setLast] = useState("Why is the sky blue?");
  const asking = useAsking(apiKey);

  const valueOf = (column: string): PreferenceValue => (column === NONE ? null : column === MIX ? preference : column);
  const requestOf = (asked: string): ChatRequest => ({
    model: listing.model,
    messages: [{ role: "user", content: asked }],
    ...options,
    preferences: columns.map(valueOf),
  });
  const change = (to: string[]) => {
    setColumns(to);
    asking.clear();
  };
  return (
    <>
      <Prompt
        label="Prompt for all"
        busy={asking.busy}
        onSend={(asked) => {
          setLast(asked);
          void asking.send(requestOf(asked));
        }}
        onStop={asking.stop}
        text={text}
        onText={setText}
      >
        <button
          type="button"
          disabled={asking.busy || columns.length === 4}
          onClick={() => change([...columns, names.find((name) => !columns.includes(name)) ?? NONE])}
        >
          Add a column
        </button>
        <button type="button" disabled={asking.busy || columns.length === 2} onClick={() => change(columns.slice(0, -1))}>
          Remove the last
        </button>
      </Prompt>
      {asking.error && <p role="alert">{asking.error}</p>}
      <div class="columns">
        {columns.map((column, index) => (
          <section key={index} aria-label={`Column ${index + 1}`} aria-busy={asking.busy}>
            <label for={`column-${index}`}>Preference {index + 1}</label>
            <select
              id={`column-${index}`}
              value={column}
              disabled={asking.busy}
              onChange={(event) => change(columns.map((each, i) => (i === index ? event.currentTarget.value : each)))}
            >
              <option value={NONE}>no control</option>
              {names.map((name) => (
                <option key={name}>{name}</option>
              ))}
              <option value={MIX}>the sliders: {said(preference)}</option>
            </select>
            <p class="reply">{asking.replies[index]?.text}</p>
            <Facts reply={asking.replies[index] ?? NOTHING} />
          </section>
        ))}
      </div>
      <CopyAs request={requestOf(text || last)} />
    </>
  );
}
