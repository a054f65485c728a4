// A word diff: what was taken out (del) and put in (ins). Longest common subsequence over words, each with the space
// before it.

const MAX_CELLS = 4_000_000;

function words(text) {
  return text.match(/\s*\S+|\s+/gu) ?? [];
}

// Returns [kind, text] runs, kind being "same", "del" or "ins".
export function wordDiff(before, after) {
  let [a, b] = [words(before), words(after)];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const head = a.slice(0, start);
  const tail = end ? a.slice(-end) : [];
  a = a.slice(start, a.length - end);
  b = b.slice(start, b.length - end);
  const middle = a.length * b.length > MAX_CELLS ? [["del", a.join("")], ["ins", b.join("")]] : align(a, b);
  return join([["same", head.join("")], ...middle, ["same", tail.join("")]]);
}

function align(a, b) {
  const width = b.length + 1;
  const best = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      best[i * width + j] = a[i] === b[j]
        ? best[(i + 1) * width + j + 1] + 1
        : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const runs = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      runs.push(["same", a[i]]);
      i += 1;
      j += 1;
    } else if (j >= b.length || (i < a.length && best[(i + 1) * width + j] >= best[i * width + j + 1])) {
      runs.push(["del", a[i]]);
      i += 1;
    } else {
      runs.push(["ins", b[j]]);
      j += 1;
    }
  }
  return runs;
}

function join(runs) {
  const joined = [];
  for (const [kind, text] of runs) {
    if (!text) continue;
    if (joined.at(-1)?.[0] === kind) joined.at(-1)[1] += text;
    else joined.push([kind, text]);
  }
  return joined;
}

export function showDiff(element, before, after) {
  const runs = wordDiff(before, after);
  element.hidden = runs.every(([kind]) => kind === "same");
  element.replaceChildren(
    ...runs.map(([kind, text]) => {
      const node = document.createElement(kind === "same" ? "span" : kind);
      node.textContent = text; // never as HTML
      return node;
    }),
  );
}
