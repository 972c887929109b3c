// Writes which sources the page was built from; a test compares, so that a stale page is seen without node.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

const sources = ["index.html", "package-lock.json", "tsconfig.json", "vite.config.js"];
sources.push(...readdirSync("src").map((name) => `src/${name}`));
const digest = createHash("sha256");
for (const name of sources.sort()) digest.update(`${name}\0`).update(readFileSync(name)).update("\0");
writeFileSync("../../server/meet_server/page/sources.sha256", `${digest.digest("hex")}\n`);
