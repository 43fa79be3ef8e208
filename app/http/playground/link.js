/** What is set is in the page's address, so that a link carries it. The key never is. */

/** @typedef {import("./server.js").Json} Json */

/**
 * What the address says; of what it does not say, what is given.
 * @param {Json} initial the state without a link
 * @param {Json} least what each part of it has to have
 * @returns {Json}
 */
export function readLink(initial, least) {
  try {
    return {
      ...initial,
      ...fitting(JSON.parse(decodeURIComponent(location.hash.slice(1))), least),
    };
  } catch {
    // No link, or one that was cut: the page begins as it does without.
    return initial;
  }
}

/**
 * A link is anybody's: what is of another kind than it has to be is left out.
 * @param {Json} said
 * @param {Json} least
 * @returns {Json}
 */
function fitting(said, least) {
  const parts = Object.entries(said).filter(
    ([name, value]) => !(name in least) || kindOf(value) === kindOf(least[name]),
  );
  return Object.fromEntries(
    parts.map(([name, value]) => [
      name,
      kindOf(least[name]) === "object" ? { ...least[name], ...fitting(value, least[name]) } : value,
    ]),
  );
}

/** @param {unknown} value */
function kindOf(value) {
  return Array.isArray(value) ? "array" : typeof value;
}

/** @param {Json} state */
export function writeLink(state) {
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(state))}`);
}
