// The page on which a person plays: shows whose turn it is, sends the action, shows the next turn.

import { ask, message, say } from "./ask.js";
import { Film, draw } from "./draw.js";

const $ = (id) => document.getElementById(id);
const POLL = 2000;
const ARROWS = {
  ArrowRight: "\u2192", ArrowLeft: "\u2190", ArrowUp: "\u2191", ArrowDown: "\u2193", " ": "Space",
};
const canvas = document.querySelector("canvas");

let turn = null; // what the server said last
let film = null; // its frame, once what it holds is decoded
let isReady = false; // whether it is on the screen and takes a key
let pollTimer = 0;

function show(next) {
  turn = next;
  isReady = false;
  clearTimeout(pollTimer);
  $("title").textContent = next.title;
  $("count").textContent = `${next.kept} of ${next.goal} kept`;
  $("bar").max = next.goal;
  $("bar").value = next.kept;
  $("again").disabled = next.status === "done";
  if (next.status === "done") {
    message("All done", "Every episode is stored. You can close this page and stop the server " +
      "with Ctrl-C; more episodes come with the same command again.");
    return;
  }
  message(null);
  const isOver = next.status === "over";
  $("turn").dataset.id = next.id;
  $("agent").textContent = isOver ? "The episode is over" : `You drive ${next.agent}`;
  $("agent").style.color = next.colour ?? "";
  $("step").textContent = isOver ? `return ${next.return.toPrecision(4)}`
    : `step ${next.step + 1} of ${next.max_steps}`;
  $("over").hidden = !isOver;
  $("moves").replaceChildren(...next.moves.map(button));
  const shown = new Film({ steps: [0], frames: [next.frame] });
  shown.ready.then(() => {
    if (turn !== next) return;
    film = shown;
    paint();
    isReady = true;
  });
}

function paint() {
  if (film && turn.status !== "done") draw(canvas, film.frames[0], film.images);
}

function button({ key, action, name }) {
  const made = document.createElement("button");
  const cap = document.createElement("kbd");
  cap.textContent = ARROWS[key] ?? key;
  made.type = "button";
  made.dataset.action = action;
  made.append(cap, ` ${name}`);
  made.addEventListener("click", () => act(action));
  return made;
}

function failed(error) {
  if (error.isRefused) {
    message("This page is not open any more",
      "Open the address that marl demonstrate printed; a new server has a new one.");
  } else if (error.isReply) {
    say(error.message, true);
    isReady = turn !== null;
  } else {
    say("The server does not answer. Episodes that were kept are stored; start marl demonstrate " +
      "again and open the address it prints.", true);
    pollTimer = setTimeout(refresh, POLL);
  }
}

async function send(path, body, said = "") {
  if (!isReady) return;
  isReady = false;
  try {
    const { content, isStale } = await ask(path, body);
    say(isStale ? "The episode went on elsewhere; here is where it is." : said);
    show(content);
  } catch (error) {
    failed(error);
  }
}

async function refresh() {
  clearTimeout(pollTimer);
  try {
    const { content } = await ask("/api/turn");
    if ($("status").classList.contains("alarm")) say("");
    show(content);
  } catch (error) {
    failed(error);
  }
}

const act = (action) => send("/api/act", { id: turn.id, action });
const keep = () => send("/api/keep", { id: turn.id }, "Kept.");
const again = () => send("/api/again", { id: turn.id }, "Begun again.");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || turn === null) return;
  const move = turn.moves.find(({ key }) => key === event.key || key === event.key.toLowerCase());
  if (turn.status === "act" && move) act(move.action);
  else if (turn.status === "over" && event.key === "Enter" && !event.repeat) keep();
  else if (turn.status !== "done" && event.key === "Backspace" && !event.repeat) again();
  else if (!/^(Arrow| )/.test(event.key)) return;
  event.preventDefault();
});

// After the mouse, keys act again instead of pressing what was clicked.
document.addEventListener("pointerup", () => document.activeElement?.blur());
new ResizeObserver(paint).observe(canvas);
$("keep").addEventListener("click", keep);
$("again").addEventListener("click", again);
window.addEventListener("focus", refresh); // another tab may have gone on
refresh();
