// What a program that uses the client may say of its types: read by the compiler, and never run.
import type { MeetClient, Preference } from "../dist/index.js";

export async function typed(client: MeetClient): Promise<void> {
  const changed = await client.changePreference("formal", { enabled: false });
  changed.revision satisfies number;
  if (changed.enabled === false) {
    changed.id satisfies string;
    // @ts-expect-error The server says no more of a preference that is disabled.
    changed.version;
  } else {
    changed satisfies Preference;
  }
}
