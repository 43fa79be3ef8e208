/** Generate: a prompt, every control, and the text as it comes. */

import { codeFor } from "../code.js";
import { html, useState } from "../html.js";
import {
  AdapterFields,
  Controls,
  CopyButton,
  ErrorLine,
  PromptFields,
  given,
  submits,
} from "../parts.js";
import { factsOf, useRun, versionsOf } from "../run.js";
import { asServerError, call } from "../server.js";
import { Tokens } from "../tokens.js";

/**
 * @typedef {import("../server.js").Json} Json
 * @typedef {import("../run.js").Completion} Completion
 * @typedef {import("../run.js").Token} Token
 */

/** Alternatives that are asked for with every token. */
export const NUM_ALTERNATIVES = 8;

/** @param {import("../app.js").ViewProps} props */
export function Generate({ info, request, change, controls, adapters }) {
  const { run, isRunning, start, stop } = useRun();
  const [failure, setFailure] = useState(
    /** @type {import("../server.js").ServerError | null} */ (null),
  );
  const error = run.error ?? failure;
  const body = given(request);
  const generate = () => {
    setFailure(null);
    start("generate", { ...body, logprobs: NUM_ALTERNATIVES });
  };

  /** Generate again what follows another token: the text before it stays. */
  const goOn = async (
    /** @type {Completion} */ { text, tokens },
    /** @type {number} */ position,
    /** @type {number} */ first,
    /** @type {Token} */ token,
  ) => {
    const kept = {
      text: text.slice(0, position) + token.token,
      tokens: [...tokens.slice(0, first), token],
      ending: null,
    };
    try {
      const before = info.encoder_window
        ? { decoder_prompt: (body.decoder_prompt ?? "") + kept.text }
        : {
            prompt: (await renderedPrompt(body)) + kept.text,
            use_chat_template: undefined,
            system: undefined,
          };
      const rest = given({ ...body, ...before, n: undefined });
      start("generate", { ...rest, logprobs: NUM_ALTERNATIVES }, kept);
    } catch (problem) {
      setFailure(asServerError(problem));
    }
  };

  return html`
    <form
      class="view split"
      onSubmit=${submits(generate)}
    >
      <div class="main">
        <${PromptFields}
          info=${info}
          request=${request}
          change=${change}
          error=${error}
          onSubmit=${generate}
        />
        <${AdapterFields}
          request=${request}
          adapters=${adapters}
          change=${change}
          error=${error}
        />
        <div class="actions">
          <button type="submit" class="primary">Generate</button>
          <button type="button" disabled=${!isRunning} onClick=${stop}>
            Stop
          </button>
          <${CopyButton}
            label="Copy as curl"
            text=${() => codeFor("curl", "generate", body)}
          />
          <${CopyButton}
            label="Copy as Python"
            text=${() => codeFor("python", "generate", body)}
          />
        </div>
        <${Output}
          run=${run}
          error=${error}
          onGoOn=${isRunning ? undefined : goOn}
        />
      </div>
      <aside aria-label="Controls">
        <${Controls}
          controls=${controls}
          request=${request}
          change=${change}
          error=${error}
        />
      </aside>
    </form>
  `;
}

/**
 * What came of a run.
 * @param {{run: import("../run.js").Run, error?: import("../server.js").ServerError | null, onGoOn?: (completion: Completion, position: number, first: number, token: Token) => void}} props
 */
export function Output({ run, error = run.error, onGoOn }) {
  const isOne = run.completions.length < 2;
  return html`
    <section
      class="output"
      aria-label="Answer"
      aria-busy=${run.status === "streaming"}
    >
      <${ErrorLine} error=${error} />
      ${run.completions.map(
        (completion, index) => html`
          <article key=${index}>
            ${!isOne && html`<h3>${index + 1} of ${run.completions.length}</h3>`}
            <${Tokens}
              completion=${completion}
              label="Completion ${isOne ? "" : index + 1}"
              onGoOn=${
                onGoOn &&
                ((
                  /** @type {number} */ position,
                  /** @type {number} */ first,
                  /** @type {Token} */ token,
                ) => onGoOn(completion, position, first, token))
              }
            />
            ${
              completion.ending &&
              versionsOf(completion.ending).map(
                (version) => html`<p class="help">made with <code>${version}</code></p>`,
              )
            }
          </article>
        `,
      )}
      <p class="facts" role="status">
        ${factsOf(run).map((fact) => html`<span key=${fact}>${fact}</span>`)}
      </p>
    </section>
  `;
}

/**
 * The prompt as the model gets it. A chat template is rendered by the server alone: a template of
 * prompts that is nothing but its input shows what comes out.
 * @param {Json} body
 * @returns {Promise<string>} rejects with a `ServerError`
 */
async function renderedPrompt({ prompt, use_chat_template, system }) {
  if (!use_chat_template) return prompt;
  const template = given({
    input_variables: ["prompt"],
    example_format: "{{ prompt }}{{ output }}",
    query_format: "{{ prompt }}",
    use_chat_template,
    system,
  });
  const rendered = await call("POST", "icl/render", {
    template,
    inputs: { prompt },
    shots: 0,
  });
  return rendered.prompts[0].prompt;
}
