// Builds the page into the server's package, so that the wheel has it and nothing is fetched when it runs.
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  build: {
    outDir: "../../server/meet_server/page",
    emptyOutDir: true,
    modulePreload: false,
    rollupOptions: {
      output: { entryFileNames: "playground/page.js", assetFileNames: "playground/page[extname]" },
    },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
});
