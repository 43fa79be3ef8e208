/** A completion as its tokens: each can be asked how likely it was, and what else was likely there. */

import { html, useMemo, useRef, useState } from "./html.js";
import { percent } from "./parts.js";

/**
 * @typedef {import("./run.js").Token} Token
 * @typedef {import("./run.js").Completion} Completion
 *
 * @typedef {object} Span a piece of the text, and the tokens that it was made of
 * @property {string} text
 * @property {number} start where it begins
 * @property {number} first the index of its first token
 * @property {Token[]} tokens
 */

/**
 * The text in the spans of its tokens. Most tokens are a span; those that make one character
 * together share one; one that is not in the text (an end-of-sequence token) has an empty one.
 * @param {string} text
 * @param {Token[]} tokens
 * @returns {Span[]}
 */
export function spansOf(text, tokens) {
  /** @type {Span[]} */
  const spans = [];
  /** @type {Token[]} */
  let waiting = [];
  let position = 0;
  /** @param {number} end @param {number} next */
  const close = (end, next) => {
    const first = next - waiting.length;
    spans.push({
      text: text.slice(position, end),
      start: position,
      first,
      tokens: waiting,
    });
    position = end;
    waiting = [];
  };
  tokens.forEach((token, index) => {
    // A text of several tokens is not the sum of theirs: it ends where the next one is found.
    const found = token.token ? text.indexOf(token.token, position) : -1;
    const isNext = waiting.length
      ? found > position && found - position <= waiting.length
      : found === position;
    if (isNext) {
      if (waiting.length) close(found, index);
      waiting = [token];
      close(found + token.token.length, index + 1);
    } else {
      waiting.push(token);
    }
  });
  if (waiting.length || position < text.length) close(text.length, tokens.length);
  return spans;
}

/**
 * @param {{completion: Completion, label: string, onGoOn?: (start: number, first: number, token: Token) => void}} props
 */
export function Tokens({ completion, label, onGoOn }) {
  const { text, tokens } = completion;
  const [selected, setSelected] = useState(-1);
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  const spans = useMemo(() => spansOf(text, tokens), [text, tokens]);
  const span = spans[selected];

  /** Arrows go from token to token: Tab would go through hundreds. @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const button =
      list.current?.querySelectorAll("button")[(selected < 0 ? 0 : selected) + (step ?? 0)];
    if (event.key === "Escape") setSelected(-1);
    if (!step || !button) return;
    event.preventDefault();
    button.focus();
    setSelected((selected < 0 ? 0 : selected) + step);
  };

  return html`
    <div
      class="tokens"
      role="group"
      aria-label=${label}
      ref=${list}
      onKeyDown=${onKeyDown}
    >
      ${spans.map(
        (each, index) =>
          html`<button
            key=${index}
            type="button"
            class=${classOf(each, index === selected)}
            tabindex=${index === Math.max(selected, 0) ? 0 : -1}
            aria-pressed=${index === selected}
            title=${titleOf(each)}
            onClick=${() => setSelected(index === selected ? -1 : index)}
          >
            ${each.text || "⏹"}
          </button>`,
      )}
    </div>
    ${
      span &&
      html`<${Alternatives}
        span=${span}
        onGoOn=${
          onGoOn &&
          ((/** @type {Token} */ token) => {
            setSelected(-1);
            onGoOn(span.start, span.first, token);
          })
        }
      />`
    }
  `;
}

/** @param {Span} span @param {boolean} isSelected */
function classOf({ text, tokens }, isSelected) {
  const least = Math.min(...tokens.map((token) => token.logprob));
  const likely =
    least > Math.log(0.7)
      ? ""
      : least > Math.log(0.3)
        ? "fair"
        : least > Math.log(0.05)
          ? "low"
          : "rare";
  return ["token", likely, text === "" ? "end" : "", isSelected ? "selected" : ""].join(" ");
}

/** @param {Span} span */
function titleOf({ tokens }) {
  return tokens
    .map(({ token, logprob }) => `${quoted(token)} ${percent(Math.exp(logprob))}`)
    .join(", ");
}

/**
 * What was likely in the place of a token.
 * @param {{span: Span, onGoOn?: (token: Token) => void}} props
 */
function Alternatives({ span, onGoOn }) {
  const [chosen] = span.tokens;
  if (!chosen) return null;
  const others = chosen.top.some((each) => each.token_id === chosen.token_id)
    ? chosen.top
    : [...chosen.top, chosen];
  return html`
    <section class="alternatives" aria-label="What else was likely here">
      <p class="help">
        The model's own probabilities in this place, before the controls.
        ${onGoOn && " Choose one to go on from it."}
      </p>
      <ol>
        ${others.map(
          (each) => html`
            <li class=${each.token_id === chosen.token_id ? "chosen" : ""}>
              <${onGoOn && each.token ? "button" : "span"}
                class="name"
                onClick=${onGoOn && (() => onGoOn({ ...each, top: chosen.top }))}
                ><code>${quoted(each.token)}</code><//
              >
              <${Bar} share=${Math.exp(each.logprob)} kind="raw" />
              <span class="number">${percent(Math.exp(each.logprob))}</span>
            </li>
          `,
        )}
      </ol>
    </section>
  `;
}

/** @param {{share: number, kind: string, of?: number}} props */
export function Bar({ share, kind, of = 1 }) {
  return html`<span class="bar"
    ><span
      class=${kind}
      style=${{ width: `${Math.min(100, (share / of) * 100)}%` }}
    ></span
  ></span>`;
}

/** A token's text as one can see it. @param {string} token */
export function quoted(token) {
  return token === "" ? "end of text" : JSON.stringify(token).slice(1, -1).replaceAll(" ", "␣");
}
