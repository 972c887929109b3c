/** Preferences and strengths, as the page holds and says them. Pure. */
import type { Calibration, Preference, PreferenceValue } from "./api";

export type Strengths = Record<string, number>;

/** A soft prompt has no strength: it is there or not. */
export function isSwitch(preference: Preference): boolean {
  const [low, high] = preference.strength_range;
  return low === high;
}

/** The default preference, if there is one, at the strength that is recommended. */
export function initial(preferences: Preference[]): Strengths {
  return Object.fromEntries(preferences.map((p) => [p.id, p.default ? (p.calibration?.recommended ?? 1) : 0]));
}

/** What the sliders ask for: null where all stand at zero. */
export function asked(preferences: Preference[], strengths: Strengths): PreferenceValue {
  const on = preferences.filter((p) => strengths[p.id]);
  if (on.length === 0) return null;
  if (on.every(isSwitch)) return on.map((p) => p.id);
  return Object.fromEntries(on.map((p) => [p.id, strengths[p.id] ?? 0]));
}

export function said(value: PreferenceValue): string {
  if (value === null) return "no control";
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.join(" + ");
  return Object.entries(value)
    .map(([name, strength]) => `${name} ${strength}`)
    .join(", ");
}

export function byAxis(preferences: Preference[]): [string, Preference[]][] {
  const axes = new Map<string, Preference[]>();
  for (const p of preferences) axes.set(p.axis, [...(axes.get(p.axis) ?? []), p]);
  return [...axes];
}

/** The measured median at a strength, on straight lines between what was measured; null outside of it. */
export function medianAt({ strengths, medians }: Calibration, strength: number): number | null {
  for (let i = 1; i < strengths.length; i++) {
    const [a, b] = [strengths[i - 1]!, strengths[i]!];
    if (strength >= a && strength <= b) {
      const share = b === a ? 0 : (strength - a) / (b - a);
      return medians[i - 1]! + share * (medians[i]! - medians[i - 1]!);
    }
  }
  return null;
}

/** A measured value in words: `231 words`, `50% list share`. */
export function measure(attribute: string, value: number): string {
  const name = attribute.replaceAll("_", " ");
  if (name.endsWith(" share")) return `${(100 * value).toFixed(0)}% ${name}`;
  return `${Math.abs(value) >= 10 ? value.toFixed(0) : value.toPrecision(2)} ${name}`;
}
