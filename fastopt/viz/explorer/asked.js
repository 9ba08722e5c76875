// The boxes of the questions: choose, see the answer, have it shown.
"use strict";

const Asked = (() => {
  const { element } = Controls;
  const answered = {}; // by id: the numbers, once worked out

  // page: {showMe(question), opened(question, is open)}
  function box(question, page) {
    const name = `choice-${question.id}`;
    const answer = element("div", { "aria-live": "polite", "aria-atomic": "true" });
    const see = element(
      "button",
      { type: "button", class: "main", disabled: true },
      "See the answer",
    );
    const showMe = element("button", { type: "button", hidden: true }, "Show me");
    const labels = question.choices.map(([text], i) => {
      const input = element("input", { type: "radio", name, value: i });
      input.addEventListener("change", () => (see.disabled = false));
      return element("label", {}, input, element("span", {}, text));
    });
    see.addEventListener("click", () => {
      const chosen = labels.findIndex((one) => one.querySelector("input").checked);
      const numbers = (answered[question.id] ??= question.compute());
      const right = Questions.right(question, numbers);
      const good = chosen === right;
      labels.forEach((one, i) => {
        one.classList.toggle("right", i === right);
        one.querySelector("small")?.remove();
        if (i === right) one.append(element("small", {}, "✓ so it is"));
      });
      const verdict = good ? "As you said." : `It is otherwise: ${question.choices[right][0]}.`;
      const said = element("span", { class: `verdict ${good ? "good" : "other"}` }, verdict);
      // One paragraph: screen readers read those that come at once in any order.
      answer.replaceChildren(element("p", {}, said, `\n${question.tell(numbers)}`));
      showMe.hidden = false;
      made.scrollIntoView({ block: "nearest" });
    });
    showMe.addEventListener("click", () => page.showMe(question));
    const made = element(
      "details",
      { name: "question", id: `question-${question.id}` },
      element("summary", {}, question.title),
      element("fieldset", {}, element("legend", {}, question.ask), ...labels),
      element("div", { class: "buttons" }, see, showMe),
      answer,
    );
    made.addEventListener("toggle", () => page.opened(question, made.open));
    return made;
  }

  return { box };
})();
