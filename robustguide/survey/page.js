
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const questions = data.questions;
  const key = "robustguide-survey-" + data.survey;
  const keys = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", Backspace: "back" };
  if (data.ties) keys[0] = "tie";
  const choices = data.ties ? ["left", "right", "tie"] : ["left", "right"];
  const longest = 1e9; // ms, some eleven days; a page may stay open
  const shortest = 200; // ms; the second click of a double click is no answer

  // Without storage, as in a private window that forbids it, the survey works until it is closed.
  const stored = () => {
    try {
      return JSON.parse(window.localStorage.getItem(key));
    } catch {
      return null;
    }
  };
  const store = () => {
    try {
      window.localStorage.setItem(key, JSON.stringify(state));
    } catch {
      // nothing is lost but the way back after a reload
    }
  };

  const fresh = () => {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    const rater = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return { rater, place: -1, answers: {} };
  };
  const isAnswer = (told) =>
    told && choices.includes(told.answer) && Number.isInteger(told.ms) && told.ms >= 0;
  const isState = (told) =>
    told && typeof told === "object" && /^[0-9a-f]{32}$/.test(told.rater) &&
    told.answers && typeof told.answers === "object" &&
    Number.isInteger(told.place) && told.place >= -1 && told.place <= questions.length &&
    questions.slice(0, Math.max(told.place, 0)).every((each) => isAnswer(told.answers[each.id]));

  const found = stored();
  let state = isState(found) ? found : fresh();
  let since = 0;

  const answersFile = () => ({
    survey: data.survey,
    rater: state.rater,
    answers: questions.map((each) => ({ id: each.id, ...state.answers[each.id] })),
  });
  const text = () => JSON.stringify(answersFile(), null, 1) + "\n";

  const show = () => {
    const { place } = state;
    byId("intro").hidden = place !== -1;
    byId("asking").hidden = place < 0 || place >= questions.length;
    byId("end").hidden = place < questions.length;
    if (place >= questions.length) byId("text").value = text();
    if (place < 0 || place >= questions.length) return;
    const question = questions[place];
    const before = state.answers[question.id];
    byId("bar").max = questions.length;
    byId("bar").value = place;
    byId("count").textContent = `Question ${place + 1} of ${questions.length}`;
    byId("prompt").textContent = question.prompt;
    byId("left-image").src = question.left;
    byId("right-image").src = question.right;
    byId("back").disabled = place === 0;
    for (const side of ["left", "right", "tie"]) {
      byId(side).setAttribute("aria-pressed", String(Boolean(before) && before.answer === side));
    }
    since = performance.now();
  };

  const move = (place) => {
    state.place = place;
    store();
    show();
  };
  const answer = (choice) => {
    const ms = Math.min(Math.round(performance.now() - since), longest);
    if (ms < shortest) return;
    state.answers[questions[state.place].id] = { answer: choice, ms };
    move(state.place + 1);
    if (state.place === questions.length) byId("download").focus();
  };
  const back = () => {
    if (state.place > 0) move(state.place - 1);
  };
  const download = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    link.download = `answers-${state.rater.slice(0, 8)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    byId("done").textContent = `The file is called ${link.download}.`;
    byId("next").hidden = false;
  };

  document.addEventListener("keydown", (event) => {
    const does = keys[event.key];
    if (!does || event.ctrlKey || event.altKey || event.metaKey) return;
    if (state.place < 0 || event.target === byId("text")) return;
    if (state.place === questions.length && does !== "back") return;
    event.preventDefault();
    if (event.repeat) return; // a key that is held answers once
    if (does === "back") back();
    else answer(does);
  });
  for (const choice of choices) byId(choice).addEventListener("click", () => answer(choice));
  byId("back").addEventListener("click", back);
  byId("again").addEventListener("click", back);
  byId("download").addEventListener("click", download);
  byId("start").addEventListener("click", () => move(0));
  byId("next").addEventListener("click", () => {
    state = fresh();
    byId("done").textContent = "";
    byId("next").hidden = true;
    move(-1);
    byId("start").focus();
  });

  for (const each of document.querySelectorAll(".ties")) each.hidden = !data.ties;
  byId("total").textContent = questions.length === 1 ? "One question" : `${questions.length} questions`;
  show();
  if (state.place < 0) byId("start").focus();
})();
