"""Independent PPO (de Witt et al. 2020, arXiv 2011.09533)."""

from marl.learners.mappo import Mappo


class Ippo(Mappo):
    """PPO whose critics see what their agent sees, and nothing of the team's state.

    The team's stream has a value of every agent, V_i(o_i), and so an advantage of every agent; the
    local stream, where the reward has one, keeps its own critics.
    """

    centralised = False
