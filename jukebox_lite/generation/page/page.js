"use strict";

/** 65.43 -> "1:05.4" */
function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${(tenths % 600 / 10).toFixed(1).padStart(4, "0")}`;
}

/** The index of the last of ascending `times` that is not after `second`; -1 before the first. */
function lastBefore(times, second) {
  let low = 0, high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= second) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Words that light up: those of the past, and the one that is sung. */
class Lyrics {
  constructor(box) {
    this.box = box;
    this.words = [...box.querySelectorAll("[data-at]")].sort((a, b) => a.dataset.at - b.dataset.at);
    this.times = this.words.map((word) => Number(word.dataset.at));
    this.shown = -1;
  }

  show(second) {
    const now = lastBefore(this.times, second);
    if (now === this.shown) return;
    this.words.forEach((word, index) => {
      word.classList.toggle("past", index < now);
      word.classList.toggle("current", index === now);
    });
    this.shown = now;
    if (now < 0) return;
    const word = this.words[now];
    this.box.scrollTop = word.offsetTop - this.box.clientHeight / 3;
  }
}

class Player {
  static sounding = null; // the one that is heard, or was last

  constructor(element, lyrics) {
    const part = (name) => element.querySelector(name);
    Object.assign(this, { element, lyrics, seconds: Number(element.dataset.seconds) });
    Object.assign(this, { audio: part("audio"), button: part(".play"), seek: part(".seek") });
    Object.assign(this, { stage: part(".stage"), now: part(".now") });
    this.audio.controls = false;
    this.button.addEventListener("click", () => this.toggle());
    this.seek.addEventListener("input", () => this.go(Number(this.seek.value)));
    element.addEventListener("keydown", (event) => this.key(event));
    this.audio.addEventListener("play", () => this.began());
    for (const name of ["pause", "ended", "seeked"]) this.audio.addEventListener(name, () => this.draw());
    this.draw();
  }

  toggle() {
    if (!this.audio.paused) return this.audio.pause();
    const other = Player.sounding;
    if (other && other !== this && document.getElementById("keep-place").checked) this.go(other.audio.currentTime);
    this.audio.play().catch((error) => {
      if (error.name !== "AbortError") this.now.textContent = "cannot be played";
    });
  }

  /** It plays, whoever asked for it: then no other does. */
  began() {
    if (Player.sounding !== this) Player.sounding?.audio.pause();
    Player.sounding = this;
    this.follow();
  }

  go(second) {
    this.audio.currentTime = Math.max(0, Math.min(second, this.seconds));
    this.draw();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (step) this.go(this.audio.currentTime + step);
    else if (event.key === " " && event.target !== this.button) this.toggle(); // a button knows what space means
    else return;
    event.preventDefault();
  }

  follow() {
    this.draw();
    if (!this.audio.paused) requestAnimationFrame(() => this.follow());
  }

  draw() {
    const second = this.audio.currentTime, playing = !this.audio.paused;
    this.element.classList.toggle("playing", playing);
    this.button.setAttribute("aria-pressed", String(playing));
    this.stage.style.setProperty("--at", Math.min(second / this.seconds, 1));
    this.seek.value = second;
    const text = clock(second);
    if (text !== this.now.textContent) {
      this.now.textContent = text;
      this.seek.setAttribute("aria-valuetext", text);
    }
    this.lyrics?.show(second);
  }
}

for (const song of document.querySelectorAll(".song")) {
  const box = song.querySelector(".lyrics");
  const lyrics = box && new Lyrics(box);
  for (const element of song.querySelectorAll(".player")) new Player(element, lyrics);
}
