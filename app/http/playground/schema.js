/**
 * The controls, as the server's OpenAPI document describes them: a field that is new there has its
 * control here, with its meaning and its limits. Only what a schema does not say is in this file.
 */

import { call } from "./server.js";

/**
 * @typedef {object} ControlField
 * @property {string} name
 * @property {"number" | "boolean" | "text" | "texts" | "json"} kind
 * @property {string} description
 * @property {number | boolean | null} neutral what has no effect
 * @property {[number, number] | null} range of the slider
 * @property {number} step
 * @property {number | undefined} minimum
 * @property {number | undefined} maximum
 */

/** The families of controls, in the order in which they are shown. */
export const GROUPS = [
  {
    title: "Randomness",
    names: ["temperature", "top_k", "top_p", "min_p", "seed", "n"],
  },
  {
    title: "Length and end",
    names: ["max_new_tokens", "min_new_tokens", "stop", "ignore_eos"],
  },
  {
    title: "Repetition",
    names: ["repetition_penalty", "presence_penalty", "frequency_penalty"],
  },
  { title: "Beam search", names: ["num_beams", "length_penalty", "early_stopping"] },
  { title: "Structure", names: ["choice", "regex", "json_schema"] },
  { title: "Scheduling", names: ["timeout_seconds", "priority"] },
];
/** The controls that shape the next token's distribution, in the engine's order. */
export const FILTERS = ["temperature", "min_p", "top_k", "top_p"];

/** Where a slider is useful, in limits that are narrower than the schema's, or that it has not. */
/** @type {Record<string, [number, number]>} */
const RANGES = {
  top_k: [1, 100],
  n: [1, 8],
  max_new_tokens: [1, 512],
  min_new_tokens: [0, 128],
  repetition_penalty: [0.5, 2],
};

/** @returns {Promise<Record<string, ControlField>>} */
export async function loadControls() {
  const { GenerateBody, Sampling } = (await call("GET", "openapi.json")).components.schemas;
  const names = GROUPS.flatMap((group) => group.names);
  return Object.fromEntries(
    names.map((name) => [
      name,
      fieldOf(name, GenerateBody.properties[name], Sampling.properties[name]),
    ]),
  );
}

/**
 * @param {string} name
 * @param {any} property of the body
 * @param {any} effective the same control among those in effect, if it is one
 * @returns {ControlField}
 */
function fieldOf(name, property, effective) {
  const kinds = property.anyOf ?? [property];
  const { type, minimum, maximum, exclusiveMinimum } = kinds[0];
  const isWhole = type === "integer";
  const step = isWhole ? 1 : 0.01;
  const least = minimum ?? (exclusiveMinimum === undefined ? undefined : exclusiveMinimum + step);
  const hasRange = least !== undefined && maximum !== undefined && maximum - least <= 20;
  return {
    name,
    kind: kindOf(kinds.map((/** @type {any} */ kind) => kind.type)),
    description: property.description,
    neutral: effective?.default ?? property.default ?? null,
    range: RANGES[name] ?? (hasRange ? [least, maximum] : null),
    step,
    minimum: least,
    maximum,
  };
}

/**
 * How a control is shown, by the types that its value may have.
 * @param {string[]} types
 * @returns {ControlField["kind"]}
 */
function kindOf(types) {
  if (types.includes("boolean")) return "boolean";
  if (types.includes("array")) return "texts";
  if (types.includes("string")) return "text";
  if (types.includes("object")) return "json";
  return "number";
}
