/** A template by name, and what it asks for: shared by Templates and Compare. */

import { html, useEffect, useState } from "./html.js";
import { Field, NamePicker, TextArea, onValue } from "./parts.js";
import { asServerError, call } from "./server.js";

/** @typedef {import("./server.js").Json} Json */

/**
 * The content of a template's live version.
 * @param {string | undefined} reference `name` or `name@version`
 * @param {number} [revision] changes when it is to be read again
 */
export function useTemplate(reference, revision = 0) {
  const [told, setTold] = useState(
    /** @type {{content: Json | null, error: any}} */ ({
      content: null,
      error: null,
    }),
  );
  const name = (reference ?? "").split("@")[0];
  useEffect(() => {
    if (!name) return;
    let isCurrent = true;
    const tell = (/** @type {any} */ what) => isCurrent && setTold(what);
    call("GET", `icl/templates/${encodeURIComponent(name)}`).then(
      ({ template }) => tell({ content: template, error: null }),
      (problem) => tell({ content: null, error: asServerError(problem) }),
    );
    return () => void (isCurrent = false);
  }, [name, revision]);
  return told;
}

/**
 * What there is to ask about before anybody has written something: the template's last example.
 * @param {Json | null} content
 * @param {Json} inputs
 * @returns {Json}
 */
export function inputsOf(content, inputs) {
  const example = content?.examples?.at(-1) ?? {};
  const names = /** @type {string[]} */ (content?.input_variables ?? []);
  return Object.fromEntries(names.map((name) => [name, inputs[name] ?? example[name] ?? ""]));
}

/**
 * @param {{chosen: Json, templates: Json[], content: Json | null, change: (changes: Json) => void, error: any, onSubmit?: () => void}} props
 */
export function TemplateFields({ chosen, templates, content, change, error, onSubmit }) {
  const inputs = inputsOf(content, chosen.inputs ?? {});
  return html`
    <${NamePicker}
      label="Template"
      name="template"
      entries=${templates.filter((each) => each.live)}
      value=${chosen.template}
      error=${error}
      onChange=${(/** @type {any} */ template) =>
        change({ template: template ?? "", inputs: {}, draft: undefined })}
    />
    ${Object.entries(inputs).map(
      ([name, value]) => html`
        <${Field} key=${name} label=${name}>
          ${(/** @type {string} */ id) =>
            html`<${TextArea}
              id=${id}
              value=${textOf(value)}
              onChange=${(/** @type {string} */ text) =>
                change({
                  inputs: {
                    ...inputs,
                    [name]: Array.isArray(value) ? text.split("\n") : text,
                  },
                })}
              onSubmit=${onSubmit}
            />`}
        <//>
      `,
    )}
  `;
}

/** A list of texts is shown one a line. @param {string | string[]} value */
function textOf(value) {
  return Array.isArray(value) ? value.join("\n") : value;
}

/**
 * How many examples are shown.
 * @param {{label?: string, value: number | "auto" | undefined, content: Json | null, error: any, onChange: (value: number | "auto") => void}} props
 */
export function ShotsField({ label = "Shots", value, content, error, onChange }) {
  const most = content?.examples?.length ?? 0;
  return html`
    <${Field} label=${label} name="shots" error=${error}>
      ${(/** @type {string} */ id) => html`
        <select
          id=${id}
          value=${value ?? "auto"}
          onChange=${onValue((shots) => onChange(shots === "auto" ? shots : Number(shots)))}
        >
          <option value="auto">auto: as many as fit</option>
          ${Array.from({ length: most + 1 }, (_, shots) => html`<option value=${shots}>${shots}</option>`)}
        </select>
      `}
    <//>
  `;
}
