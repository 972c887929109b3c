/** What both views are given. */
import type { Listing, PreferenceValue } from "./api";

export interface ViewProps {
  apiKey: string;
  listing: Listing;
  options: { max_tokens: number; temperature: number };
  preference: PreferenceValue;
}
