"""Settings of the task, the networks, the learner and the reward."""

from dataclasses import dataclass, field
from typing import Literal

Option = bool | int | float | str

Absence = Literal["ends", "alive_mean", "team_share", "centred"]
"""See `LearnerConfig.absence`."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The task."""

    name: str = "mamujoco/halfcheetah_2x3"
    """A shipped environment (`marl envs` lists them) or an import path ``package.module:Class``."""
    num_envs: int = 16
    """E, copies stepped together. At least 1."""
    options: dict[str, Option] = field(default_factory=dict)
    """Keyword arguments of the environment, e.g. ``agent_obsk = 0``. All environments take
    ``reward_mode``: ``episodic`` (the sum at the end), ``every_k`` (the sum of the last
    ``reward_every`` steps), ``outcome`` (``reward_outcome`` at the end: a fact's name or your own
    function of the facts) or ``dense``. Shipped ones are episodic; gym teams and your own pay
    as they do."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Bodies of the actors and critics."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer (tanh)."""
    share_parameters: bool = True
    """One actor and one local critic for all agents, told apart by a one-hot id; or one each."""
    normalise_inputs: bool = True
    """Standardise observations and states by their running mean and deviation."""
    memory: Literal["none", "gru"] = "none"
    """Gru: the second hidden layer of actors and critics is a gated recurrent unit (the only one,
    if there is one), so that they remember the episode so far."""
    initial_log_std: float = -0.5
    """Logarithm of the Gaussian policy's initial standard deviation."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """MAPPO (arXiv 2103.01955) on two advantage streams."""

    rollout_steps: int = 125
    """T, steps of every copy between two updates."""
    epochs: int = 8
    """Passes over a rollout."""
    minibatches: int = 4
    """Gradient steps per pass."""
    chunk_length: int = 10
    """With memory, steps that a gradient reaches back at most: minibatches then consist of chunks
    of so many successive steps of one copy; a rollout's last ones may be shorter."""
    learning_rate: float = 1e-3
    """Adam step size, annealed linearly to zero over the run."""
    anneal: bool = True
    """Whether the step size is annealed."""
    clip_coef: float = 0.2
    """PPO's clip range of the probability ratio."""
    value_clip: float = 0.2
    """Clip range of a value's change, in units of the normalised value; 0 switches it off."""
    gamma: float = 0.99
    """Discount of both advantage streams."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation's lambda."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Largest gradient norm of each network."""
    local_weight: float = 0.5
    """omega: share of the local advantages in the actors' advantage; 0 is shared, 1 local only."""
    absence: Absence = "ends"
    """What an agent that is absent (dead) earns in its local stream. Ends: nothing, and its stream
    ends when it leaves; where local rewards are positive in the mean, to die then costs an agent
    all that was still to come. With the others its stream goes on to the end of the episode.
    Alive_mean: the mean local reward of those present in that step. Team_share: the team's R / n,
    i.e. the local rewards of those present, summed and divided among all. Centred: R / n for all,
    and for those present also what their local reward is above the mean of theirs: the agents'
    rewards add up to R whoever is absent, and nobody's grows as others die. A constant added to
    all local rewards makes absence neither better nor worse with alive_mean and centred, a
    constant added to R with centred only."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward learned from preferences (algorithm ``imap``, ``ipl``, ``slf`` or ``sl``)."""

    model: str = ""
    """Import path of your own reward model; empty: the algorithm's own."""
    gamma: float = 0.9
    """gamma_R in R = Q_tot(s, a) - gamma_R V_tot(s'); ``slf`` and ``sl`` fix it at 0."""
    target_rate: float = 0.001
    """Polyak rate per gradient step of the slow copy of V and of the mixer used at s'. Three times
    as many gradient steps per iteration, if ``gradient_steps`` is given, move them three times as
    far; a third of the rate makes up for it."""
    drift_tolerance: float = 0.1
    """Rise of the averaged preference loss above its lowest, in nats, at which the rate is halved;
    0 switches this guard off."""
    alpha: float = 10.0
    """Logit scale: S = (alpha / T_max) * sum of R."""
    length_normalised: bool = False
    """Average R over each episode's own length instead of T_max: length then does not count, and
    preferences leave the mean of R open. Where episodes can end early, it decides whether to end
    them pays."""
    sample_steps: int = 50
    """K, steps drawn from each episode to estimate its sum; all of them if T_max <= K."""
    whole_episodes: int = 0
    """Where T_max is at most this, all steps are read whatever `sample_steps` says: as many as the
    longest episode of the batch has."""
    batch_episodes: int = 32
    """M, episodes in one gradient step; every labelled pair among them is trained on."""
    gradient_steps: int = 10
    """K_R, gradient steps per iteration; 0: as many as the data and the fit ask for, by the next
    three settings."""
    env_steps_per_gradient_step: int = 256
    """With ``gradient_steps = 0``, one block of gradient steps is always taken: one step for every
    so many environment steps of the iteration, rounded up."""
    held_out_fall: float = 0.01
    """With ``gradient_steps = 0``, another block follows as long as one of the last two lowered the
    preference loss by at least this share of its lowest, measured on one held-out batch, drawn once
    per fit. The target networks move in the first block only. Without held-out answers there is one
    block."""
    fit_share: float = 0.6
    """With ``gradient_steps = 0``, further blocks end where the fit's share of the work reaches
    this. Work is counted, not timed, so that runs can be repeated exactly: the rows (steps of the
    sampled episodes, padding included) that the fit passes through its networks, against these and
    the rows of the policy's update (steps of the rollout times epochs). With networks of equal size
    a row of the fit takes 0.6 to 1 times as long as one of the update, so that this is about, and
    at most, the fit's share of an iteration's time without the environment's. The first block is
    taken in any case."""
    learning_rate: float = 1e-3
    """Adam step size."""
    regularisation: float = 0.01
    """lambda in lambda * mean(R^2)."""
    split_regularisation: float = 0.01
    """mu in mu * mean(sum_i (S_i - S_bar)^2), S_i the score of agent i's local rewards over an
    episode, S_bar the agents' mean. Preferences fix only the sum of the S_i: at 0, where agents see
    one another, the split may drift until each is paid at the others' cost."""
    beta: float = 1.0
    """Temperature of the value loss."""
    exponent_clip: float = 5.0
    """Largest exponent in the Gumbel loss."""
    value_loss: Literal["gumbel", "soft", "expectile"] = "gumbel"
    """Gumbel: v -> beta log E exp(q / beta). Soft: v -> E_pi[q - beta log pi].
    Expectile: v -> the `expectile` of q."""
    expectile: float = 0.7
    """Level of the expectile loss."""
    local_form: Literal["complete", "additive", "plain"] = "complete"
    """Additive: r_i = w_i(s) q_i - gamma_R w_i(s') v_i'. Complete: the same plus an equal share of
    b(s) - gamma_R b(s'), so that R = sum_i r_i. Plain: r_i = q_i - gamma_R v_i'."""
    mixer: Literal["linear", "two_layer"] = "linear"
    """Linear: sum_i w_i(s) q_i + b(s). Two-layer: monotone, needs ``local_form = "plain"``."""
    shared_mixer: bool = True
    """Whether Q and V are mixed by the same network; a separate one needs ``mixer = "linear"``."""
    share_parameters: bool = True
    """One utility network for all agents, told apart by a one-hot id; or one each."""
    memory: Literal["none", "gru"] = "none"
    """Gru, for ``imap`` and ``slf``: the second hidden layer of q_i and v_i (the only one, if there
    is one) is a gated recurrent unit. q_i then remembers what its agent saw and did in the episode,
    v_i what it saw. It is fitted on whole episodes, whatever `sample_steps` says, of at most 500
    steps; the mixer keeps no memory."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer of the utilities; a central reward gets as many parameters."""
    mixer_hidden: int = 64
    """Units of the mixer's hypernetwork."""
    max_grad_norm: float = 1.0
    """Largest gradient norm of the reward model."""
