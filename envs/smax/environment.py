"""SMAX, the battles of the StarCraft challenge in JAX (arXiv 2311.10090), batched on the CPU.

Run many together, 512 or more: a step has a cost of its own beside that of its battles. JAX's
threads work only while `step` waits for them, PyTorch's only between steps, so that neither needs
to leave the other a core; no setting of JAX or of the process is changed.

Needs the extra ``smax``. Axes: E environment copies, N agents, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvError, EnvSpec, EnvStep, Fact
from envs.checks.actions import checked_actions
from envs.families import Maker
from envs.frames import Frame
from envs.randomness import copy_seeds
from envs.resuming import refuse_other_copies
from envs.smax.frames import BattleArtist
from envs.smax.source import SMAX_NAMES, find_scenario, import_smax

FACTS = (
    Fact(name="won", meaning="battle won", higher_is_better=True, is_success=True),
    Fact(name="allies_alive", meaning="allies alive", higher_is_better=True),
    Fact(name="enemies_alive", meaning="enemies alive", higher_is_better=False),
    Fact(name="ally_health", meaning="share of the allies' health left", higher_is_better=True),
    Fact(name="enemy_health", meaning="share of the enemies' health left", higher_is_better=False),
)


def members() -> list[str]:
    """Return JaxMARL's scenarios."""
    return list(SMAX_NAMES)


def maker(member: str) -> Maker | None:
    """Return how to make one battle, e.g. `3m`; None for a name that JaxMARL does not ship."""
    return Maker(Smax, {"scenario": member}) if member in SMAX_NAMES else None


class Smax:
    """E battles of an allied team against JaxMARL's scripted enemies.

    Every step pays JaxMARL's dense reward: the share of the enemies' health taken in it, plus
    `won_battle_bonus` for a win.

    A battle that is not over after `max_steps` is lost: the source ends it so, and its own
    baselines learn from it so. `finite_horizon` is therefore True; False interrupts it instead.
    JaxMARL looks at its limit of 100 before it counts a step, so its battles last up to 101.
    """

    def __init__(
        self,
        num_envs: int,
        scenario: str = "3m",
        *,
        max_steps: int = 101,
        finite_horizon: bool = True,
        attack_mode: str = "closest",
        observation_type: str = "unit_list",
        see_enemy_actions: bool = True,
        walls_cause_death: bool = True,
        won_battle_bonus: float = 1.0,
    ) -> None:
        """Prepare the battles; call `reset` before `step`. The last five are JaxMARL's options."""
        _check_choice("attack_mode", attack_mode, ("closest", "random"))
        _check_choice("observation_type", observation_type, ("unit_list", "conic"))
        if num_envs < 1 or max_steps < 1:
            raise EnvError(
                f"smax/{scenario}: num_envs is {num_envs} and max_steps is {max_steps}; "
                "expected at least 1"
            )
        import jax

        from envs.smax.battles import Battles

        smax = import_smax()

        self._jax = jax
        self._device = jax.devices("cpu")[0]
        with jax.default_device(self._device):
            source = smax.HeuristicEnemySMAX(
                scenario=find_scenario(smax, scenario),
                attack_mode=attack_mode,
                observation_type=observation_type,
                see_enemy_actions=see_enemy_actions,
                walls_cause_death=walls_cause_death,
                won_battle_bonus=won_battle_bonus,
                max_steps=max_steps - 1,
            )
        self._battles = Battles(source, finite_horizon=finite_horizon)
        self._artist = BattleArtist(source)
        self._running: Any = None
        self._mask: Any = None
        self._spec = EnvSpec(
            name=f"smax/{scenario}",
            num_envs=num_envs,
            obs_sizes=(source.obs_size,) * source.num_agents,
            state_size=source.state_size,
            action_kind="discrete",
            action_sizes=(source.num_ally_actions,) * source.num_agents,
            max_steps=max_steps,
            finite_horizon=finite_horizon,
            masks_actions=True,
            agents_die=True,
            facts=FACTS,
        )

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Return the start of a new battle in every copy."""
        num_envs = self._spec.num_envs
        # The 64 bits of a copy's seed are the two words of its Threefry key.
        keys = copy_seeds(seed, num_envs).view(np.uint32).reshape(num_envs, 2)
        self._running, view, facts = self._battles.begin(self._jax.device_put(keys, self._device))
        self._mask = np.asarray(view.action_mask)
        nothing = np.zeros(num_envs, np.bool_)
        obs, state, alive = (np.asarray(array) for array in (view.obs, view.state, view.alive))
        return EnvStep(
            obs=obs,
            state=state,
            rewards=np.zeros(num_envs, np.float32),
            terminated=nothing,
            truncated=nothing.copy(),
            final_obs=obs,
            final_state=state,
            action_mask=self._mask,
            alive=alive,
            final_alive=alive,
            facts=np.asarray(facts),
        )

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return what the joint actions led to; battles that ended show their successors."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: step before reset; call reset(seed) first")
        checked = checked_actions(self._spec, self._mask, actions).astype(np.int32)
        self._running, outcome = self._battles.advance(self._running, checked)
        # On the CPU, NumPy reads JAX's own buffers: nothing is copied.
        self._mask = np.asarray(outcome.view.action_mask)
        return EnvStep(
            obs=np.asarray(outcome.view.obs),
            state=np.asarray(outcome.view.state),
            rewards=np.asarray(outcome.rewards),
            terminated=np.asarray(outcome.terminated),
            truncated=np.asarray(outcome.truncated),
            final_obs=np.asarray(outcome.final_obs),
            final_state=np.asarray(outcome.final_state),
            action_mask=self._mask,
            alive=np.asarray(outcome.view.alive),
            final_alive=np.asarray(outcome.final_alive),
            facts=np.asarray(outcome.facts),
        )

    def frame(self, copy: int) -> Frame:
        """Return one battle as its units; nothing of the others is fetched."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: frame before reset; call reset(seed) first")
        units = self._battles.units(self._running, copy)
        return self._artist.frame(self._jax.device_get(units))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that changes, keys as their words."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: state_dict before reset; call reset(seed) first")
        leaves, _ = self._jax.tree_util.tree_flatten_with_path(self._running)
        return {
            "running": {self._jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves},
            "action_mask": self._mask.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()` of an environment made with the same options."""
        refuse_other_copies(self._spec, len(state["action_mask"]))
        if self._running is None:
            self.reset(seed=0)
        saved = state["running"]
        self._running = self._jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._jax.device_put(
                np.array(saved[self._jax.tree_util.keystr(path)], leaf.dtype), self._device
            ),
            self._running,
        )
        self._mask = state["action_mask"].copy()


def _check_choice(option: str, got: str, valid: tuple[str, ...]) -> None:
    """Raise `EnvError` unless the option is one of its values."""
    if got not in valid:
        raise EnvError(f"SMAX: {option} is {got!r}; choose one of {', '.join(valid)}")
