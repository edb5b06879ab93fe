/* src/ as one file, ../rlcircuits/lab/viewer.js: `npm ci && npm run build`. A classic script, as a page opened from disk
   may load no module; its first line tells the hash of what it was made from. */

import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { build } from "esbuild";

const hash = createHash("sha256");
for (const name of readdirSync("src").sort()) hash.update(`${name}\n`).update(readFileSync(`src/${name}`));

await build({
  entryPoints: ["src/main.js"],
  outfile: process.argv[2] || "../rlcircuits/lab/viewer.js",
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "rlcViewer",
  charset: "utf8",
  target: "es2022",
  banner: { js: `/* rlcircuits' viewer (MIT), made by viewer/build.mjs from sources with sha256 ${hash.digest("hex")} */` },
});
