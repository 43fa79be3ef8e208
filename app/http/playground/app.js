/** The page: its views, what they share, and the key. */

import { html, render, useEffect, useRef, useState } from "./html.js";
import { readLink, writeLink } from "./link.js";
import { CopyButton, ErrorLine, onValue } from "./parts.js";
import { loadControls } from "./schema.js";
import { asServerError, call, hasKey, onKeyNeeded, setKey } from "./server.js";
import { Adapters } from "./views/adapters.js";
import { Compare } from "./views/compare.js";
import { Generate } from "./views/generate.js";
import { Inspect } from "./views/inspect.js";
import { Templates } from "./views/templates.js";

/**
 * @typedef {import("./server.js").Json} Json
 *
 * @typedef {object} ViewProps
 * @property {Json} state all that is set, as a link carries it
 * @property {(changes: Json) => void} setState
 * @property {Json} request of the state: what Inspect, Generate and Compare share
 * @property {(changes: Json) => void} change of the request
 * @property {Json} info
 * @property {Record<string, import("./schema.js").ControlField>} controls
 * @property {Json[]} adapters
 * @property {Json[]} templates
 * @property {() => Promise<void>} refresh reads adapters and templates again
 */

/** @type {Record<string, (props: ViewProps) => any>} */
const VIEWS = { Inspect, Generate, Compare, Templates, Adapters };
const INITIAL = {
  view: "Inspect",
  request: { prompt: "The sky is", temperature: 1, max_new_tokens: 48 },
  compare: {
    source: "prompt",
    seed: 1,
    columns: [
      { temperature: 0.2, max_new_tokens: 48 },
      { temperature: 1.5, max_new_tokens: 48 },
    ],
  },
  template: { template: "sentiment", inputs: {}, shots: 2 },
};
/** What a link's parts have to have. */
const LEAST = {
  view: "",
  request: { prompt: "" },
  compare: INITIAL.compare,
  template: { template: "", inputs: {} },
};
/** How often a server that is starting is asked whether it is ready. */
const RETRY_MILLISECONDS = 2000;

function App() {
  const [state, setWhole] = useState(() => readLink(INITIAL, LEAST));
  const { told, refresh } = useServer();
  useEffect(() => writeLink(state), [state]);
  useEffect(() => {
    const follow = () => setWhole(readLink(INITIAL, LEAST));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);

  const View = VIEWS[state.view] ?? Inspect;
  const setState = (/** @type {Json} */ changes) =>
    setWhole((before) => ({ ...before, ...changes }));
  const change = (/** @type {Json} */ changes) =>
    setWhole((before) => ({
      ...before,
      request: { ...before.request, ...changes },
    }));
  const { error, ...shared } = told;
  const { info } = told;
  return html`
    <header>
      <h1>softserve</h1>
      <p class="model">
        ${info && html`${info.model} <span class="help">${windowsOf(info)}</span>`}
      </p>
      <nav aria-label="Views">
        ${Object.keys(VIEWS).map(
          (name) =>
            html`<button
              type="button"
              aria-current=${state.view === name ? "page" : undefined}
              onClick=${() => setState({ view: name })}
            >
              ${name}
            </button>`,
        )}
      </nav>
      <div class="row">
        <${CopyButton} label="Copy link" text=${() => location.href} />
        <${KeyDialog} />
      </div>
    </header>
    <main>
      <${ErrorLine} error=${error} />
      ${
        info &&
        html`<${View}
          ...${shared}
          state=${state}
          setState=${setState}
          request=${state.request}
          change=${change}
          refresh=${refresh}
        />`
      }
    </main>
  `;
}

/** How much fits into the model. @param {Json} info */
function windowsOf({ context_window, encoder_window }) {
  const size = context_window.toLocaleString("en");
  if (!encoder_window) return `context window ${size}`;
  return `encoder's window ${encoder_window.toLocaleString("en")}, decoder's ${size}`;
}

/** What the server tells all views. It is asked until it is ready. */
function useServer() {
  const [told, setTold] = useState(
    /** @type {{info: any, controls: any, adapters: Json[], templates: Json[], error: any}} */
    ({ info: null, controls: {}, adapters: [], templates: [], error: null }),
  );
  const tell = (/** @type {Json} */ what) => setTold((before) => ({ ...before, ...what }));
  const refresh = async () => {
    const [{ adapters }, { templates }] = await Promise.all([
      call("GET", "adapters"),
      call("GET", "icl/templates"),
    ]);
    tell({ adapters, templates });
  };
  useEffect(() => {
    let timer = 0;
    const ask = async () => {
      try {
        await call("GET", "health/ready");
        const [info, controls] = await Promise.all([
          call("GET", "info"),
          loadControls(),
          refresh(),
        ]);
        tell({ info, controls, error: null });
      } catch (problem) {
        const error = asServerError(problem);
        tell({ error });
        if (error.type !== "key_required") timer = setTimeout(ask, RETRY_MILLISECONDS);
      }
    };
    ask();
    return () => clearTimeout(timer);
  }, []);
  return { told, refresh };
}

/** Asks for the key when the server wants one, or when the button is pressed. */
function KeyDialog() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const [message, setMessage] = useState("");
  const [text, setText] = useState("");
  /** Whoever waits for a key, all of them. */
  const waiting = useRef(/** @type {((key: string) => void)[]} */ ([]));
  const open = (/** @type {string} */ why) => {
    setMessage(why);
    if (!dialog.current?.open) dialog.current?.showModal();
  };
  const close = (/** @type {string} */ key) => {
    setText("");
    dialog.current?.close();
    for (const answer of waiting.current.splice(0)) answer(key);
  };
  useEffect(() => {
    onKeyNeeded(
      (why) =>
        new Promise((answer) => {
          waiting.current.push(answer);
          open(why);
        }),
    );
  }, []);
  return html`
    <button type="button" class="quiet" onClick=${() => open("")}>
      ${hasKey() ? "Change key" : "Key"}
    </button>
    <dialog
      ref=${dialog}
      aria-labelledby="key-title"
      onCancel=${() => close("")}
    >
      <form
        method="dialog"
        onSubmit=${() => {
          setKey(text);
          close(text);
        }}
      >
        <h2 id="key-title">Key</h2>
        ${message && html`<p>${message}</p>`}
        <p class="help">
          It stays in this page's memory, and is gone when the page is.
        </p>
        <input
          type="password"
          aria-label="Key"
          autocomplete="off"
          value=${text}
          onInput=${onValue(setText)}
        />
        <div class="actions">
          <button type="submit" class="primary">Use it</button>
          <button type="button" onClick=${() => close("")}>Cancel</button>
        </div>
      </form>
    </dialog>
  `;
}

render(html`<${App} />`, document.body);
