// The page: shows a pair, sends the answer, shows the next one.

import { ask, message, say } from "./ask.js";
import { Film } from "./draw.js";
import { Player } from "./player.js";

const $ = (id) => document.getElementById(id);
const POLL = 2000;
const KEYS = {
  ArrowLeft: "first", ArrowRight: "second", ArrowDown: "tie", b: "bad", B: "bad",
  s: "skip", S: "skip",
};
const SAID = {
  first: "Left is better.", second: "Right is better.", tie: "About the same.", bad: "Both bad.",
  skip: "Skipped.",
};
const WAITING = {
  running: ["No open question", "While training runs it asks again by itself, and the pair " +
    "appears here."],
  ended: ["Training has ended", "It asks nothing more. Every answer is stored; you can close this " +
    "page and stop the server with Ctrl-C."],
  stopped: ["Training is not running", "It has not begun, or was stopped; marl resume goes on with " +
    "it. Every answer is stored, and a new pair appears here."],
};
const PLAY = "M4 2l9 6-9 6z";
const PAUSE = "M3 2h4v12H3zM9 2h4v12H9z";

const stages = [$("stage-first"), $("stage-second")];
const player = new Player(stages, $("scrub"), (isPlaying) => {
  $("play-icon").setAttribute("d", isPlaying ? PAUSE : PLAY);
  $("play-text").textContent = isPlaying ? "Pause" : "Play";
});

let question = null; // what the server said last
let isReady = false; // whether its pair is on the screen and takes an answer
let shownAt = 0;
let pollTimer = 0;
const films = new Map();

async function film(number) {
  if (!films.has(number)) {
    if (films.size > 8) films.delete(films.keys().next().value);
    const made = new Film((await ask(`/api/frames/${number}`)).content);
    await made.ready;
    films.set(number, made);
  }
  return films.get(number);
}

async function show(next) {
  const isSame = question !== null && question.id === next.id && question.status === next.status;
  question = next;
  showProgress(next);
  clearTimeout(pollTimer);
  if (next.status !== "ask") {
    isReady = false;
    player.show(null);
    if (next.status === "done") {
      message("All done", "Every answer is stored. You can close this page and stop the server " +
        "with Ctrl-C; more pairs come with a larger --pairs.");
    } else {
      message(...WAITING[next.training ?? "running"]);
      pollTimer = setTimeout(refresh, POLL);
    }
    return;
  }
  if (isSame && isReady) return;
  isReady = false;
  let pair;
  try {
    pair = await Promise.all(next.episodes.map(film));
  } catch (error) {
    if (question === next) failed(error, "This pair cannot be shown; skip it.");
    return;
  }
  if (question !== next) return;
  message(null);
  player.show(pair);
  $("pair").dataset.id = next.id;
  shownAt = performance.now();
  isReady = true;
}

function showProgress(
  { title, task, training, answered, goal, same, repeats, understood, decided, status },
) {
  $("title").textContent = task ? `${title}: ${task}` : title;
  $("better").hidden = Boolean(task);
  $("training").textContent = status === "ask" && training && training !== "running" ?
    `${WAITING[training][0]}: answers are kept for when it goes on.` : "";
  $("count").textContent = goal === null ? `${answered} answered` : `${answered} of ${goal}`;
  $("bar").hidden = goal === null;
  $("bar").max = Math.max(goal ?? 1, 1);
  $("bar").value = answered;
  $("agreement").textContent = repeats === 0 ? "" :
    `You agreed with yourself on ${same} of ${repeats} repeated pairs`;
  $("understood").textContent = decided === 0 ? "" :
    `The learned reward agrees with ${understood} of ${decided} answers of yours that it had ` +
    "not learned from";
  $("undo").disabled = answered === 0;
  document.querySelectorAll("[data-choice]").forEach((button) => {
    button.disabled = status !== "ask";
  });
}

