"use strict";
(() => {
  const main = document.getElementById("blind");
  const data = JSON.parse(main.dataset.study);
  const asked = data.trials.length * data.questions.length;
  const drawer = "evoid-blind-" + data.study; // where the browser keeps a half-done study
  const aside = drawer + "-before"; // and what earlier people answered, the last of them last
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const element = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const button = (text, key, act, kind = "") =>
    element("button", { type: "button", className: kind, onclick: act }, text, " ", element("kbd", {}, key));

  // A fair number below `below`: Math.random would do, but this one owes nothing to a seed.
  const draw = (below) => {
    const limit = 2 ** 32 - (2 ** 32 % below), word = new Uint32Array(1);
    do crypto.getRandomValues(word); while (word[0] >= limit);
    return word[0] % below;
  };
  const shuffled = (values) => {
    const out = [...values];
    for (let i = out.length - 1; i > 0; i--) { const j = draw(i + 1); [out[i], out[j]] = [out[j], out[i]]; }
    return out;
  };

  const fresh = () => ({
    rater: Array.from({ length: 10 }, () => "abcdefghijkmnpqrstuvwxyz23456789"[draw(32)]).join(""),
    order: shuffled(data.trials.keys()).map((trial) => ({ trial, swap: draw(2) === 1 })),
    answers: [],
  });
  const read = (name) => { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } };
  const write = (name, value) => { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* it is saved as a file then */ } };
  const begun = (one) => one?.order?.length === data.trials.length && one.answers?.length > 0;
  const keep = () => write(drawer, state);
  const changed = () => { state.saved = false; keep(); };

  const kept = read(drawer);
  let state = begun(kept) ? kept : fresh(), keys = {}, since = 0, videos = [];
  const earlier = [read(aside) ?? []].flat().filter(begun);

  const show = (actions, ...children) => {
    keys = actions;
    for (const video of videos) if (!children.some((child) => child.contains(video))) video.pause();
    videos = [];
    main.replaceChildren(...children);
    main.focus({ preventScroll: true });
  };

  // Nobody's answers are thrown away: they are saved as a file, if they are not yet, and laid aside.
  const next = () => {
    if (state.answers.length) {
      if (!state.saved) save();
      earlier.push(state);
      write(aside, earlier);
    }
    state = fresh();
    keep();
    question();
  };
  const before = () => {
    const one = earlier.pop();
    if (state.answers.length) earlier.unshift(state);
    write(aside, earlier);
    state = one;
    keep();
    question();
  };
  const nextButton = (text) => button(state.saved ? text : `Save, then ${text.toLowerCase()}`, "R", next);

  const start = () => {
    const answered = state.answers.length;
    const rows = [
      ["←  →", "choose the left or the right video"],
      ["Space", "play or pause both"],
      ["Backspace", "go back to the question before"],
      ["N", "skip: it does not play, or there is nothing to see"],
      ["S", "save the answers so far as a file"],
    ].map(([key, words]) => element("tr", {}, element("td", {}, element("kbd", {}, key)), element("td", {}, words)));
    const actions = { Enter: question, ...(answered ? { r: next } : {}), ...(earlier.length ? { b: before } : {}) };
    const buttons = [button(answered ? `Go on (${answered} of ${asked} answered)` : "Begin", "Enter", question, "main")];
    if (answered) buttons.push(nextButton("Begin anew"));
    if (earlier.length) buttons.push(button(`Back to the person before (${earlier.at(-1).answers.length} of ${asked} answered)`, "B", before));
    show(actions, element("div", { className: "start" },
      element("h1", {}, "Which video is better?"),
      element("p", {}, `${data.trials.length} pairs of videos, ${data.questions.length} questions on each. Both videos of a pair were made from the same photo and the same text; you are not told by what. Their order and their sides are drawn by chance. If you are not sure, choose what you would guess.`),
      element("table", {}, element("tbody", {}, ...rows)),
      element("p", { className: "buttons" }, ...buttons),
    ));
  };

  const question = () => {
    const at = state.answers.length;
    if (at >= asked) return done();
    const place = state.order[Math.floor(at / data.questions.length)];
    const asking = data.questions[at % data.questions.length], trial = data.trials[place.trial];
    const [left, right] = place.swap ? [...trial.videos].reverse() : trial.videos;
    const choose = (one) => () => {
      state.answers.push({
        trial: trial.name, question: asking.name, left, right,
        choice: one, seconds: Math.round(performance.now() - since) / 1000,
      });
      changed();
      question();
    };
    const back = () => { if (state.answers.length) { state.answers.pop(); changed(); question(); } else start(); };
    // The same two videos stay, and go on playing, while the next question on them is asked.
    const same = at % data.questions.length > 0 && main.querySelector(`.sides[data-trial="${trial.name}"]`);
    const sides = same || twoSides(trial.name, left, right);
    const head = element("div", { className: "ask" },
      ...(trial.photo ? [element("img", { src: data.files[trial.photo], alt: "photo of the person" })] : []),
      element("div", { role: "status" },
        element("p", { className: "facts" }, `question ${at + 1} of ${asked}`),
        element("h1", {}, asking.text),
        element("p", { className: "facts" }, "The text: “" + trial.prompt + "”")));
    const actions = { ArrowLeft: choose(left), ArrowRight: choose(right), Backspace: back, n: choose(null), s: save, " ": toggle };
    const foot = element("p", { className: "foot" }, ...[["Play or pause", "Space", " "], ["Back", "Backspace"], ["Skip", "N", "n"], ["Save", "S", "s"]]
      .map(([text, key, name]) => button(text, key, () => keys[name ?? key]())));
    const moving = same ? videos.some((video) => !video.paused) : !still;
    show(actions, element("progress", { max: asked, value: at, ariaLabel: "answered" }), head, sides, foot);
    videos = [...sides.querySelectorAll("video")];
    if (moving) together();
    since = performance.now();
  };

  const twoSides = (name, left, right) => {
    const side = (one, name, stacked, arrow, key) => {
      const video = element("video", { src: data.files[one], muted: true, loop: true, playsInline: true, preload: "auto", ariaLabel: `${name} video` });
      video.addEventListener("loadedmetadata", () => {
        video.classList.toggle("tiny", video.videoWidth <= 192);
        sides.classList.toggle("wide", video.videoWidth > 1.2 * video.videoHeight);
      });
      // On a phone wide videos lie one above the other, and their buttons say so.
      const words = element("span", {}, element("span", { className: "beside" }, name), element("span", { className: "stacked" }, stacked));
      return element("div", { className: "side" }, video, button(words, arrow, () => keys[key]()));
    };
    const sides = element("div", { className: "sides" });
    sides.append(side(left, "Left", "Upper", "←", "ArrowLeft"), side(right, "Right", "Lower", "→", "ArrowRight"));
    sides.dataset.trial = name;
    return sides;
  };

  const together = () => { for (const video of videos) video.play().catch(() => {}); };
  const toggle = () => {
    if (videos.some((video) => !video.paused)) for (const video of videos) video.pause();
    else together();
  };

  const save = () => {
    const { rater, answers } = state;
    const text = JSON.stringify({ schema: 1, study: data.study, rater, saved: new Date().toISOString(), answers }, null, 1);
    const url = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    element("a", { href: url, download: `answers_${rater}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    state.saved = true;
    keep();
  };

  const done = () => {
    const back = () => { state.answers.pop(); changed(); question(); };
    const store = () => { save(); done(); };
    const chosen = state.answers.filter((one) => one.choice).length;
    const told = state.saved ? `Saved as answers_${state.rater}.json: put this file` : "Save them as a file, and put it";
    show({ Enter: store, s: store, Backspace: back, r: next }, element("div", { className: "start" },
      element("h1", {}, "Done. Thank you."),
      element("p", {}, `${chosen} choices, ${asked - chosen} skipped. ${told} beside this page or send it to whoever asked you.`),
      element("p", { className: "buttons" }, button("Save the answers", "Enter", store, "main"), button("Back", "Backspace", back), nextButton("Next person")),
    ));
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    // A focused button keeps its own two keys.
    if (event.target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return;
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
  // Two tabs would write over each other: the one that did not write last asks before it goes on.
  window.addEventListener("storage", (event) => {
    if (event.key !== drawer) return;
    const here = () => location.reload();
    show({ Enter: here }, element("div", { className: "start" },
      element("h1", {}, "This study goes on in another tab."),
      element("p", {}, "Nothing is lost. Close this tab, or go on here with what was answered there."),
      element("p", { className: "buttons" }, button("Go on here", "Enter", here, "main")),
    ));
  });
  start();
})();
