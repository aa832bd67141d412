/* Publishing by hand: one event, and what the gateway says to it. */
import { $, element } from "./console.document.js";
import { address, describe, problemOf } from "./console.request.js";
import { milliseconds } from "./console.figures.js";

export async function publishByHand(form, stored) {
  const fields = Object.fromEntries(new FormData(form));
  const button = form.querySelector("button[type=submit]");
  clearProblems();
  answer("", "");
  if (fields.channel.trim() === "")
    return showProblem({ errors: [{ field: "channel", rule: "must not be empty" }] });
  button.disabled = true;
  const began = performance.now();
  try {
    const url = address("publish", fields.channel.trim(), { type: fields.type, key: fields.key });
    const type = fields.format === "json" ? "application/json" : "text/plain; charset=utf-8";
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": type },
      body: fields.data,
    });
    if (!response.ok) return showProblem(await problemOf(response));
    const { id } = await response.json();
    answer(
      "stored",
      "Stored at ",
      element("span", { className: "mono", textContent: id }),
      ` in ${milliseconds(performance.now() - began)}.`,
    );
    stored();
  } catch {
    answer("refused", "The gateway cannot be reached: nothing is known of this event.");
  } finally {
    button.disabled = false;
  }
}

function answer(kind, ...content) {
  $("answer").dataset.kind = kind;
  $("answer").replaceChildren(...content);
}

const FORM_FIELDS = ["channel", "type", "key", "data"];

function clearProblems() {
  for (const name of FORM_FIELDS) {
    $(`wrong-${name}`).hidden = true;
    $(`publish-${name}`).removeAttribute("aria-invalid");
    $(`publish-${name}`).removeAttribute("aria-describedby");
  }
}

/** Shows what is wrong at the field that it is about, and the rest as the answer. */
function showProblem(problem) {
  const errors = problem.errors?.length ? problem.errors : problem.field ? [problem] : [];
  const placed = errors.filter(({ field }) => FORM_FIELDS.includes(field));
  for (const { field, rule, detail } of placed) {
    $(`wrong-${field}`).textContent = rule ?? detail;
    $(`wrong-${field}`).hidden = false;
    $(`publish-${field}`).setAttribute("aria-invalid", "true");
    $(`publish-${field}`).setAttribute("aria-describedby", `wrong-${field}`);
  }
  const others = errors
    .filter((error) => !placed.includes(error))
    .map(({ field, rule, detail }) => `${field}: ${rule ?? detail}`);
  const rest =
    placed.length > 0 && others.length === 0
      ? "Not stored."
      : [problem.status ? describe(problem) : "", ...others].filter(Boolean).join(" ");
  answer("refused", rest);
  if (placed.length > 0) $(`publish-${placed[0].field}`).focus();
}
