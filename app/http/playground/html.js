/**
 * Preact without a build step: `html` makes its elements from template strings.
 *
 * A text in an element is always text: nothing here, nor anything that a model writes, is parsed as
 * HTML, and the server's content security policy holds the page to it.
 */

import { h } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { render } from "./vendor/preact.js";
export { useEffect, useId, useMemo, useRef, useState } from "./vendor/hooks.js";

/** @type {(strings: TemplateStringsArray, ...values: any[]) => any} */
export const html = htm.bind(/** @type {any} */ (h));

/** @typedef {any} Element What `html` makes. */
