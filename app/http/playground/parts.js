/** The small set of parts that all views are made of. */

import { html, useEffect, useId, useRef, useState } from "./html.js";
import { GROUPS } from "./schema.js";

/**
 * @typedef {import("./server.js").Json} Json
 * @typedef {import("./server.js").ServerError} ServerError
 * @typedef {import("./schema.js").ControlField} ControlField
 */

/** A handler of an event that hands over the value. @param {(value: string) => void} take */
export function onValue(take) {
  return (/** @type {{target: HTMLInputElement}} */ { target }) => take(target.value);
}

/** A handler of a form that does this, and stays on the page. @param {() => void} act */
export function submits(act) {
  return (/** @type {Event} */ event) => {
    event.preventDefault();
    act();
  };
}

/**
 * What puts a value into a field.
 * @param {(changes: Json) => void} change
 * @param {string} name
 */
export function into(change, name) {
  return (/** @type {any} */ given) => change({ [name]: given });
}

/** A sentence of the server, with its `names` as code. @param {{text: string}} props */
export function Sentence({ text }) {
  return text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));
}

/** What the server said, where it belongs. @param {{error: ServerError | null | undefined}} props */
export function ErrorLine({ error }) {
  return html`<div role="alert">
    ${error && html`<p class="error"><${Sentence} text=${error.message} /></p>`}
  </div>`;
}

/**
 * A labelled field, and below it what the server refuses of it.
 * @param {{label: string, name?: string, help?: string, error?: ServerError | null, children: (id: string) => any}} props
 */
export function Field({ label, name, help, error, children }) {
  const id = useId();
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${children(id)}
      ${help && html`<p class="help"><${Sentence} text=${help} /></p>`}
      ${name && error?.param === name && html`<${ErrorLine} error=${error} />`}
    </div>
  `;
}

/**
 * A text that may have several lines; Ctrl+Enter in it does what the view is for.
 * @param {{id?: string, value: string, rows?: number, label?: string, onChange: (value: string) => void, onSubmit?: () => void}} props
 */
export function TextArea({ id, value, rows = 3, label, onChange, onSubmit }) {
  return html`<textarea
    id=${id}
    rows=${rows}
    aria-label=${label}
    spellcheck="false"
    value=${value}
    onInput=${onValue(onChange)}
    onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onSubmit?.();
    }}
  ></textarea>`;
}

/** What `PromptFields` asks for. */
export const PROMPT_FIELDS = ["prompt", "use_chat_template", "system", "decoder_prompt"];

/**
 * The prompt, and what goes with it: of an encoder-decoder model what its decoder starts with, else
 * chat template and system message.
 * @param {{info: Json, request: Json, change: (changes: Json) => void, error: ServerError | null, onSubmit?: () => void}} props
 */
export function PromptFields({ info, request, change, error, onSubmit }) {
  const Rest = info.encoder_window ? DecoderField : ChatFields;
  return html`
    <${Field} label="Prompt" name="prompt" error=${error}>
      ${(/** @type {string} */ id) =>
        html`<${TextArea}
          id=${id}
          rows=${4}
          value=${request.prompt}
          onChange=${into(change, "prompt")}
          onSubmit=${onSubmit}
        />`}
    <//>
    <${Rest} request=${request} change=${change} error=${error} onSubmit=${onSubmit} />
  `;
}

/** @param {{request: Json, change: (changes: Json) => void, error: ServerError | null, onSubmit?: () => void}} props */
function DecoderField({ request, change, error, onSubmit }) {
  return html`<${Field}
    label="Decoder prompt"
    name="decoder_prompt"
    help="What the answer goes on from."
    error=${error}
  >
    ${(/** @type {string} */ id) =>
      html`<${TextArea}
        id=${id}
        rows=${1}
        value=${request.decoder_prompt ?? ""}
        onChange=${(/** @type {string} */ text) => change({ decoder_prompt: text || undefined })}
        onSubmit=${onSubmit}
      />`}
  <//>`;
}

