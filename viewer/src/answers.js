/* Question, reference and both answers token by token: shaded by each token's loss, underlined where it is scored, with
   a mark where the two answers part. */

import { digits, h } from "./dom.js";

export function answers(texts, problem, scores, notes) {
  const asked = texts.questions[problem], found = ["base", "tuned"].map((side) => [side, texts.sides[side].get(problem)]);
  const there = found.filter(([side, answer]) => {
    const known = texts.sides[side].size;
    if (!answer && known) notes.push(`no answer of the ${side} model to ${problem}`);
    return answer;
  });
  const parts = there.length === 2 ? parting(...there.map(([, answer]) => answer.tokens)) : -1;
  const scored = scores && scores.samples.includes(problem);
  return h("div", {},
    asked && h("p", { class: "question" }, h("strong", {}, asked[0]), h("span", { class: "quiet" }, ` reference: ${asked[1]}`)),
    there.map(([side, answer]) => one(side, answer, scores ? scores.cut : null, scored && scores.losses[side]?.get(problem), parts)),
    there.length > 0 && texts.tokens && h("p", { class: "quiet small" },
      "The darker a token, the larger its loss; underlined tokens are scored",
      parts >= 0 ? "; ◆ marks where the two answers part." : there.length === 2 ? "; both answers are the same." : "."));
}

/* The first token in which the answers differ; −1 where they are the same. */
function parting(first, second) {
  const n = Math.max(first.length, second.length);
  for (let i = 0; i < n; i += 1) if (first[i]?.id !== second[i]?.id) return i;
  return -1;
}

function one(side, answer, cut, losses, parts) {
  const n = answer.length, verdict = answer.correct ? (answer.strict ? "correct" : "correct, not strictly") : "wrong";
  if (answer.text !== undefined && answer.text !== null) {
    return h("p", {}, h("strong", {}, side), ` (${verdict}): `, h("span", { class: "whole" }, answer.text));
  }
  const count = cut === null ? "" : `, first ${Math.min(cut, n)} scored`;
  const told = h("span", { class: "told quiet", "aria-live": "polite" });
  const tokens = answer.tokens.map((token, i) => {
    const loss = losses && i < losses.length ? losses[i] : null, scored = cut === null || i < cut;
    const title = `token ${i + 1}, id ${token.id}${loss === null ? "" : `, loss ${digits(loss)} nats`}`;
    const element = h("span", { class: `token${scored ? " scored" : ""}${i === parts ? " parts" : ""}`, title, tabindex: i ? -1 : 0 },
      token.text.replace(/\n/g, "⏎\n"));
    if (loss !== null) element.style.setProperty("--loss", Math.min(1, Math.max(0, loss) / 3).toFixed(2));
    return element;
  });
  const tell = (event) => { told.textContent = event.target.title ? ` ${event.target.title}` : ""; };
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key], at = tokens.indexOf(event.target);
    if (!by || at < 0 || !tokens[at + by]) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    tokens[at + by].tabIndex = 0;
    tokens[at + by].focus();
  };
  return h("div", { class: "answer" },
    h("p", {}, h("strong", {}, side), ` (${verdict}, ${n} tokens${count})`, told),
    h("div", { class: "tokens", role: "group", "aria-label": `answer of the ${side} model`, onfocusin: tell, onpointerover: tell, onkeydown: step },
      tokens, n > tokens.length && `… ${(n - tokens.length).toLocaleString("en")} more`));
}
