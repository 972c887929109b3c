/** The page: a key where one is needed, two views, and the sliders beside them. */
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { list, type Listing } from "./api";
import { Chat } from "./chat";
import { Compare } from "./compare";
import { asked, initial, said, type Strengths } from "./preferences";
import { Sliders } from "./sliders";
import "./style.css";

const VIEWS = { Chat, "Side by side": Compare };
type View = keyof typeof VIEWS;

function Page() {
  const [apiKey, setKey] = useState(""); // in memory only: gone with the page
  const [listing, setListing] = useState<Listing | null>(null);
  const [error, setError] = useState<string | null>(null);
  const [strengths, setStrengths] = useState<Strengths>({});
  const [options, setOptions] = useState({ max_tokens: 256, temperature: 0.7 });
  const [view, setView] = useState<View>("Chat");

  const load = async () => {
    try {
      const found = await list(apiKey);
      setListing(found);
      if (!listing) setStrengths(initial(found.preferences)); // later they are what somebody chose
      setError(null);
    } catch (failure) {
      setError(failure instanceof Error ? failure.message : String(failure));
    }
  };
  useEffect(() => void load(), []);

  const preference = listing ? asked(listing.preferences, strengths) : null;
  return (
    <>
      <header>
        <h1>MEET{listing && <small> {listing.model}</small>}</h1>
        <nav aria-label="Views">
          {(Object.keys(VIEWS) as View[]).map((each) => (
            <button key={each} type="button" aria-pressed={each === view} onClick={() => setView(each)}>
              {each}
            </button>
          ))}
        </nav>
      </header>
      <main>
        <div class="view">
          {error && <p role="alert">{error}</p>}
          {listing &&
            Object.entries(VIEWS).map(([each, View]) => (
              // Both stay, so that what is in one outlives a look at the other.
              <div class="view" key={each} hidden={each !== view}>
                <View apiKey={apiKey} listing={listing} options={options} preference={preference} />
              </div>
            ))}
        </div>
        <aside aria-label="Settings">
          {listing && (
            <>
              <h2>Preferences</h2>
              <p class="asked" aria-live="polite">
                Asks for: {said(preference)}
              </p>
              <Sliders preferences={listing.preferences} strengths={strengths} onChange={setStrengths} />
            </>
          )}
          <h2>Request</h2>
          <form
            class="settings"
            onSubmit={(event) => {
              event.preventDefault();
              void load();
            }}
          >
            <Number label="Tokens at most" min={1} max={8192} step={1} value={options.max_tokens}
              onChange={(max_tokens) => setOptions({ ...options, max_tokens })} />
            <Number label="Temperature" min={0} max={2} step={0.1} value={options.temperature}
              onChange={(temperature) => setOptions({ ...options, temperature })} />
            <label>
              Key <small>kept in memory only</small>
              <input
                type="password"
                autocomplete="off"
                value={apiKey}
                onInput={(event) => setKey(event.currentTarget.value)}
              />
            </label>
            <button type="submit">Use the key</button>
          </form>
        </aside>
      </main>
    </>
  );
}

interface NumberProps {
  label: string;
  min: number;
  max: number;
  step: number;
  value: number;
  onChange: (value: number) => void;
}

function Number({ label, value, onChange, ...rest }: NumberProps) {
  return (
    <label>
      {label}
      {/* Its text is the browser's own: put back as a number, a point that was just typed would be lost. */}
      <input
        type="number"
        required
        {...rest}
        defaultValue={String(value)}
        onInput={(event) => onChange(event.currentTarget.valueAsNumber || 0)}
      />
    </label>
  );
}

render(<Page />, document.getElementById("page")!);
