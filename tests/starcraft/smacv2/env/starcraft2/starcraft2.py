"""A simple battle behind the calls of upstream's `StarCraft2Env`."""

import random
import subprocess
from collections import Counter
from dataclasses import dataclass

import numpy as np
from pysc2.lib import protocol, remote_controller

from smacv2.env.multiagentenv import MultiAgentEnv

HEALTH = {"marine": 45, "marauder": 125, "medivac": 150, "stalker": 80, "zealot": 100}
HEALTH |= {"colossus": 200, "zergling": 35, "baneling": 30, "hydralisk": 90}
SHIELD = {"stalker": 80, "zealot": 50, "colossus": 150}
TYPES = sorted(HEALTH)
MOVES = np.array([[0, 2], [0, -2], [2, 0], [-2, 0]])
RANGE = 6


@dataclass
class Unit:
    unit_type: str
    place: np.ndarray
    health: float
    health_max: float
    shield: float
    shield_max: float

    @classmethod
    def of(cls, unit_type, place):
        health, shield = HEALTH[unit_type], SHIELD.get(unit_type, 0)
        return cls(unit_type, np.array(place, float), health, health, shield, shield)

    def hit(self, damage):
        absorbed = min(self.shield, damage)
        taken = min(self.health, damage - absorbed)
        self.shield -= absorbed
        self.health -= taken
        return absorbed + taken

    def features(self):
        share = self.health / self.health_max
        return [share, *(self.place / 32), TYPES.index(self.unit_type)] if share else [0] * 4


