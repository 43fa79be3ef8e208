/** Adapters: what there is, in which versions; to add, to roll back, to remove. */

import { html, useRef, useState } from "../html.js";
import { counted, ErrorLine, Field, percent, shown, onValue, submits } from "../parts.js";
import { asServerError, call, upload } from "../server.js";

/**
 * @typedef {import("../server.js").Json} Json
 * @typedef {import("../server.js").ServerError} ServerError
 */

/** @type {Record<string, string>} */
const KINDS = { lora: "LoRA", soft_prompt: "soft prompt" };

/** @param {import("../app.js").ViewProps} props */
export function Adapters({ adapters, refresh }) {
  const [filter, setFilter] = useState("");
  const found = adapters.filter((each) => each.name.toLowerCase().includes(filter.toLowerCase()));
  return html`
    <div class="view split">
      <div class="main">
        <${Field} label="Find">
          ${(/** @type {string} */ id) =>
            html`<input
              id=${id}
              type="search"
              value=${filter}
              placeholder="part of a name"
              onInput=${onValue(setFilter)}
            />`}
        <//>
        <p role="status" class="help">
          ${found.length < adapters.length && `${found.length} of `}${counted(adapters.length, "adapter")}
        </p>
        <ul class="adapters">
          ${found.map((each) => html`<${Adapter} key=${each.name} adapter=${each} refresh=${refresh} />`)}
        </ul>
      </div>
      <aside aria-label="Add an adapter">
        <${Upload} refresh=${refresh} />
      </aside>
    </div>
  `;
}

/** @param {{adapter: Json, refresh: () => Promise<void>}} props */
function Adapter({ adapter, refresh }) {
  const [error, setError] = useState(/** @type {ServerError | null} */ (null));
  const question = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const path = `adapters/${encodeURIComponent(adapter.name)}`;
  const live = adapter.versions.find((/** @type {Json} */ each) => each.live);
  /** @type {(method: string, to: string, body?: Json) => Promise<void>} */
  const act = async (method, to, body) => {
    try {
      await call(method, to, body);
      setError(null);
      await refresh();
    } catch (problem) {
      setError(asServerError(problem));
    }
  };
  return html`
    <li>
      <details>
        <summary>
          <span class="name">${adapter.name}</span>
          <span class="help">
            ${[
              KINDS[adapter.kind] ?? "no valid version",
              live && sizeOf(live.size_bytes),
              counted(adapter.requests, "request"),
              live ? (live.loaded ? "loaded" : "not loaded") : "not served",
            ]
              .filter(Boolean)
              .join(" · ")}
          </span>
        </summary>
        <${ErrorLine} error=${error} />
        <ul class="versions">
          ${adapter.versions.map(
            (/** @type {Json} */ each) => html`
              <li key=${each.version}>
                <code>${shown(each.version)}</code>
                <span class="help">${detailsOf(each)}</span>
                ${shareOf(adapter, each.version).map((share) => html`<span>${share}</span>`)}
                ${
                  each.live
                    ? html`<strong class="live">live</strong>`
                    : html`<button
                        type="button"
                        class="quiet"
                        aria-label="Make ${shown(each.version)} live"
                        onClick=${() => act("POST", `${path}/rollback`, { version: each.version })}
                      >
                        Roll back to it
                      </button>`
                }
                ${[each.warning, ...each.notes].filter(Boolean).map((note) => html`<p class="help">${note}</p>`)}
              </li>
            `,
          )}
        </ul>
        <button
          type="button"
          class="quiet"
          onClick=${() => question.current?.showModal()}
        >
          Remove ${adapter.name}
        </button>
        <dialog ref=${question} aria-label="Remove ${adapter.name}">
          <form
            method="dialog"
            onSubmit=${() => act("DELETE", path)}
          >
            <p>
              Remove <strong>${adapter.name}</strong>${` with ${counted(adapter.versions.length, "version")}?`}
            </p>
            <div class="actions">
              <button type="submit" class="primary">Remove</button>
              <button type="button" onClick=${() => question.current?.close()}>
                Cancel
              </button>
            </div>
          </form>
        </dialog>
      </details>
      ${adapter.rejected && html`<p class="error">${adapter.rejected}</p>`}
    </li>
  `;
}

/**
 * What a version gets of the name's requests, beside the live one or in its place.
 * @param {Json} adapter
 * @param {string} version
 * @returns {string[]}
 */
function shareOf({ split, shadow }, version) {
  const shares = [];
  if (split?.versions[version]) {
    const weights = /** @type {number[]} */ (Object.values(split.versions));
    const sum = weights.reduce((left, right) => left + right);
    shares.push(`${percent(split.versions[version] / sum)} of the requests`);
  }
  if (shadow?.version === version) {
    const { compared, equal } = shadow.results;
    const results = compared ? `: ${equal} of ${counted(compared, "answer")} equal` : "";
    shares.push(`copies of ${percent(shadow.percent / 100)} of the requests${results}`);
  }
  return shares;
}

