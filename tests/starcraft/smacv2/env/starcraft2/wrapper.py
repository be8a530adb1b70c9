from smacv2.env.multiagentenv import MultiAgentEnv
from smacv2.env.starcraft2.distributions import get_distribution
from smacv2.env.starcraft2.starcraft2 import StarCraft2Env


class StarCraftCapabilityEnvWrapper(MultiAgentEnv):
    def __init__(self, **kwargs):
        self.distribution_config = kwargs["capability_config"]
        self.env_key_to_distribution_map = {}
        counts = {key: self.distribution_config[key] for key in ("n_units", "n_enemies")}
        for key, config in self.distribution_config.items():
            if key not in counts:
                config.update(counts, env_key=key)
                distribution = get_distribution(config["dist_type"])(config)
                self.env_key_to_distribution_map[key] = distribution
        self.env = StarCraft2Env(**kwargs)

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self):
        drawn = {}
        for distribution in self.env_key_to_distribution_map.values():
            drawn |= distribution.generate()
        return self.env.reset(drawn)

    def step(self, actions):
        return self.env.step(actions)

    def get_obs(self):
        return self.env.get_obs()

    def get_state(self):
        return self.env.get_state()

    def get_avail_actions(self):
        return self.env.get_avail_actions()

    def get_env_info(self):
        return self.env.get_env_info()

    def close(self):
        return self.env.close()
