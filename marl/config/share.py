"""What one of several processes has of a run's settings, whose numbers are those of all of them."""

from dataclasses import replace

from marl.config.schema import Config
from marl.config.validation import ConfigError


def share_of(config: Config, size: int, *, local_rank: int = 0, local_size: int = 1) -> Config:
    """Return the settings of one of `size` processes, of which `local_size` are on its machine.

    Environments, episodes and answers that are kept, and episodes of a gradient step are divided;
    physics threads by the processes of the machine. Device ``cuda`` is the GPU `local_rank`. What
    is counted over all processes (`total_steps`, numbers of questions) stays as it is.
    """
    if size == 1:
        return config
    if config.env.num_envs % size:
        raise ConfigError(
            f"env.num_envs: got {config.env.num_envs}, which {size} processes cannot share "
            f"equally; set it to a multiple of {size}, or start another number of processes"
        )
    preferences, reward = config.preferences, config.reward
    try:
        return replace(
            config,
            device=f"cuda:{local_rank}" if config.device == "cuda" else config.device,
            threads=max(1, config.threads // local_size),
            env=replace(config.env, num_envs=config.env.num_envs // size),
            reward=replace(reward, batch_episodes=max(2, -(-reward.batch_episodes // size))),
            preferences=replace(
                preferences,
                replay_steps=max(1, preferences.replay_steps // size),
                replay_episodes=max(2, preferences.replay_episodes // size),
                buffer_pairs=-(-preferences.buffer_pairs // size),
                retire_after=-(-preferences.retire_after // size),
            ),
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error} (of each of {size} processes, which have env.num_envs = "
            f"{config.env.num_envs // size} each)"
        ) from None
