/** What one text has that another has not, by words. */

/**
 * The words of `text` in their order, each with whether it is also in `other`, in the same order:
 * what is not on a longest common subsequence is different.
 * @param {string} text
 * @param {string} other
 * @returns {{word: string, isCommon: boolean}[]}
 */
export function differences(text, other) {
  const words = wordsOf(text);
  const others = wordsOf(other);
  // lengths[i][j]: of the longest common subsequence of what follows.
  const lengths = Array.from(
    { length: words.length + 1 },
    () => new Uint32Array(others.length + 1),
  );
  for (let i = words.length - 1; i >= 0; i--) {
    for (let j = others.length - 1; j >= 0; j--) {
      lengths[i][j] =
        words[i] === others[j]
          ? lengths[i + 1][j + 1] + 1
          : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  let j = 0;
  return words.map((word, i) => {
    while (j < others.length && lengths[i][j] === lengths[i][j + 1]) j++;
    const isCommon = j < others.length && word === others[j] && lengths[i][j] > lengths[i + 1][j];
    if (isCommon) j++;
    return { word, isCommon };
  });
}

/** Words with the spaces before them. @param {string} text @returns {string[]} */
function wordsOf(text) {
  return text.match(/\s*\S+|\s+$/g) ?? [];
}