/** @param {{request: Json, change: (changes: Json) => void, error: ServerError | null, onSubmit?: () => void}} props */
function ChatFields({ request, change, error, onSubmit }) {
  return html`
    <label class="check">
      <input
        type="checkbox"
        checked=${request.use_chat_template ?? false}
        onChange=${(/** @type {any} */ event) =>
          change(
            event.target.checked
              ? { use_chat_template: true }
              : { use_chat_template: undefined, system: undefined },
          )}
      />
      Chat template: the prompt is a user's message
    </label>
    ${
      request.use_chat_template &&
      html`<${Field} label="System message" name="system" error=${error}>
        ${(/** @type {string} */ id) =>
          html`<${TextArea}
            id=${id}
            rows=${2}
            value=${request.system ?? ""}
            onChange=${(/** @type {string} */ system) => change({ system: system || undefined })}
            onSubmit=${onSubmit}
          />`}
      <//>`
    }
  `;
}

/**
 * A name out of hundreds, and its version: live first.
 * @param {{label: string, name: string, entries: Json[], value: string | undefined, error: ServerError | null, onChange: (value: string | undefined) => void}} props
 */
export function NamePicker({ label, name, entries, value, error, onChange }) {
  const list = useId();
  const [bare, version = ""] = (value ?? "").split("@");
  const entry = entries.find((each) => each.name === bare);
  const versions = [...(entry?.versions ?? [])].sort((a, b) => Number(b.live) - Number(a.live));
  return html`
    <${Field} label=${label} name=${name} error=${error}>
      ${(/** @type {string} */ id) => html`
        <div class="row">
          <input
            id=${id}
            list=${list}
            value=${bare}
            placeholder="none"
            autocomplete="off"
            spellcheck="false"
            onInput=${onValue((text) => onChange(text || undefined))}
          />
          ${value && html`<button type="button" class="quiet" aria-label="Take the ${label.toLowerCase()} away" onClick=${() => onChange(undefined)}>×</button>`}
        </div>
        <datalist id=${list}>
          ${entries.map((each) => html`<option value=${each.name}></option>`)}
        </datalist>
        ${
          versions.length > 1 &&
          html`<select
            aria-label="Version of ${bare}"
            value=${version}
            onChange=${onValue((version) => onChange(version ? `${bare}@${version}` : bare))}
          >
            <option value="">the live version</option>
            ${versions.map((each) => html`<option value=${shown(each.version)}>${shown(each.version)}${each.live ? " (live)" : ""}</option>`)}
          </select>`
        }
      `}
    <//>
  `;
}

/**
 * The adapter and the soft prompt of a request.
 * @param {{request: Json, adapters: Json[], change: (changes: Json) => void, error: ServerError | null}} props
 */
export function AdapterFields({ request, adapters, change, error }) {
  /** @param {string} kind */
  const served = (kind) => adapters.filter((each) => each.kind === kind && each.live);
  return html`
    <div class="pair">
      <${NamePicker}
        label="Adapter"
        name="adapter"
        entries=${served("lora")}
        value=${request.adapter}
        error=${error}
        onChange=${into(change, "adapter")}
      />
      <${NamePicker}
        label="Soft prompt"
        name="soft_prompt"
        entries=${served("soft_prompt")}
        value=${request.soft_prompt}
        error=${error}
        onChange=${into(change, "soft_prompt")}
      />
    </div>
  `;
}

/**
 * Every control of a generation, in its groups; the first is open.
 * @param {{controls: Record<string, ControlField>, request: Json, change: (changes: Json) => void, error: ServerError | null}} props
 */
export function Controls({ controls, request, change, error }) {
  return GROUPS.map(
    ({ title, names }, index) => html`
      <${Group}
        key=${title}
        title=${title}
        isOpen=${index === 0}
        hasError=${names.some((name) => name === error?.param)}
      >
        <${ControlList}
          names=${names}
          controls=${controls}
          request=${request}
          change=${change}
          error=${error}
        />
      <//>
    `,
  );
}

/**
 * These controls, one below the other.
 * @param {{names: string[], controls: Record<string, ControlField>, request: Json, change: (changes: Json) => void, error: ServerError | null}} props
 */
export function ControlList({ names, controls, request, change, error }) {
  return html`
    <div class="controls">
      ${names.map(
        (name) =>
          controls[name] &&
          html`<${Control}
            key=${name}
            field=${controls[name]}
            value=${request[name]}
            error=${error}
            onChange=${into(change, name)}
          />`,
      )}
    </div>
  `;
}

/**
 * A group that opens for an error in it, and is not closed again but by hand.
 * @param {{title: string, isOpen: boolean, hasError: boolean, children: any}} props
 */
function Group({ title, isOpen, hasError, children }) {
  const details = useRef(/** @type {HTMLDetailsElement | null} */ (null));
  useEffect(() => {
    if (hasError && details.current) details.current.open = true;
  }, [hasError]);
  return html`
    <details ref=${details} open=${isOpen}>
      <summary>${title}</summary>
      ${children}
    </details>
  `;
}

/**
 * One control: what it is, what it does, and back to having no effect.
 * @param {{field: ControlField, value: any, error: ServerError | null, onChange: (value: any) => void}} props
 */
function Control({ field, value, error, onChange }) {
  const id = useId();
  const isSet = value !== undefined;
  const Input = {
    number: NumberInput,
    boolean: BooleanInput,
    text: TextInput,
    texts: TextsInput,
    json: JsonInput,
  }[field.kind];
  return html`
    <div class=${isSet ? "control set" : "control"}>
      <label for=${id}><code>${field.name}</code></label>
      <${Input} id=${id} field=${field} value=${value} onChange=${onChange} />
      <button
        type="button"
        class="quiet"
        aria-label="Reset ${field.name}"
        disabled=${!isSet}
        onClick=${() => onChange(undefined)}
      >
        ×
      </button>
      <p class="help"><${Sentence} text=${field.description} /></p>
      ${error?.param === field.name && html`<${ErrorLine} error=${error} />`}
    </div>
  `;
}

/** @param {{id: string, field: ControlField, value: number | undefined, onChange: (value: number | undefined) => void}} props */
function NumberInput({ id, field, value, onChange }) {
  const { range, step, neutral, minimum, maximum } = field;
  /** @param {any} event */
  const changed = ({ target }) => onChange(target.value === "" ? undefined : Number(target.value));
  // Without a neutral value, the end that removes nothing.
  const shownValue = value ?? neutral ?? range?.[1];
  return html`
    <input
      id=${id}
      type="number"
      step=${step}
      min=${minimum}
      max=${maximum}
      value=${value ?? ""}
      placeholder=${neutral ?? "off"}
      onInput=${changed}
    />
    ${
      range &&
      html`<input
        type="range"
        aria-label=${field.name}
        min=${range[0]}
        max=${range[1]}
        step=${step}
        value=${shownValue}
        onInput=${changed}
      />`
    }
  `;
}

/** @param {{id: string, value: boolean | undefined, onChange: (value: boolean | undefined) => void}} props */
function BooleanInput({ id, value, onChange }) {
  return html`<input
    id=${id}
    type="checkbox"
    checked=${value ?? false}
    onChange=${(/** @type {any} */ event) => onChange(event.target.checked || undefined)}
  />`;
}

/** @param {{id: string, value: string | undefined, onChange: (value: string | undefined) => void}} props */
function TextInput({ id, value, onChange }) {
  return html`<input
    id=${id}
    type="text"
    spellcheck="false"
    value=${value ?? ""}
    onInput=${onValue((text) => onChange(text || undefined))}
  />`;
}

/**
 * A value in JSON. What is not JSON yet is sent as it is: the server says what it has to be.
 * @param {{id: string, value: any, onChange: (value: any) => void}} props
 */
function JsonInput({ id, value, onChange }) {
  const [text, setText] = useState(value === undefined ? "" : JSON.stringify(value));
  useEffect(() => {
    if (value === undefined) setText("");
  }, [value === undefined]);
  return html`<textarea
    id=${id}
    rows="3"
    placeholder=${'{"type": "object", ...}'}
    spellcheck="false"
    value=${text}
    onInput=${onValue((given) => {
      setText(given);
      onChange(given ? asJson(given) : undefined);
    })}
  ></textarea>`;
}

/** @param {string} text */
function asJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/**
 * Texts, one a line; a line break in one is written as \n.
 * @param {{id: string, value: string[] | undefined, onChange: (value: string[] | undefined) => void}} props
 */
function TextsInput({ id, value, onChange }) {
  const lines = (value ?? []).map((text) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n"));
  const [text, setText] = useState(lines.join("\n"));
  useEffect(() => setText(lines.join("\n")), [value === undefined]);
  return html`<textarea
    id=${id}
    rows="2"
    placeholder="one a line; \\n is a line break"
    spellcheck="false"
    value=${text}
    onInput=${(/** @type {any} */ event) => {
      setText(event.target.value);
      const given = event.target.value.split("\n").filter(Boolean).map(unescaped);
      onChange(given.length ? given : undefined);
    }}
  ></textarea>`;
}

/** @param {string} line */
function unescaped(line) {
  return line.replace(/\\(.)/g, (_, character) => (character === "n" ? "\n" : character));
}

/**
 * A button that copies a text, and says so.
 * @param {{label: string, text: () => string}} props
 */
export function CopyButton({ label, text }) {
  const [said, setSaid] = useState("");
  const timer = useRef(0);
  const copy = async () => {
    await navigator.clipboard.writeText(text());
    setSaid("Copied");
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setSaid(""), 2000);
  };
  return html`<button type="button" class="quiet" onClick=${copy}>
      ${said || label}
    </button>
    <span role="status" class="hidden">${said && `${label}: copied`}</span>`;
}

/** As many digits of a version as a person reads. @param {string} digest */
export function shown(digest) {
  return digest.slice(0, 12);
}

/** @param {number} share */
export function percent(share) {
  if (share === 0) return "0%";
  return share < 0.0001 ? "<0.01%" : `${(share * 100).toFixed(share < 0.1 ? 2 : 1)}%`;
}

/** @param {number} number @param {string} noun */
export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** @param {Json} body @returns {Json} without what is not set */
export function given(body) {
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));
}