/** @param {Json} version */
function detailsOf(version) {
  return [
    new Date(version.created_at).toLocaleString(),
    version.source,
    sizeOf(version.size_bytes),
    version.rank === null ? null : `rank ${version.rank}`,
    version.virtual_tokens === null ? null : `${version.virtual_tokens} virtual tokens`,
    counted(version.requests, "request"),
    version.loaded ? "loaded" : "not loaded",
  ]
    .filter(Boolean)
    .join(" · ");
}

/** @param {number} bytes */
function sizeOf(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Drop a folder or an archive, or choose files. @param {{refresh: () => Promise<void>}} props */
function Upload({ refresh }) {
  const [name, setName] = useState("");
  const [files, setFiles] = useState(/** @type {File[]} */ ([]));
  const [force, setForce] = useState(false);
  const [sent, setSent] = useState(/** @type {number | null} */ (null));
  const [added, setAdded] = useState("");
  const [error, setError] = useState(/** @type {ServerError | null} */ (null));
  const take = (/** @type {File[]} */ taken, folder = "") => {
    setFiles(taken);
    setError(null);
    setAdded("");
    if (!name) setName(folder || (taken[0]?.name ?? "").replace(/\.(tar\.gz|tgz|zip)$/, ""));
  };
  const send = async () => {
    const form = new FormData();
    for (const file of files) form.append("file", file, file.name);
    form.append("force", String(force));
    setError(null);
    setSent(0);
    try {
      const { live } = await upload(`adapters/${encodeURIComponent(name)}`, form, setSent);
      setAdded(`${name}@${shown(live)} is live`);
      setFiles([]);
      await refresh();
    } catch (problem) {
      setError(asServerError(problem));
    }
    setSent(null);
  };
  return html`
    <form
      class="main"
      onSubmit=${submits(send)}
    >
      <h2>Add an adapter, or a new version</h2>
      <div
        class="drop"
        onDragOver=${(/** @type {Event} */ event) => event.preventDefault()}
        onDrop=${async (/** @type {DragEvent} */ event) => {
          event.preventDefault();
          const { folder, files: dropped } = await droppedFiles(
            /** @type {DataTransfer} */ (event.dataTransfer),
          );
          take(dropped, folder);
        }}
      >
        <p>Drop a PEFT folder or an archive of it here, or</p>
        <label>
          choose files
          <input
            type="file"
            multiple
            onChange=${(/** @type {any} */ { target }) => take([...target.files])}
          />
        </label>
        <ul class="help">
          ${files.map((file) => html`<li key=${file.name}>${file.name} (${sizeOf(file.size)})</li>`)}
        </ul>
      </div>
      <${Field} label="Name" name="name" error=${error}>
        ${(/** @type {string} */ id) =>
          html`<input
            id=${id}
            value=${name}
            autocomplete="off"
            onInput=${onValue(setName)}
          />`}
      <//>
      <label class="check">
        <input
          type="checkbox"
          checked=${force}
          onChange=${(/** @type {any} */ { target }) => setForce(target.checked)}
        />
        Take it though it names another base model
      </label>
      <button
        type="submit"
        class="primary"
        disabled=${!files.length || !name || sent !== null}
      >
        Add
      </button>
      ${
        sent !== null &&
        html`<div role="status">
          <progress aria-label="Sent" value=${sent}></progress>
          <p class="help">
            ${sent < 1 ? "sending" : "the server checks and loads it"}
          </p>
        </div>`
      }
      <p role="status">${added}</p>
      ${error?.param !== "name" && html`<${ErrorLine} error=${error} />`}
    </form>
  `;
}

/**
 * The files that were dropped, of a folder those in it.
 * @param {DataTransfer} dropped
 * @returns {Promise<{folder: string, files: File[]}>}
 */
async function droppedFiles(dropped) {
  // All entries at once: after the event is over there are none.
  const entries = [...dropped.items].flatMap((item) => item.webkitGetAsEntry() ?? []);
  const folder = entries.find((entry) => entry.isDirectory)?.name ?? "";
  const found = (await Promise.all(entries.map(filesOf))).flat();
  return { folder, files: found };
}

/** @param {FileSystemEntry} entry @returns {Promise<File[]>} */
async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) =>
      /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject),
    );
    return [/** @type {File} */ (file)];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  const found = [];
  // A reader gives at most a hundred at a time, and none at the end.
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found;
    // Of a folder in the folder, as a checkpoint's, nothing is taken.
    for (const each of entries) if (each.isFile) found.push(...(await filesOf(each)));
  }
}
