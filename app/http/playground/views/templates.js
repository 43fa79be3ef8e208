/** Templates: zero, one and few shots, with the prompt that comes of them; and a copy to work on. */

import { codeFor } from "../code.js";
import { html, useState } from "../html.js";
import { inputsOf, ShotsField, TemplateFields, useTemplate } from "../inputs.js";
import { useLatest } from "../latest.js";
import {
  CopyButton,
  counted,
  ErrorLine,
  Field,
  given,
  into,
  percent,
  onValue,
  submits,
} from "../parts.js";
import { useRun } from "../run.js";
import { asServerError, call, ServerError } from "../server.js";
import { Bar } from "../tokens.js";
import { NUM_ALTERNATIVES, Output } from "./generate.js";

/** @typedef {import("../server.js").Json} Json */

const SELECTIONS = ["first", "random", "similar", "diverse"];

/** @param {import("../app.js").ViewProps} props */
export function Templates({ state, setState, templates, info, refresh }) {
  const chosen = state.template;
  const [revision, setRevision] = useState(0);
  const { content, error: unread } = useTemplate(chosen.template, revision);
  const { run, isRunning, start, stop } = useRun();
  const change = (/** @type {Json} */ changes) => setState({ template: { ...chosen, ...changes } });

  const draft = chosen.draft === undefined ? null : parsed(chosen.draft);
  const used = draft?.template ?? content;
  const body =
    used &&
    given({
      template: draft?.template ?? chosen.template,
      inputs: inputsOf(used, chosen.inputs),
      shots: chosen.shots,
      selection: chosen.selection,
      selection_seed: chosen.selection === "random" ? (chosen.selection_seed ?? 1) : undefined,
    });
  const { answer, error: unrendered } = useLatest("icl/render", body);
  const error = run.error ?? draft?.error ?? unread ?? unrendered;
  const classification = run.completions[0]?.ending?.prompt?.classification;
  const generate = () => {
    if (body) start("icl/generate", { ...body, logprobs: NUM_ALTERNATIVES });
  };

  return html`
    <form
      class="view split"
      onSubmit=${submits(generate)}
    >
      <div class="main">
        <${TemplateFields}
          chosen=${chosen}
          templates=${templates}
          content=${used}
          change=${change}
          error=${error}
          onSubmit=${generate}
        />
        <div class="actions">
          <button type="submit" class="primary" disabled=${!body}>
            Generate
          </button>
          <button type="button" disabled=${!isRunning} onClick=${stop}>
            Stop
          </button>
          <${CopyButton}
            label="Copy as curl"
            text=${() => codeFor("curl", "icl/generate", body ?? {})}
          />
          <${CopyButton}
            label="Copy as Python"
            text=${() => codeFor("python", "icl/generate", body ?? {})}
          />
        </div>
        <${Output} run=${run} error=${error} />
        ${classification && html`<${Labels} classification=${classification} />`}
        ${answer && html`<${Rendered} prompt=${answer.prompts[0]} info=${info} />`}
      </div>
      <aside aria-label="Examples">
        <p class="help">${content?.description}</p>
        <${ShotsField}
          value=${chosen.shots}
          content=${used}
          error=${error}
          onChange=${into(change, "shots")}
        />
        <${Field} label="Selection" name="selection" error=${error}>
          ${(/** @type {string} */ id) => html`
            <select
              id=${id}
              value=${chosen.selection ?? ""}
              onChange=${onValue((text) => change({ selection: text || undefined }))}
            >
              <option value="">
                as the template says (${used?.selection ?? "first"})
              </option>
              ${SELECTIONS.map((each) => html`<option value=${each}>${each}</option>`)}
            </select>
          `}
        <//>
        ${
          chosen.selection === "random" &&
          html`<${Field}
            label="Selection seed"
            name="selection_seed"
            error=${error}
          >
            ${(/** @type {string} */ id) =>
              html`<input
                id=${id}
                type="number"
                min="0"
                value=${chosen.selection_seed ?? 1}
                onInput=${onValue((text) => change({ selection_seed: Number(text) }))}
              />`}
          <//>`
        }
        ${
          chosen.draft === undefined
            ? html`<button
                type="button"
                disabled=${!content}
                onClick=${() => change({ draft: JSON.stringify(content, null, 2) })}
              >
                Edit a copy
              </button>`
            : html`<${Draft}
                text=${chosen.draft}
                template=${draft?.template}
                name=${chosen.template.split("@")[0]}
                onChange=${(/** @type {string | undefined} */ text) => change({ draft: text })}
                onSaved=${async (/** @type {string} */ name) => {
                  await refresh();
                  setRevision(revision + 1);
                  change({ template: name, draft: undefined });
                }}
              />`
        }
      </aside>
    </form>
  `;
}

/**
 * A copy that is tried as it is: the server keeps nothing of it until it is saved.
 * @param {{text: string, template: Json | undefined, name: string, onChange: (text: string | undefined) => void, onSaved: (name: string) => void}} props
 */
function Draft({ text, template, name, onChange, onSaved }) {
  const [as, setAs] = useState(name);
  const [error, setError] = useState(/** @type {ServerError | null} */ (null));
  const save = async () => {
    try {
      await call("PUT", `icl/templates/${encodeURIComponent(as)}`, template);
      onSaved(as);
    } catch (problem) {
      setError(asServerError(problem));
    }
  };
  return html`
    <${Field} label="A copy, tried without saving it">
      ${(/** @type {string} */ id) =>
        html`<textarea
          id=${id}
          rows="18"
          class="code"
          spellcheck="false"
          value=${text}
          onInput=${onValue(onChange)}
        ></textarea>`}
    <//>
    <${Field} label="Save as a new version of">
      ${(/** @type {string} */ id) =>
        html`<input
          id=${id}
          value=${as}
          onInput=${onValue(setAs)}
        />`}
    <//>
    <${ErrorLine} error=${error} />
    <div class="actions">
      <button type="button" disabled=${!template || !as} onClick=${save}>
        Save
      </button>
      <button type="button" class="quiet" onClick=${() => onChange(undefined)}>
        Discard
      </button>
    </div>
  `;
}

/** @param {string} text @returns {{template?: Json, error?: ServerError}} */
function parsed(text) {
  try {
    return { template: JSON.parse(text) };
  } catch (problem) {
    return {
      error: new ServerError(`the copy is not JSON: ${/** @type {Error} */ (problem).message}`),
    };
  }
}

/** The probability of each label, by the model's own scores. @param {{classification: Json}} props */
function Labels({ classification }) {
  return html`
    <section class="alternatives" aria-label="Labels">
      <h2>Labels</h2>
      <ol>
        ${classification.labels.map(
          (/** @type {Json} */ { label, probability }) => html`
            <li
              key=${label}
              class=${label === classification.best ? "chosen" : ""}
            >
              <span class="name">${label}</span>
              <${Bar} share=${probability} kind="final" />
              <span class="number">${percent(probability)}</span>
            </li>
          `,
        )}
      </ol>
    </section>
  `;
}

/**
 * The prompt as the model gets it, how much of the context window it takes, and which examples are
 * in it.
 * @param {{prompt: Json, info: Json}} props
 */
function Rendered({ prompt, info }) {
  const [size, name] = info.encoder_window
    ? [info.encoder_window, "encoder's"]
    : [info.context_window, "context"];
  const numTokens = prompt.prompt_tokens + prompt.virtual_tokens;
  return html`
    <section class="rendered" aria-label="The prompt">
      <h2>The prompt, with ${counted(prompt.shots, "shot")}</h2>
      <p class="help">
        ${`${numTokens.toLocaleString("en")} of ${counted(size, "token")} of the ${name} window`}
      </p>
      <${Bar} share=${numTokens} of=${size} kind="final" />
      <pre tabindex="0" aria-label="The exact prompt">${prompt.prompt}</pre>
      <${Examples} title="Examples in it" examples=${prompt.examples} />
      <${Examples} title="Left out" examples=${prompt.left_out} />
    </section>
  `;
}

/** @param {{title: string, examples: Json[]}} props */
function Examples({ title, examples }) {
  if (!examples.length) return null;
  return html`
    <details>
      <summary>${title}: ${examples.length}</summary>
      <ol class="examples">
        ${examples.map(
          ({ place, example, why }) => html`
            <li key=${place} value=${place + 1}>
              ${Object.values(example).join(" → ")} ${why && html`<span class="help">(${why})</span>`}
            </li>
          `,
        )}
      </ol>
    </details>
  `;
}
