/** A request as code, to go on with elsewhere. A key is named and never written. */

import { hasKey } from "./server.js";

/** @typedef {import("./server.js").Json} Json */

const KEY_VARIABLE = "SOFTSERVE_API_KEY";

/**
 * @param {"curl" | "python"} language
 * @param {string} path
 * @param {Json} body
 */
export function codeFor(language, path, body) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  return { curl: asCurl, python: asPython }[language](url.href, body);
}

/** @param {string} url @param {Json} body */
function asCurl(url, body) {
  const lines = [
    `curl -s ${inShell(url)}`,
    "-H 'content-type: application/json'",
    ...(hasKey() ? [`-H "authorization: Bearer $${KEY_VARIABLE}"`] : []),
    `-d ${inShell(JSON.stringify(body))}`,
  ];
  return lines.join(" \\\n  ") + "\n";
}

/** @param {string} text */
function inShell(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** @param {string} url @param {Json} body */
function asPython(url, body) {
  const headers = hasKey()
    ? `    headers={"authorization": f"Bearer {os.environ['${KEY_VARIABLE}']}"},\n`
    : "";
  return `${hasKey() ? "import os\n\n" : ""}import httpx

response = httpx.post(
    ${JSON.stringify(url)},
    json=${inPython(body, 1)},
${headers}    timeout=300,
)
response.raise_for_status()
print(response.json())
`;
}

/**
 * A value as a Python literal.
 * @param {any} value
 * @param {number} depth
 * @returns {string}
 */
function inPython(value, depth) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((each) => inPython(each, depth)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const indent = "    ".repeat(depth);
  const fields = Object.entries(value).map(
    ([name, each]) => `${indent}    ${JSON.stringify(name)}: ${inPython(each, depth + 1)},\n`,
  );
  return `{\n${fields.join("")}${indent}}`;
}
