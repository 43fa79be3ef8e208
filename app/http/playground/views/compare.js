/** Compare: two to four columns on one prompt and one seed, side by side. */

import { codeFor } from "../code.js";
import { differences } from "../differences.js";
import { html, useMemo } from "../html.js";
import { inputsOf, ShotsField, TemplateFields, useTemplate } from "../inputs.js";
import {
  AdapterFields,
  Controls,
  CopyButton,
  ErrorLine,
  given,
  PROMPT_FIELDS,
  PromptFields,
  onValue,
  submits,
} from "../parts.js";
import { factsOf, useRun, versionsOf } from "../run.js";

/** @typedef {import("../server.js").Json} Json */

const MOST_COLUMNS = 4;
const SAMPLING = ["top_k", "top_p", "min_p"];

/** @param {import("../app.js").ViewProps} props */
export function Compare({ state, info, request, change, setState, controls, adapters, templates }) {
  const { source, seed } = state.compare;
  const columns = state.compare.columns.slice(0, MOST_COLUMNS);
  const chosen = state.template;
  const isTemplate = source === "template";
  const { content, error: unread } = useTemplate(isTemplate ? chosen.template : undefined);
  const runs = [useRun(), useRun(), useRun(), useRun()].slice(0, columns.length);
  const isRunning = runs.some((each) => each.isRunning);
  const update = (/** @type {Json} */ changes) =>
    setState({ compare: { ...state.compare, ...changes } });

  const path = isTemplate ? "icl/generate" : "generate";
  const shared = isTemplate
    ? { template: chosen.template, inputs: inputsOf(content, chosen.inputs) }
    : Object.fromEntries(PROMPT_FIELDS.map((name) => [name, request[name]]));
  /** @param {Json} column @returns {Json} the request of it */
  const bodyOf = (column) => {
    const own = isTemplate ? column : { ...column, shots: undefined };
    return given({ ...shared, ...own, ...(isRandom(own) ? { seed } : {}) });
  };
  const generate = () => runs.forEach((each, index) => each.start(path, bodyOf(columns[index])));
  const changeColumn = (/** @type {number} */ at, /** @type {Json} */ changes) =>
    update({
      columns: columns.map((/** @type {Json} */ each, /** @type {number} */ index) =>
        index === at ? { ...each, ...changes } : each,
      ),
    });

  return html`
    <form
      class="view main"
      onSubmit=${submits(generate)}
    >
      <fieldset class="row">
        <legend class="hidden">What is compared on</legend>
        ${[
          ["prompt", "A prompt"],
          ["template", "A template"],
        ].map(
          ([kind, title]) => html`
            <label class="check">
              <input
                type="radio"
                name="source"
                checked=${source === kind}
                onChange=${() => update({ source: kind })}
              />
              ${title}
            </label>
          `,
        )}
      </fieldset>
      ${
        isTemplate
          ? html`<${TemplateFields}
              chosen=${chosen}
              templates=${templates}
              content=${content}
              error=${unread}
              change=${(/** @type {Json} */ changes) => setState({ template: { ...chosen, ...changes } })}
              onSubmit=${generate}
            />`
          : html`<${PromptFields}
              info=${info}
              request=${request}
              change=${change}
              error=${null}
              onSubmit=${generate}
            />`
      }
      <${ErrorLine} error=${unread} />
      <div class="actions">
        <button type="submit" class="primary">Generate</button>
        <button
          type="button"
          disabled=${!isRunning}
          onClick=${() => runs.forEach((each) => each.stop())}
        >
          Stop
        </button>
        <button
          type="button"
          disabled=${columns.length === MOST_COLUMNS}
          onClick=${() => update({ columns: [...columns, columns.at(-1)] })}
        >
          Add a column
        </button>
        <label class="check">
          Seed of all
          <input
            type="number"
            class="short"
            min="0"
            value=${seed}
            onInput=${onValue((text) => update({ seed: Number(text) }))}
          />
        </label>
      </div>
      <div class="columns">
        ${columns.map(
          (/** @type {Json} */ column, /** @type {number} */ index) => html`
            <section
              key=${index}
              class="column"
              aria-labelledby="column-${index}"
            >
              <div class="row">
                <h2 id="column-${index}">${"ABCD"[index]}</h2>
                ${
                  columns.length > 2 &&
                  html`<button
                    type="button"
                    class="quiet"
                    aria-label="Take column ${"ABCD"[index]} away"
                    onClick=${() =>
                      update({
                        columns: columns.filter(
                          (/** @type {Json} */ _, /** @type {number} */ at) => at !== index,
                        ),
                      })}
                  >
                    ×
                  </button>`
                }
                <span class="help">${summaryOf(column)}</span>
              </div>
              <${Answer}
                run=${runs[index].run}
                other=${index ? textOf(runs[0].run) : null}
              />
              ${
                isTemplate &&
                html`<${ShotsField}
                  value=${column.shots}
                  content=${content}
                  error=${runs[index].run.error}
                  onChange=${(/** @type {any} */ shots) => changeColumn(index, { shots })}
                />`
              }
              <${AdapterFields}
                request=${column}
                adapters=${adapters}
                change=${(/** @type {Json} */ changes) => changeColumn(index, changes)}
                error=${runs[index].run.error}
              />
              <${Controls}
                controls=${without(controls, ["seed", "n"])}
                request=${column}
                change=${(/** @type {Json} */ changes) => changeColumn(index, changes)}
                error=${runs[index].run.error}
              />
              <div class="actions">
                <${CopyButton} label="Copy as curl" text=${() => codeFor("curl", path, bodyOf(column))} />
                <${CopyButton} label="Copy as Python" text=${() => codeFor("python", path, bodyOf(column))} />
              </div>
            </section>
          `,
        )}
      </div>
    </form>
  `;
}

/**
 * The text of a column; words that the first column has not are marked.
 * @param {{run: import("../run.js").Run, other: string | null}} props
 */
function Answer({ run, other }) {
  const text = textOf(run);
  const words = useMemo(() => (other === null ? null : differences(text, other)), [text, other]);
  const ending = run.completions[0]?.ending;
  return html`
    <div class="output">
      <${ErrorLine} error=${run.error} />
      <div class="tokens" role="group" aria-label="Completion">
        ${words ? words.map(({ word, isCommon }) => (isCommon ? word : html`<mark>${word}</mark>`)) : text}
      </div>
      ${ending && versionsOf(ending).map((version) => html`<p class="help">made with <code>${version}</code></p>`)}
      <p class="facts" role="status">
        ${factsOf(run).map((fact) => html`<span key=${fact}>${fact}</span>`)}
      </p>
    </div>
  `;
}

/** @param {import("../run.js").Run} run */
function textOf(run) {
  return run.completions[0]?.text ?? "";
}

/** Whether a seed has an effect; without random sampling the server refuses one. @param {Json} body */
function isRandom({ temperature, ...body }) {
  return temperature === undefined
    ? SAMPLING.some((name) => body[name] !== undefined)
    : temperature > 0;
}

/** @param {Json} column */
function summaryOf(column) {
  const set = Object.entries(given(column)).map(([name, value]) => `${name} ${value}`);
  return set.join(", ") || "greedy, as without any control";
}

/** @param {Json} fields @param {string[]} names */
function without(fields, names) {
  return Object.fromEntries(Object.entries(fields).filter(([name]) => !names.includes(name)));
}