function failed(error, otherwise) {
  if (error.isRefused) {
    message("This page is not open any more",
      "Open the address that marl label printed; a new server has a new one.");
  } else if (error.isReply) {
    message(otherwise, error.message);
    isReady = question?.status === "ask"; // it can still be skipped
  } else {
    say("The server does not answer. All earlier answers are stored; start marl label again and " +
      "open the address it prints.", true);
    pollTimer = setTimeout(refresh, POLL);
  }
}

async function send(path, body, said) {
  isReady = false;
  try {
    const { content, isStale } = await ask(path, body);
    say(isStale ? "That pair was answered elsewhere already; here is the current one." : said);
    await show(content);
  } catch (error) {
    failed(error, "The answer could not be stored");
    isReady = question?.status === "ask" && !error.isRefused;
  }
}

async function answer(choice) {
  if (!isReady || question?.status !== "ask") return;
  if ($("pair").hidden && choice !== "skip") return;
  const chosen = { first: [0], second: [1], tie: [0, 1], bad: [0, 1], skip: [] }[choice];
  chosen.forEach((side) => stages[side].classList.add("chosen"));
  const seconds = (performance.now() - shownAt) / 1000;
  await send("/api/answer", { id: question.id, choice, seconds }, SAID[choice]);
  stages.forEach((stage) => stage.classList.remove("chosen"));
}

async function undo() {
  const isBusy = question === null || (question.status === "ask" && !isReady);
  if (isBusy || $("undo").disabled) return;
  await send("/api/undo", { id: question.id }, "The latest answer is withdrawn.");
}

async function keepTask() {
  const task = $("task").value.trim();
  if (!task) return;
  try {
    showProgress((await ask("/api/task", { task })).content);
    say("Kept: everyone who labels here sees it.");
    $("main").focus();
  } catch (error) {
    say(error.isReply ? error.message : "The server does not answer.", true);
  }
}

async function refresh() {
  clearTimeout(pollTimer);
  try {
    const { content } = await ask("/api/question");
    if ($("status").classList.contains("alarm")) say("");
    await show(content);
  } catch (error) {
    failed(error, "The dataset cannot be read");
  }
}

function act(key) {
  if (key in KEYS) answer(KEYS[key]);
  else if (key === "u" || key === "U" || key === "Backspace") undo();
  else if (key === " ") player.play(!player.isPlaying);
  else if (key === ",") player.seek(Math.ceil(player.time) - 1);
  else if (key === ".") player.seek(Math.floor(player.time) + 1);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = event.target;
  if (at.id === "task") {
    if (event.key === "Enter") keepTask();
    return;
  }
  const isField = at.matches("input, select"); // their own keys move them
  if (isField && /^(Arrow|Backspace| )/.test(event.key)) return;
  if (at.matches("button") && (event.key === " " || event.key === "Enter")) return;
  if (event.repeat && !(event.key === "," || event.key === ".")) {
    if (event.key in KEYS) event.preventDefault();
    return;
  }
  if (act(event.key)) event.preventDefault();
});

// After the mouse, keys answer again instead of moving what was clicked.
document.addEventListener("pointerup", () => {
  if (!document.activeElement?.matches("select, #task")) document.activeElement?.blur();
});

document.querySelectorAll("[data-choice]").forEach((button) => {
  button.addEventListener("click", () => answer(button.dataset.choice));
});
$("undo").addEventListener("click", undo);
$("keep-task").addEventListener("click", keepTask);
$("play").addEventListener("click", () => player.play(!player.isPlaying));
$("scrub").addEventListener("input", () => player.seek(Number($("scrub").value)));
$("speed").addEventListener("change", () => {
  player.speed = Number($("speed").value);
  localStorage.setItem("speed", $("speed").value);
  $("main").focus();
});
const speed = localStorage.getItem("speed");
if ([...$("speed").options].some((option) => option.value === speed)) {
  $("speed").value = speed;
  player.speed = Number(speed);
}
window.addEventListener("focus", refresh); // another tab may have gone on
refresh();
