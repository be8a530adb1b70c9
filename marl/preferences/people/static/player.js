// Plays two films side by side on one clock, which counts steps.

import { draw } from "./draw.js";

const SHORTEST = 2.5; // seconds that the longer episode takes at speed 1, whatever its own time
const LONGEST = 10;
const REST = 0.8; // seconds at the end before it starts again

export class Player {
  constructor(stages, scrub, playing) {
    this.stages = stages; // two elements with a canvas and a .step
    this.scrub = scrub;
    this.onPlaying = playing;
    this.films = null;
    this.speed = 1;
    this.isPlaying = false;
    this.time = 0;
    this.rested = 0;
    this.last = performance.now();
    new ResizeObserver(() => this.paint()).observe(stages[0]);
    const tick = (now) => {
      this.advance(Math.min((now - this.last) / 1000, 0.25));
      this.last = now;
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  show(films) {
    this.films = films;
    this.time = this.rested = 0;
    if (films === null) return;
    this.end = Math.max(1, ...films.map((film) => film.end));
    const seconds = this.end * films[0].secondsPerStep;
    this.rate = this.end / Math.min(Math.max(seconds, SHORTEST), LONGEST); // steps a second at speed 1
    this.scrub.max = this.end;
    this.play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    this.paint();
  }

  play(isPlaying) {
    if (isPlaying && this.films && this.time >= this.end) this.time = 0;
    this.isPlaying = isPlaying;
    this.rested = 0;
    this.onPlaying(isPlaying);
  }

  seek(time) {
    if (!this.films) return;
    this.play(false);
    this.time = Math.min(Math.max(time, 0), this.end);
    this.paint();
  }

  advance(seconds) {
    if (!this.films || !this.isPlaying) return;
    if (this.time >= this.end) {
      this.rested += seconds;
      if (this.rested < REST) return;
      this.time = this.rested = 0;
    } else {
      this.time = Math.min(this.time + seconds * this.rate * this.speed, this.end);
    }
    this.paint();
  }

  paint() {
    if (!this.films) return;
    this.scrub.value = this.time;
    this.scrub.setAttribute("aria-valuetext", `step ${Math.floor(this.time) + 1}`);
    this.films.forEach((film, side) => {
      const stage = this.stages[side];
      const time = Math.min(this.time, film.end);
      draw(stage.querySelector("canvas"), film.at(time), film.images);
      const step = `step ${Math.floor(time) + 1} of ${film.end + 1}`;
      const over = this.time > film.end && film.end < this.end ? ", over" : "";
      stage.querySelector(".step").textContent = step + over;
    });
  }
}
