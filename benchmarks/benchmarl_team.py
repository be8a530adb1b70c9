"""A task as BenchMARL wants it described: one group of agents, and a state for the critic or mixer.

Imported by the scripts beside it, which run in BenchMARL's environment.
"""

from typing import ClassVar

from benchmarl.environments.common import TaskClass
from torchrl.data import Composite
from torchrl.envs import EnvBase


class OneTeam(TaskClass):
    """A team whose environment has specs of ``agents`` (observation, mask) and ``state``.

    A subclass says how environments are made (`get_env_fun`) and how long episodes are
    (`max_steps`).
    """

    continuous: ClassVar[bool] = False
    """Whether actions are continuous, or discrete."""

    def supports_continuous_actions(self) -> bool:
        return self.continuous

    def supports_discrete_actions(self) -> bool:
        return not self.continuous

    def has_render(self, env: EnvBase) -> bool:
        return False

    def group_map(self, env: EnvBase) -> dict[str, list[str]]:
        observed = env.observation_spec_unbatched["agents", "observation"]
        return {"agents": [f"agent_{index}" for index in range(observed.shape[-2])]}

    def observation_spec(self, env: EnvBase) -> Composite:
        agents = env.observation_spec_unbatched["agents"].clone()
        if "action_mask" in set(agents.keys()):
            del agents["action_mask"]
        return Composite(agents=agents)

    def info_spec(self, env: EnvBase) -> None:
        return None

    def state_spec(self, env: EnvBase) -> Composite:
        return Composite(state=env.observation_spec_unbatched["state"].clone())

    def action_spec(self, env: EnvBase) -> Composite:
        return env.full_action_spec_unbatched

    def action_mask_spec(self, env: EnvBase) -> Composite | None:
        agents = env.observation_spec_unbatched["agents"].clone()
        if "action_mask" not in set(agents.keys()):
            return None
        del agents["observation"]
        return Composite(agents=agents)

    @staticmethod
    def env_name() -> str:
        return "marl"
