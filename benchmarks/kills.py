"""Trials of `benchmarks.chaos` in which what writes is killed, or the disk is full."""

import shutil
import signal
import time
from pathlib import Path
from threading import Timer

from benchmarks.trials import KINDS, SMALL, Attack, Command, Page, Undisturbed, flags, timeless
from envs import Frame
from marl.preferences.dataset.answers import AnswerLog, Pair
from marl.preferences.dataset.footage import EpisodeFrames, write_frames
from marl.reports.recorded import LOCK
from marl.utils.files import is_held
from tests.llm_cases import kept_replies
from tests.llm_server import ModelServer
from tests.processes import free_port

MODEL = {
    "preferences.labeller": "llm",
    "preferences.queries_per_iteration": 4,
    "preferences.llm.model": "stand-in",
    "preferences.llm.preflight": "off",
    "preferences.llm.timeout": 0.4,
    "preferences.llm.deadline": 2.0,
    "preferences.llm.attempts": 2,
    "preferences.llm.backoff": 0.01,
    "preferences.llm.breaker_seconds": 0.5,
    "total_steps": 480,
}
"""Settings of a run that asks a language model."""


STOPS = 60.0
"""Seconds in which a process ends after the other one of its run was killed."""


def kill(attack: Attack, plain: Undisturbed) -> int:
    """Kill a run or command up to four times; return how often that came before its end."""
    what = attack.rng.choice([*KINDS, *KINDS, "labelling", "page", "export", "fit"])
    if what in KINDS:
        training = flags(SMALL, KINDS[what])
        return killed(attack, plain, what, plain.run(what, KINDS[what]), training)
    if what == "labelling":
        return kill_labelling(attack)
    if what == "page":
        return kill_page(attack)
    return kill_command(attack, plain, what)


def two_processes(lab: Path, run: Path, training: list[str]) -> list[Command]:
    """Start the two processes of a run in `run`, or go on with it."""
    begun = (run / "config.toml").exists()
    arguments = ["resume", run] if begun else ["train", "--run-dir", run, *training]
    port, commands = free_port(), []
    for rank in range(2):
        own = lab / str(rank)
        own.mkdir(exist_ok=True)
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        launch = place | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        commands.append(Command(own, *arguments, variables=launch | {"LOCAL_WORLD_SIZE": "2"}))
    return commands


def _wait_for_training(run: Path, commands: list[Command]) -> None:
    """Wait until the processes have met and train, or have ended."""
    while not is_held(run / LOCK) and commands[0].status(0.02) is None:
        pass


def kill_process(attack: Attack, plain: Undisturbed) -> int:
    """Kill one of a run's two processes up to four times, let it end; return the kills.

    The other one must end within `STOPS` seconds. Before the two have met, torchrun would end it.
    """
    training, run = flags(SMALL, KINDS["queries"]), attack.lab / "run"
    alone = plain.lab / "of two"
    if not alone.exists():
        commands = two_processes(plain.lab, alone, training)
        _wait_for_training(alone, commands)
        since = time.monotonic()
        for command in commands:
            if command.status() != 0:
                raise RuntimeError(f"undisturbed: {command.said}")
        plain.seconds["of two"] = time.monotonic() - since
    kills = 0
    for _ in range(attack.rng.randint(1, 4)):
        commands = two_processes(attack.lab, run, training)
        rank = attack.rng.randrange(2)
        _wait_for_training(run, commands)
        moment = attack.rng.uniform(0.0, 0.9) * plain.seconds["of two"]
        is_over = commands[rank].status(moment) is not None
        if not is_over:
            commands[rank].send(signal.SIGKILL)
            kills += 1
            since = time.monotonic()
            status = commands[1 - rank].status(STOPS)
            attack.seconds.append(time.monotonic() - since)
            if status is None:
                attack.note("hangs", f"process {1 - rank} after the other was killed")
            elif status not in (0, 1) or commands[1 - rank].said.count("error: ") != status:
                attack.note("lost", "no line of error:", commands[1 - rank].said[-500:])
        for command in commands:
            command.status()
            if attack.outlives(command):
                attack.note("strays", "of a run of two processes")
        if is_over:
            break
    what = f"two processes after {kills} kills"
    ended = [attack.judge(command, what) for command in two_processes(attack.lab, run, training)]
    if all(ended):
        attack.same(alone, run, what)
    return kills


