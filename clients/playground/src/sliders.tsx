/** A slider per preference, by axis, with the measured curve behind it. */
import type { Calibration, Preference } from "./api";
import { byAxis, isSwitch, medianAt, measure, type Strengths } from "./preferences";

interface Props {
  preferences: Preference[];
  strengths: Strengths;
  onChange: (strengths: Strengths) => void;
}

export function Sliders({ preferences, strengths, onChange }: Props) {
  const set = (name: string, strength: number) => onChange({ ...strengths, [name]: strength });
  return (
    <section class="sliders" aria-label="Preferences">
      {byAxis(preferences).map(([axis, ends]) => (
        <fieldset key={axis}>
          <legend>{axis || "other"}</legend>
          {ends.map((p) =>
            isSwitch(p) ? (
              <label class="switch" key={p.id}>
                <input
                  type="checkbox"
                  checked={Boolean(strengths[p.id])}
                  onChange={(event) => set(p.id, event.currentTarget.checked ? 1 : 0)}
                />
                {p.id} <small>{p.description}</small>
              </label>
            ) : (
              <Slider key={p.id} preference={p} strength={strengths[p.id] ?? 0} onChange={(to) => set(p.id, to)} />
            ),
          )}
        </fieldset>
      ))}
      <button type="button" onClick={() => onChange({})}>
        No control
      </button>
    </section>
  );
}

function Slider(props: { preference: Preference; strength: number; onChange: (strength: number) => void }) {
  const { preference, strength, onChange } = props;
  const { id, description, calibration, strength_range } = preference;
  const [low, high] = strength_range;
  const median = calibration && medianAt(calibration, strength);
  const measured = median === null ? "" : `about ${measure(calibration!.attribute, median)}`;
  return (
    <div class="slider">
      <label for={`strength-${id}`}>
        <strong>{id}</strong>
      </label>
      <output for={`strength-${id}`}>
        {strength.toFixed(2)}
        {measured && <small> {measured}</small>}
      </output>
      <small class="description" id={`description-${id}`}>
        {description}
      </small>
      <div class="track">
        {calibration && <Curve calibration={calibration} low={low} high={high} at={strength} />}
        <input
          id={`strength-${id}`}
          type="range"
          min={low}
          max={high}
          step={0.05}
          value={strength}
          aria-describedby={`description-${id}`}
          aria-valuetext={`${strength.toFixed(2)}${measured && `, ${measured}`}`}
          onInput={(event) => onChange(Number(event.currentTarget.value))}
        />
      </div>
    </div>
  );
}

function Curve(props: { calibration: Calibration; low: number; high: number; at: number }) {
  const { calibration, low, high, at } = props;
  const top = Math.max(...calibration.medians, calibration.attribute.endsWith("_share") ? 1 : 1e-9);
  const x = (strength: number) => (100 * (strength - low)) / (high - low);
  const y = (median: number) => 38 - (34 * median) / top;
  const inside = calibration.strengths
    .map((strength, i) => [x(strength), y(calibration.medians[i] ?? 0)] as const)
    .filter(([place]) => place >= 0 && place <= 100);
  if (inside.length < 2) return null;
  const line = inside.map((point) => point.join(",")).join(" ");
  const median = medianAt(calibration, at);
  return (
    <svg class="curve" viewBox="0 0 100 40" preserveAspectRatio="none" aria-hidden="true">
      <polygon points={`${inside[0]![0]},40 ${line} ${inside.at(-1)![0]},40`} />
      <polyline points={line} />
      {median !== null && <line x1={x(at)} x2={x(at)} y1={y(median)} y2={40} />}
    </svg>
  );
}
