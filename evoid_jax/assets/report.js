"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);

  // Values under the pointer, or under the arrow keys once a chart has the focus.
  for (const chart of document.querySelectorAll("svg[data-chart]")) {
    const data = JSON.parse(chart.dataset.chart);
    const cursor = chart.querySelector(".cursor");
    let at = -1;
    const hide = () => { tip.hidden = true; cursor.classList.remove("on"); at = -1; };
    const show = (i) => {
      at = Math.max(0, Math.min(data.steps.length - 1, i));
      cursor.setAttribute("x1", data.x[at]);
      cursor.setAttribute("x2", data.x[at]);
      cursor.classList.add("on");
      const rows = data.series.map((one) => {
        const row = document.createElement("div");
        const swatch = document.createElement("i");
        const value = document.createElement("b");
        swatch.style.setProperty("--c", one.colour);
        value.textContent = one.values[at];
        row.append(swatch, one.name, value);
        return row;
      });
      const head = document.createElement("strong");
      head.textContent = "step " + data.steps[at];
      tip.replaceChildren(head, ...rows.reverse());
      tip.hidden = false;
      const box = chart.getBoundingClientRect();
      const x = box.left + data.x[at] * box.width / chart.viewBox.baseVal.width;
      const room = document.documentElement.clientWidth - tip.offsetWidth;
      // Right of the cursor where there is room, else left of it, and never off the page.
      const left = x + 16 < room ? x + 14 : Math.max(0, x - 14 - tip.offsetWidth);
      tip.style.left = scrollX + left + "px";
      tip.style.top = scrollY + box.top + 8 + "px";
    };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
      let best = 0;
      data.x.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(data.x[best] - x)) best = i; });
      show(best);
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move) { event.preventDefault(); show(at < 0 ? (move > 0 ? 0 : data.x.length - 1) : at + move); }
      if (event.key === "Escape") hide();
    });
  }

  // Small photos are enlarged without blur: their pixels are what the model saw.
  const crisp = (image) => image.classList.toggle("tiny", image.naturalWidth > 0 && image.naturalWidth <= 96);
  for (const image of document.images) image.decode().then(() => crisp(image), () => {});

  const element = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // A group of videos has one clock: they start, stop and begin again together.
  class Group {
    constructor(box) {
      this.videos = [...box.querySelectorAll("video")];
      this.box = box;
      this.playing = false;
      for (const video of this.videos) {
        video.controls = false;
        video.loop = false;
        video.addEventListener("ended", () => { if (this.playing && this.videos.every((one) => one.ended)) this.rewind(); });
        video.addEventListener("click", () => this.set(!this.playing));
      }
    }
    rewind() {
      for (const video of this.videos) { video.currentTime = 0; video.play().catch(() => {}); }
    }
    set(playing) {
      this.playing = playing;
      const start = Math.min(...this.videos.map((one) => one.currentTime));
      for (const video of this.videos) {
        if (playing) {
          if (video.readyState && Math.abs(video.currentTime - start) > 0.05) video.currentTime = start;
          video.play().catch(() => {});
        } else video.pause();
      }
      this.changed?.(playing);
    }
    seek(share) {
      this.set(false);
      for (const video of this.videos) {
        const go = () => { video.currentTime = share * video.duration * 0.999; };
        if (video.readyState) { go(); continue; }
        video.preload = "auto";
        video.addEventListener("loadedmetadata", go, { once: true });
      }
    }
  }

  const range = (name, properties) => {
    const input = element("input", { type: "range", ...properties });
    return [element("label", {}, name, input), input];
  };

  const tools = (group, stage) => {
    const duo = stage.querySelector(".duo, .row");
    const play = element("button", { type: "button", textContent: "Play" });
    const over = element("button", { type: "button", textContent: "Slider", ariaPressed: "false" });
    const full = element("button", { type: "button", textContent: "Full screen" });
    const [timeLabel, time] = range("time", { min: 0, max: 1, step: 0.001, value: 0 });
    const [zoomLabel, zoom] = range("zoom", { min: 1, max: 5, step: 0.1, value: 1 });
    const [atLabel, at] = range("base | evolved", { min: 0, max: 100, step: 1, value: 50 });
    atLabel.hidden = true;
    for (const video of group.videos) {
      const lens = element("div", { className: "lens" });
      video.replaceWith(lens);
      lens.append(video);
    }
    play.addEventListener("click", () => group.set(!group.playing));
    group.changed = (playing) => { play.textContent = playing ? "Pause" : "Play"; };
    time.addEventListener("input", () => group.seek(Number(time.value)));
    group.videos[0].addEventListener("timeupdate", () => {
      const { currentTime, duration } = group.videos[0];
      if (duration && document.activeElement !== time) time.value = currentTime / duration;
    });
    zoom.addEventListener("input", () => duo.style.setProperty("--zoom", zoom.value));
    const cut = (percent) => { at.value = percent; duo.style.setProperty("--at", at.value + "%"); };
    at.addEventListener("input", () => cut(at.value));
    over.addEventListener("click", () => {
      const on = duo.classList.toggle("over");
      over.ariaPressed = String(on);
      atLabel.hidden = !on;
      cut(50);
    });
    duo.addEventListener("pointermove", (event) => {
      const lens = event.target.closest(".lens");
      if (!lens) return;
      const box = lens.getBoundingClientRect();
      const x = 100 * (event.clientX - box.left) / box.width, y = 100 * (event.clientY - box.top) / box.height;
      if (duo.classList.contains("over")) cut(x);
      duo.style.setProperty("--zx", x + "%");
      duo.style.setProperty("--zy", y + "%");
    });
    full.addEventListener("click", () => {
      if (document.fullscreenElement) document.exitFullscreen(); else stage.requestFullscreen().catch(() => {});
    });
    full.hidden = !document.fullscreenEnabled;
    const bar = element("div", { className: "tools" }, play, ...(duo.matches(".duo") && group.videos.length === 2 ? [over, atLabel] : []), timeLabel, zoomLabel, full);
    stage.append(bar);
  };

  const groups = [];
  for (const box of document.querySelectorAll(".duo, .row")) {
    if (!box.querySelector("video")) continue;
    const group = new Group(box);
    if (box.parentElement.matches(".stage")) tools(group, box.parentElement);
    groups.push(group);
  }

  // Of all groups only the one in the middle of the window plays: two videos, not a storm.
  const button = document.getElementById("play");
  if (button && groups.length) {
    let current = null;
    const inView = () => {
      const middle = innerHeight / 2;
      const away = (group) => {
        const box = group.box.getBoundingClientRect();
        if (box.bottom < 0 || box.top > innerHeight) return Infinity;
        return Math.max(box.top - middle, middle - box.bottom, 0);
      };
      const near = groups.reduce((best, one) => (away(one) < away(best) ? one : best));
      return away(near) === Infinity ? null : near;
    };
    const follow = () => {
      if (button.getAttribute("aria-pressed") !== "true") return;
      const next = inView();
      if (next === current) return;
      current?.set(false);
      current = next;
      current?.set(true);
    };
    let waiting = false;
    const soon = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; follow(); });
    };
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon, { passive: true });
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      if (on) follow(); else { for (const group of groups) group.set(false); current = null; }
    });
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) button.setAttribute("aria-pressed", "false");
    button.hidden = false;
    follow();
  }
})();
