/**
 * The one way to the server: requests, streams, uploads, and the key.
 *
 * The key is kept in memory only. It is asked for when the server wants one, and the request is then
 * sent again.
 */

/** @typedef {Record<string, any>} Json */

let key = "";
/** @type {(message: string) => Promise<string>} */
let askForKey = async () => "";

/** @param {(message: string) => Promise<string>} ask answers with a key, or "" for none. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** @param {string} given */
export function setKey(given) {
  key = given;
}

export function hasKey() {
  return key !== "";
}

/** What the server refuses, in its own words. */
export class ServerError extends Error {
  /**
   * @param {string} message
   * @param {string} type the server's name for the error
   * @param {string | null} param the field at fault
   */
  constructor(message, type = "", param = null) {
    super(message);
    this.type = type;
    this.param = param;
  }
}

/** @param {any} error @returns {ServerError} */
export function asServerError(error) {
  if (error instanceof ServerError) return error;
  // The browser's own words for it differ, and none says what to do.
  if (error instanceof TypeError)
    return new ServerError("the server cannot be reached: is it running?");
  throw error;
}

/**
 * The JSON that the server answers.
 * @param {string} method
 * @param {string} path relative to the page
 * @param {Json} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>} rejects with a `ServerError`
 */
export async function call(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  return response.status === 204 ? null : response.json();
}

/**
 * The events of a stream, as they come.
 * @param {string} path
 * @param {Json} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Json>} throws a `ServerError`, also for an error on the way
 */
export async function* stream(path, body, signal) {
  const response = await send("POST", path, { ...body, stream: true }, signal);
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let isWhole = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done && isWhole) return;
    if (done) throw new ServerError("the stream ended too soon: the server may have been stopped");
    const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const data = block.slice(block.indexOf("data: ") + "data: ".length);
      isWhole = data === "[DONE]";
      if (isWhole) continue;
      const event = JSON.parse(data);
      if (block.startsWith("event: error")) throw errorOf(event);
      yield event;
    }
  }
}

/**
 * Send a form, and tell how far it is.
 * @param {string} path
 * @param {FormData} form
 * @param {(share: number) => void} onProgress
 * @returns {Promise<Json>} rejects with a `ServerError`
 */
export async function upload(path, form, onProgress) {
  for (;;) {
    const { status, body } = await sendForm(path, form, onProgress);
    if (status < 400) return body;
    if (status !== 401 || !(await hasNewKey(errorOf(body)))) throw errorOf(body);
  }
}

/**
 * Fetch cannot tell how much of a body is sent.
 * @param {string} path
 * @param {FormData} form
 * @param {(share: number) => void} onProgress
 * @returns {Promise<{status: number, body: Json}>}
 */
function sendForm(path, form, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    request.responseType = "json";
    if (key) request.setRequestHeader("authorization", `Bearer ${key}`);
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onload = () => resolve({ status: request.status, body: request.response });
    request.onerror = () => reject(new TypeError("unreachable"));
    request.send(form);
  });
}

/**
 * @param {string} method
 * @param {string} path
 * @param {Json} [body]
 * @param {AbortSignal} [signal]
 */
async function send(method, path, body, signal) {
  for (;;) {
    /** @type {Record<string, string>} */
    const headers = body ? { "content-type": "application/json" } : {};
    if (key) headers.authorization = `Bearer ${key}`;
    const response = await fetch(path, {
      method,
      headers,
      body: JSON.stringify(body),
      signal,
    });
    if (response.ok) return response;
    const error = errorOf(await response.json());
    if (response.status !== 401 || !(await hasNewKey(error))) throw error;
  }
}

/** @param {ServerError} error */
async function hasNewKey(error) {
  const given = await askForKey(error.message);
  if (given) key = given;
  return given !== "";
}

/** @param {Json} body the one error body */
function errorOf(body) {
  return new ServerError(body.error.message, body.error.type, body.error.param);
}
