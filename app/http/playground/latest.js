/** The answer to what is asked now, while it changes. */

import { useEffect, useRef, useState } from "./html.js";
import { asServerError, call } from "./server.js";

/**
 * One request is on its way at a time and the newest comes next, so that a slider is followed as
 * fast as the server answers, and no faster.
 * @param {string} path
 * @param {import("./server.js").Json | null} body null asks nothing
 * @returns {{answer: import("./server.js").Json | null, error: import("./server.js").ServerError | null}}
 */
export function useLatest(path, body) {
  const [told, setTold] = useState(
    /** @type {{answer: any, error: any}} */ ({ answer: null, error: null }),
  );
  const newest = useRef("");
  const isAsking = useRef(false);
  const isGone = useRef(false);
  const asked = body === null ? "" : JSON.stringify(body);
  useEffect(() => () => void (isGone.current = true), []);
  useEffect(() => {
    newest.current = asked;
    if (!isAsking.current) ask();
  }, [asked]);

  async function ask() {
    isAsking.current = true;
    let answered = "";
    while (answered !== newest.current && newest.current && !isGone.current) {
      answered = newest.current;
      try {
        setTold({
          answer: await call("POST", path, JSON.parse(answered)),
          error: null,
        });
      } catch (problem) {
        // The last answer stays: the sentence says what to change.
        const error = asServerError(problem);
        setTold((before) => ({ ...before, error }));
      }
    }
    isAsking.current = false;
  }
  return told;
}