class StarCraft2Env(MultiAgentEnv):
    fault = {}  # noqa: RUF012
    """Which calls, e.g. {"step": {3}}, find the game dead; counted over all games."""
    calls = Counter()  # noqa: RUF012
    launched = []  # noqa: RUF012
    """The games' processes, and seeds."""
    latest = None
    """The game in which a battle began last."""

    def __init__(
        self,
        map_name="8m",
        step_mul=8,
        move_amount=2,
        difficulty="7",
        game_version=None,
        seed=None,
        continuing_episode=False,
        obs_all_health=True,
        obs_own_health=True,
        obs_last_action=False,
        obs_pathing_grid=False,
        obs_terrain_height=False,
        obs_instead_of_state=False,
        obs_timestep_number=False,
        obs_own_pos=False,
        obs_starcraft=True,
        conic_fov=False,
        num_fov_actions=12,
        state_last_action=True,
        state_timestep_number=False,
        reward_sparse=False,
        reward_only_positive=True,
        reward_death_value=10,
        reward_win=200,
        reward_defeat=0,
        reward_negative_scale=0.5,
        reward_scale=True,
        reward_scale_rate=20,
        use_unit_ranges=False,
        min_attack_range=2,
        kill_unit_step_mul=2,
        fully_observable=False,
        capability_config={},  # noqa: B006
        replay_dir="",
        replay_prefix="",
        window_size_x=1920,
        window_size_y=1200,
        heuristic_ai=False,
        heuristic_rest=False,
        debug=False,
        prob_obs_enemy=1.0,
        action_mask=True,
    ):
        self.map_name = map_name
        self.episode_limit = 200
        self.continuing_episode = continuing_episode
        self._seed = seed
        self.obs_timestep_number = obs_timestep_number
        self.prob_obs_enemy = prob_obs_enemy
        self.reward_death_value, self.reward_win = reward_death_value, reward_win
        self.reward_scale, self.reward_scale_rate = reward_scale, reward_scale_rate
        self.n_agents = capability_config["team_gen"]["n_units"]
        self.n_enemies = capability_config["team_gen"]["n_enemies"]
        wide = map_name == "10gen_terran" and self.n_agents > self.n_enemies
        self.n_actions = 6 + (self.n_agents if wide else self.n_enemies)
        self.max_reward = self.n_enemies * reward_death_value + reward_win
        self.agents, self.enemies = {}, {}
        self._episode_count = self._episode_steps = 0
        self.force_restarts = 0
        self._sc2_proc = None

    def _ask(self, what, error=protocol.ConnectionError):
        StarCraft2Env.calls[what] += 1
        if StarCraft2Env.calls[what] in StarCraft2Env.fault.get(what, ()):
            raise error(f"Error during {what}: SC2 probably crashed.")

    def _launch(self):
        self._ask("launch", remote_controller.ConnectError)
        self._sc2_proc = subprocess.Popen(["sleep", "60"])
        StarCraft2Env.launched.append((self._sc2_proc, self._seed))

    def full_restart(self):
        self.close()
        self._launch()
        self.force_restarts += 1

    def reset(self, episode_config={}):  # noqa: B006
        StarCraft2Env.latest = self
        self._episode_steps = 0
        if self._episode_count == 0:
            self._launch()
        else:
            try:
                self._ask("restart")
            except (protocol.ProtocolError, protocol.ConnectionError):
                self.full_restart()
        self.noticed = np.zeros((self.n_enemies, self.n_agents), bool)
        self.last_action = np.zeros((self.n_agents, self.n_actions))
        try:
            self._ask("observe")
            self._init_units(episode_config)
        except (protocol.ProtocolError, protocol.ConnectionError):
            self.full_restart()
        return self.get_obs(), self.get_state()

    def _init_units(self, config):
        teams = config["team_gen"]
        for name, units in (("ally", self.agents), ("enemy", self.enemies)):
            places = config[f"{name}_start_positions"]["item"]
            pairs = zip(teams[f"{name}_team"], places, strict=True)
            made = sorted(pairs, key=lambda pair: (pair[0], *pair[1]))
            units.clear()
            units.update({i: Unit.of(*pair) for i, pair in enumerate(made)})
        if self._episode_count == 0:
            self.max_reward += sum(u.health_max + u.shield_max for u in self.enemies.values())

    def step(self, actions):
        actions = [int(action) for action in actions]
        for available, action in zip(self.get_avail_actions(), actions, strict=True):
            assert available[action], f"Agent cannot perform action {action}"
        self.last_action = np.eye(self.n_actions)[actions]
        try:
            self._ask("step")
        except (protocol.ProtocolError, protocol.ConnectionError):
            self.full_restart()
            return 0, True, {}
        self._episode_steps += 1
        reward = self._fight(actions)
        dead = [sum(u.health == 0 for u in side.values()) for side in (self.agents, self.enemies)]
        info = {"battle_won": False, "dead_allies": dead[0], "dead_enemies": dead[1]}
        terminated = dead[1] == self.n_enemies or dead[0] == self.n_agents
        if dead[1] == self.n_enemies and dead[0] < self.n_agents:
            info["battle_won"] = True
            reward += self.reward_win
        elif not terminated and self._episode_steps >= self.episode_limit:
            terminated = True
            if self.continuing_episode:
                info["episode_limit"] = True
        self._episode_count += terminated
        if self.reward_scale:
            reward /= self.max_reward / self.reward_scale_rate
        return reward, terminated, info

    def _fight(self, actions):
        reward = 0
        for a_id, action in enumerate(actions):
            unit = self.agents[a_id]
            if 2 <= action < 6:
                unit.place += MOVES[action - 2]
            elif action >= 6 and self.enemies[action - 6].health > 0:
                reward += self.enemies[action - 6].hit(20)
                reward += self.reward_death_value * (self.enemies[action - 6].health == 0)
        for enemy in self.enemies.values():
            living = [u for u in self.agents.values() if u.health > 0]
            if enemy.health > 0 and living:
                near = min(living, key=lambda u: distance(u, enemy))
                if distance(near, enemy) <= RANGE:
                    near.hit(5)
                else:
                    enemy.place += (near.place - enemy.place) * 2 / distance(near, enemy)
        return reward

    def get_avail_agent_actions(self, agent_id):
        unit = self.agents[agent_id]
        if unit.health == 0:
            return [1] + [0] * (self.n_actions - 1)
        available = [0, 1, *((unit.place + MOVES > 0) & (unit.place + MOVES < 32)).all(axis=1)]
        available += [0] * (self.n_actions - 6)
        for e_id, enemy in self.enemies.items():
            available[6 + e_id] = int(enemy.health > 0 and distance(unit, enemy) <= RANGE)
        return [int(a) for a in available]

    def get_avail_actions(self):
        return [self.get_avail_agent_actions(a_id) for a_id in range(self.n_agents)]

    def get_obs_agent(self, agent_id, fully_observable=False):
        unit = self.agents[agent_id]
        seen = np.zeros((self.n_enemies, 4))
        for e_id, enemy in self.enemies.items():
            if unit.health > 0 and enemy.health > 0:
                if not self.noticed[e_id].any():
                    self.noticed[e_id] = np.random.rand(self.n_agents) < self.prob_obs_enemy  # noqa: NPY002
                    self.noticed[e_id, agent_id] = True
                if self.noticed[e_id, agent_id]:
                    seen[e_id] = enemy.features()
        time = [self._episode_steps / self.episode_limit] * self.obs_timestep_number
        return np.concatenate([seen.ravel(), unit.features(), time]).astype(np.float32)

    def get_obs(self):
        order = list(range(self.n_agents))
        random.shuffle(order)
        seen = {a_id: self.get_obs_agent(a_id) for a_id in order}
        return [seen[a_id] for a_id in range(self.n_agents)]

    def get_state(self):
        units = [*self.agents.values(), *self.enemies.values()]
        rows = np.ravel([unit.features() for unit in units])
        return np.append(rows, self.last_action.ravel()).astype(np.float32)

    def get_obs_size(self):
        return 4 * self.n_enemies + 4 + self.obs_timestep_number

    def get_state_size(self):
        return 4 * (self.n_agents + self.n_enemies) + self.n_agents * self.n_actions

    def get_cap_size(self):
        return 3

    def get_total_actions(self):
        return self.n_actions

    def get_env_info(self):
        return super().get_env_info() | {"agent_features": [], "enemy_features": []}

    def close(self):
        if self._sc2_proc:
            self._sc2_proc.terminate()
            self._sc2_proc.wait()


def distance(one, other):
    return float(np.hypot(*(one.place - other.place)))