def killed(attack: Attack, plain: Undisturbed, what: str, alone: Path, training: list[str]) -> int:
    """Kill a training run up to four times, let it end, and compare it; return the kills."""
    kills = 0
    for _ in range(attack.rng.randint(1, 4)):
        command = attack.begin(training)
        if command.status(attack.rng.uniform(0.0, 0.9) * plain.seconds[what]) is not None:
            break
        command.send(signal.SIGKILL)
        kills += 1
        command.status()
        if attack.outlives(command):
            attack.note("strays", what, "workers outlived a kill")
    attack.go_on(training, alone, f"{what} after {kills} kills")
    return kills


def made_by(what: str, attack: Attack, plain: Undisturbed) -> tuple[Path, list[object]]:
    """Return what an undisturbed export or fit has made, and the arguments of another."""
    made = attack.lab / "made"
    if what == "export":
        return plain.dataset(), ["export", plain.run("nav"), made, "--pairs", 100]
    return plain.fit(), ["fit-reward", plain.dataset(), "--steps", 100, "--out", made]


def same_again(attack: Attack, what: str, plain: Undisturbed) -> bool:
    """Run an export or a fit to its end where one was stopped; return whether it ended well."""
    expected, arguments = made_by(what, attack, plain)
    made = attack.lab / "made"
    if not attack.judge(Command(attack.lab, *arguments), f"{what} once more"):
        return False
    ours, theirs = timeless(made), timeless(expected)
    if changed := [n for n in sorted(ours | theirs) if ours.get(n) != theirs.get(n)]:
        attack.note("differing", what, *changed)
    if left := list(attack.lab.glob(".*")):
        attack.note("strays", what, *left)
    shutil.rmtree(made)
    return True


def kill_command(attack: Attack, plain: Undisturbed, what: str) -> int:
    """Kill an export or a fit and start it again, up to three times; return the kills."""
    expected, arguments = made_by(what, attack, plain)
    kills = 0
    for _ in range(3):
        command = Command(attack.lab, *arguments)
        if command.status(attack.rng.uniform(0.0, plain.seconds[expected.name])) is not None:
            break
        command.send(signal.SIGKILL)
        kills += 1
        command.status()
        if not same_again(attack, what, plain):
            break
    return kills


def kill_labelling(attack: Attack) -> int:
    """Kill a run while it asks a language model; return the kills."""
    kills = 0
    with ModelServer(delay=0.01) as server:
        asking = MODEL | {
            "preferences.llm.base_url": server.base_url,
            "preferences.llm.cache": str(attack.lab / "cache.sqlite"),
            "preferences.llm.timeout": 30.0,
            "preferences.llm.deadline": 60.0,
            "preferences.llm.concurrency": 2,
        }
        training = flags(SMALL, asking)
        for _ in range(attack.rng.randint(1, 4)):
            asked, command = len(server.asked), attack.begin(training)
            while len(server.asked) == asked and command.status(0.002) is None:
                pass
            if command.status(attack.rng.uniform(0.0, 0.3)) is not None:
                break
            before = kept_replies(attack.lab)
            command.send(signal.SIGKILL)
            kills += 1
            command.status()
            if not before.items() <= kept_replies(attack.lab).items():
                attack.note("lost", "replies of a language model")
        attack.judge(attack.begin(training), f"labelling after {kills} kills")
        kept = kept_replies(attack.lab)
        # What a server can do is asked again after a kill: nothing works without that.
        again = [body for body in kept if "return: " in body and server.answered[body] > 1]
        if again:
            attack.note("differing", "asked again:", len(again), again[0][:500])
    return kills


LABELS = {"first": 1.0, "second": 0.0, "tie": 0.5, "skip": None}
GOAL = 60
"""Pairs that are answered on a page."""


