/** A generation that streams: what has come of it, how fast, and how it ended. */

import { useEffect, useRef, useState } from "./html.js";
import { asServerError, stream } from "./server.js";

/**
 * @typedef {import("./server.js").Json} Json
 *
 * @typedef {object} Token as the server reports it, with the likeliest ones in its place
 * @property {string} token
 * @property {number} token_id
 * @property {number} logprob
 * @property {{token: string, token_id: number, logprob: number}[]} top
 *
 * @typedef {object} Completion
 * @property {string} text
 * @property {Token[]} tokens
 * @property {Json | null} ending the event that ended it
 *
 * @typedef {object} Run
 * @property {"idle" | "waiting" | "streaming" | "done" | "stopped" | "failed"} status
 * @property {Completion[]} completions
 * @property {number} numTokens
 * @property {number} secondsFromFirst since the first token
 * @property {import("./server.js").ServerError | null} error
 */

/** @type {Run} */
const IDLE = {
  status: "idle",
  completions: [],
  numTokens: 0,
  secondsFromFirst: 0,
  error: null,
};

/**
 * The run of a view, which ends with it.
 * @returns {{run: Run, isRunning: boolean, start: (path: string, body: Json, kept?: Completion) => Promise<void>, stop: () => void}}
 */
export function useRun() {
  const [run, setRun] = useState(IDLE);
  const controller = useRef(/** @type {AbortController | null} */ (null));
  const stop = () => controller.current?.abort();
  useEffect(() => stop, []);

  /**
   * @param {string} path
   * @param {Json} body
   * @param {Completion} [kept] what the text goes on from
   */
  const start = async (path, body, kept) => {
    stop();
    const own = (controller.current = new AbortController());
    const before = kept ? [kept] : [];
    /** @type {Run} */
    let now = { ...IDLE, status: "waiting", completions: before };
    /** @param {Partial<Run>} changes */
    const become = (changes) => {
      now = { ...now, ...changes };
      if (controller.current === own) setRun(now);
    };
    become({});
    let first = 0;
    try {
      for await (const event of stream(path, body, own.signal)) {
        first ||= performance.now();
        become({
          status: "streaming",
          completions: withEvent(now.completions, event),
          numTokens: now.numTokens + (event.logprobs?.length ?? 0),
          secondsFromFirst: (performance.now() - first) / 1000,
        });
      }
      become({ status: "done" });
    } catch (error) {
      if (own.signal.aborted) become({ status: "stopped" });
      else become({ status: "failed", error: asServerError(error) });
    }
  };
  return {
    run,
    isRunning: run.status === "waiting" || run.status === "streaming",
    start,
    stop,
  };
}

/**
 * @param {Completion[]} completions
 * @param {Json} event
 */
function withEvent(completions, event) {
  const next = [...completions];
  const before = next[event.index] ?? { text: "", tokens: [], ending: null };
  next[event.index] = {
    text: before.text + event.text,
    tokens: event.logprobs ? [...before.tokens, ...event.logprobs] : before.tokens,
    ending: event.finish_reason ? event : before.ending,
  };
  return next;
}

/**
 * The words of a run for whoever watches it.
 * @param {Run} run
 * @returns {string[]}
 */
export function factsOf(run) {
  const endings = run.completions.flatMap((each) => each?.ending ?? []);
  const facts = [];
  if (run.status === "waiting") facts.push("waiting for the first token");
  if (run.status === "streaming" && run.numTokens > 1 && run.secondsFromFirst > 0) {
    facts.push(`${run.numTokens} tokens`, perSecond(run.numTokens - 1, run.secondsFromFirst));
  }
  if (run.status === "stopped") facts.push("stopped");
  if (run.status !== "done" || !endings.length) return facts;
  const { usage, timings } = endings[endings.length - 1];
  const numTokens = endings.reduce((sum, each) => sum + each.usage.completion_tokens, 0);
  facts.push(
    ...new Set(endings.map((each) => REASONS[each.finish_reason])),
    `${usage.prompt_tokens} prompt tokens${usage.cached_tokens ? ` (${usage.cached_tokens} cached)` : ""}`,
    `${numTokens} completion tokens`,
    `first after ${timings.ttft.toFixed(0)} ms`,
  );
  const seconds = (timings.total - timings.ttft) / 1000;
  if (numTokens > 1 && seconds > 0) facts.push(perSecond(numTokens - 1, seconds));
  return facts;
}

/** @type {Record<string, string>} */
const REASONS = {
  stop: "stop: the model ended it, or a stop string",
  length: "length: max_new_tokens",
  timeout: "timeout: the time was up",
  abort: "abort: the server ended it",
};

/** @param {number} number @param {number} seconds */
function perSecond(number, seconds) {
  return `${(number / seconds).toFixed(1)} tokens a second`;
}

/** The versions that made an answer. @param {Json} ending @returns {string[]} */
export function versionsOf(ending) {
  return [ending.template, ending.adapter, ending.soft_prompt].flatMap((used) =>
    used?.name ? [`${used.name}@${used.version.slice(0, 12)}`] : [],
  );
}
