"""Teams and positions from generators that nobody seeds."""

from random import shuffle

import numpy as np
from numpy.random import default_rng


class WeightedTeams:
    def __init__(self, config):
        self.config = config
        self.rng = default_rng()
        self.env_key = config["env_key"]

    def generate(self):
        config = self.config
        forbidden = set(config.get("exception_unit_types", ()))
        size = max(config["n_units"], config["n_enemies"])
        team = []
        while not set(team) - forbidden:
            team = list(self.rng.choice(config["unit_types"], size, p=config["weights"]))
            shuffle(team)
        return {
            self.env_key: {
                "ally_team": team[: config["n_units"]],
                "enemy_team": team[: config["n_enemies"]],
                "id": 0,
            }
        }


class Surrounded:
    """Allies in the middle, enemies around them."""

    def __init__(self, config):
        self.config = config
        self.rng = default_rng()

    def generate(self):
        middle = np.array([self.config["map_x"] / 2, self.config["map_y"] / 2])
        allies = np.tile(middle, (self.config["n_units"], 1))
        angles = self.rng.uniform(0, 2 * np.pi, self.config["n_enemies"])
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return positions(allies, middle + 8 * around)


class Reflect:
    """Enemies mirror the allies."""

    def __init__(self, config):
        self.config = config
        self.rng = default_rng()

    def generate(self):
        width, height = self.config["map_x"], self.config["map_y"]
        count = max(self.config["n_units"], self.config["n_enemies"])
        allies = self.rng.uniform((0, 0), (width / 2 - 1, height), (count, 2))
        enemies = allies * (-1, 1) + (width, 0)
        return positions(allies[: self.config["n_units"]], enemies[: self.config["n_enemies"]])


class SurroundedOrReflect:
    def __init__(self, config):
        self.p_threshold = config["p"]
        self.surrounded_distribution = Surrounded(config)
        self.reflect_distribution = Reflect(config)
        self.rng = default_rng()

    def generate(self):
        if self.rng.random() > self.p_threshold:
            return self.surrounded_distribution.generate()
        return self.reflect_distribution.generate()


def positions(allies, enemies):
    return {
        "ally_start_positions": {"item": allies, "id": 0},
        "enemy_start_positions": {"item": enemies, "id": 0},
    }


def get_distribution(key):
    return {
        "weighted_teams": WeightedTeams,
        "surrounded": Surrounded,
        "reflect_position": Reflect,
        "surrounded_and_reflect": SurroundedOrReflect,
    }[key]