def page_to_label(attack: Attack) -> list[object]:
    """Return the arguments of `marl label`, for a dataset of episodes with frames."""
    frame = Frame(shapes=(), view=(0.0, 0.0, 1.0, 1.0), anchors=())
    for number in range(12):
        write_frames(attack.lab / "page", number, EpisodeFrames(steps=(0,), frames=(frame,)))
    who = ["--name", "ann", "--no-open", "--port", 0, "--pairs", GOAL, "--repeats", 0]
    return ["label", "--dataset", attack.lab / "page", *who]


def answers_kept(attack: Attack) -> dict[Pair, float | None]:
    """Return what is kept of what a person answered."""
    kept = AnswerLog(attack.lab / "page" / "answers.jsonl").answers()
    answers = {(answer.first, answer.second): answer.label for answer in kept}
    if len(answers) != len(kept):
        attack.note("lost", "a pair was answered twice")
    return answers


def answer_all(attack: Attack, page: Page, known: dict[Pair, float | None]) -> str:
    """Answer until that fails or is done, noting what was said to be kept; return the error."""
    status, shown = page.ask("/api/question")
    while status == 200 and shown["id"]:
        pair, choice = tuple(shown["episodes"]), attack.rng.choice(sorted(LABELS))
        status, shown = page.ask("/api/answer", {"id": shown["id"], "choice": choice})
        if status == 200:
            known[pair] = LABELS[choice]
    return str(shown.get("error", ""))


def kill_page(attack: Attack) -> int:
    """Kill the page of `marl label` while somebody answers; return the kills."""
    label, kills = page_to_label(attack), 0
    known: dict[Pair, float | None] = {}
    for _ in range(attack.rng.randint(1, 4)):
        command = Command(attack.lab, *label)
        early = attack.rng.random() < 0.2
        page = None if early else Page(command)
        stop = Timer(attack.rng.uniform(0.0, 0.3), command.send, [signal.SIGKILL])
        stop.start()
        answer_all(attack, page or Page(command), known)
        stop.join()
        kills += command.status() == -signal.SIGKILL
        lost = [pair for pair in known if answers_kept(attack).get(pair, -1.0) != known[pair]]
        if lost:
            attack.note("lost", f"{len(lost)} answers of a person after {kills} kills")
    command = Command(attack.lab, *label)
    answer_all(attack, Page(command), known)
    command.send(signal.SIGINT)
    attack.judge(command, "the page of `marl label`", (0, 128 + signal.SIGINT))
    if len(answers_kept(attack)) != GOAL:
        attack.note("lost", f"{len(answers_kept(attack))} of {GOAL} pairs were answered")
    return kills


def fill_disk(attack: Attack, plain: Undisturbed) -> int:
    """Let the disk be full at any moment for files beyond a size, and go on once it is not."""
    rng, lab = attack.rng, attack.lab
    what, size = rng.choice([*KINDS, "page", "export", "fit"]), int(10 ** rng.uniform(3.0, 6.0))
    told = f"{what}, files end at {size:,} bytes"
    if what == "page":
        command, known = Command(lab, *page_to_label(attack)), {}
        page = Page(command)
        command.fill_disk(size)
        while (error := answer_all(attack, page, known)) and "too large" in error:
            command.fill_disk(None)
        command.send(signal.SIGINT)
        attack.judge(command, told, (0, 128 + signal.SIGINT))
        if (kept := answers_kept(attack)) != known or error:
            attack.note("lost", told, f"{len(kept)} answers of {len(known)}", error)
        return 1
    if what in KINDS:
        training, alone = flags(SMALL, KINDS[what]), plain.run(what, KINDS[what])
        command = attack.begin(training)
    else:
        expected, arguments = made_by(what, attack, plain)
        alone, command = expected, Command(lab, *arguments)
    command.status(rng.choice([0.0, 1.0]) * rng.uniform(0.0, plain.seconds[alone.name]))
    command.fill_disk(size)
    attack.judge(command, told, (0, 1))
    attack.nothing_left(command, told)
    if what in KINDS:
        crash = lab / "run" / "crash"
        if crash.exists() and not any(crash.iterdir()):
            attack.note("strays", told, "an empty folder crash")
        attack.go_on(training, alone, f"{told}, resumed")
    elif command.status() == 1:
        same_again(attack, what, plain)
    return 1
