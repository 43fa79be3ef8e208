/** Inspect: what the controls do to the next token, while they move. */

import { codeFor } from "../code.js";
import { html } from "../html.js";
import { useLatest } from "../latest.js";
import {
  AdapterFields,
  ControlList,
  CopyButton,
  ErrorLine,
  given,
  percent,
  PROMPT_FIELDS,
  PromptFields,
} from "../parts.js";
import { FILTERS } from "../schema.js";
import { Bar, quoted } from "../tokens.js";

/** @typedef {import("../server.js").Json} Json */

const NUM_TOKENS = 24;
const FIELDS = [...PROMPT_FIELDS, "adapter", "soft_prompt", ...FILTERS];

/** @param {import("../app.js").ViewProps} props */
export function Inspect({ info, request, change, controls, adapters }) {
  const asked = given(Object.fromEntries(FIELDS.map((name) => [name, request[name]])));
  const { answer, error } = useLatest("inspect", {
    ...asked,
    num_tokens: NUM_TOKENS,
  });
  return html`
    <div class="view split inspect">
      <div class="main">
        <${PromptFields} info=${info} request=${request} change=${change} error=${error} />
        <${AdapterFields} request=${request} adapters=${adapters} change=${change} error=${error} />
        <${ErrorLine} error=${error} />
      </div>
      <aside aria-label="Controls">
        <${ControlList}
          names=${FILTERS}
          controls=${controls}
          request=${request}
          change=${change}
          error=${error}
        />
        <div class="actions">
          <${CopyButton}
            label="Copy as curl"
            text=${() => codeFor("curl", "inspect", asked)}
          />
          <${CopyButton}
            label="Copy as Python"
            text=${() => codeFor("python", "inspect", asked)}
          />
        </div>
      </aside>
      ${answer && html`<${Distribution} answer=${answer} />`}
    </div>
  `;
}

/**
 * A row for each of the likeliest tokens: what the model gives it, what temperature makes of it,
 * and what is left after the filters.
 * @param {{answer: Json}} props
 */
function Distribution({ answer }) {
  const { tokens, num_surviving, surviving_mass, vocabulary_size, sampling } = answer;
  const largest = Math.max(
    ...tokens.flatMap((/** @type {any} */ each) => [
      each.probability,
      each.after_temperature,
      each.final,
    ]),
  );
  const scale = Math.ceil(largest * 10) / 10;
  return html`
    <section class="distribution" aria-label="The next token">
      <p role="status">
        <strong>${num_surviving.toLocaleString("en")}</strong>
        ${` of ${vocabulary_size.toLocaleString("en")} tokens can be sampled`}
        ${
          sampling.greedy
            ? ": decoding is greedy, raise the temperature to sample."
            : html`; after temperature they hold${" "}
              <strong>${percent(surviving_mass)}</strong> of the probability.`
        }
      </p>
      <p class="help">
        <span class="legend raw">model</span>
        <span class="legend tempered">after temperature</span>
        <span class="legend final">sampled</span>
      </p>
      <div class="scroll" tabindex="0" role="region" aria-label="The likeliest tokens">
        <table>
          <thead>
            <tr>
              <th scope="col">Token</th>
              <td></td>
              <th scope="col" class="number detail">Model</th>
              <th scope="col" class="number detail">Temperature</th>
              <th scope="col" class="number">Sampled</th>
            </tr>
          </thead>
          <tbody>
            ${tokens.map((/** @type {Json} */ each) => html`<${Row} key=${each.token_id} fate=${each} scale=${scale} />`)}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

/** @param {{fate: Json, scale: number}} props */
function Row({ fate, scale }) {
  const removedBy = Object.entries(fate.kept_by).find(([, kept]) => kept === false)?.[0];
  const isOut = fate.final === 0;
  return html`
    <tr class=${isOut ? "out" : ""}>
      <th scope="row"><code>${quoted(fate.token)}</code></th>
      <td class="bars">
        <${Bar} share=${fate.probability} of=${scale} kind="raw" />
        <${Bar} share=${fate.after_temperature} of=${scale} kind="tempered" />
        <${Bar} share=${fate.final} of=${scale} kind="final" />
      </td>
      <td class="number detail">${percent(fate.probability)}</td>
      <td class="number detail">${percent(fate.after_temperature)}</td>
      <td class="number">
        ${isOut ? (removedBy ?? "0%") : percent(fate.final)}
      </td>
    </tr>
  `;
}
