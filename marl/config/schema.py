"""All settings but those of the labellers: default, meaning and range, each in one place."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Literal

from pydantic import Field

from marl.config.conflicts import check_conflicts
from marl.config.preferences import PreferenceConfig
from marl.config.presets import Algorithm, RewardChoice, RewardSource, chosen_reward
from marl.config.validation import Hints, Range, settings

Option = bool | int | float | str

OTHER_NAMES = {
    "mappo": '"sparse" is plain MAPPO, on the task\'s own reward',
    "ppo": '"sparse" is plain MAPPO, on the task\'s own reward',
    "oracle": '"dense" is MAPPO on the hidden reward of every step',
}
"""What is meant by names of algorithms that others use."""

Sizes = Annotated[tuple[Annotated[int, Range(1, 1e6)], ...], Field(min_length=1)]
"""Units of each hidden layer; at least one layer."""

Absence = Literal["ends", "alive_mean", "team_share", "centred"]
"""See `LearnerConfig.absence`."""


@settings("env.")
class EnvConfig:
    """The task."""

    name: str = "mamujoco/halfcheetah_2x3"
    """An environment of the package (`marl envs` lists them) or an import path
    ``package.module:Class``."""
    num_envs: Annotated[int, Range(1, 1e6)] = 16
    """E, environments stepped together."""
    options: dict[str, Option] = field(default_factory=dict)
    """Keyword arguments of the environment, e.g. ``agent_obsk = 0``. All environments take the
    option ``reward_mode``: ``episodic`` (the sum at the end), ``every_k`` (the sum of the last
    so many steps, ``reward_every``), ``outcome`` (at the end ``reward_outcome``: a fact's name or
    your own function of the facts) or ``dense``. Shipped ones are episodic; gym teams and your own
    pay as they do."""


@settings("network.")
class NetworkConfig:
    """Networks of the actors and critics."""

    hidden_sizes: Sizes = (64, 64)
    """Units of each hidden layer (tanh)."""
    share_parameters: bool = True
    """One actor and one local critic for all agents, told apart by a one-hot id; or one each."""
    normalise_inputs: bool = True
    """Standardise observations and states by their running mean and deviation."""
    encoder: str = ""
    """What reads an agent's observation before the hidden layers of actors and critics. Empty: of
    pictures a small convolutional network, of anything else nothing. ``entities``: attention over
    the entities of a list, where the environment tells which features are whose. An import path
    ``package.module:Class``: yours, made as ``Class(spec)``, a `torch.nn.Module` from (rows,
    features) to (rows, any number). The state is read as it is, pictures by convolutions."""
    recurrence: Literal["none", "gru"] = "none"
    """``gru``: the second hidden layer of actors and critics (the only one, if there is one) is a
    gated recurrent unit, whose hidden state sums up the episode so far."""
    initial_log_std: Annotated[float, Range(-20, 20)] = -0.5
    """Logarithm of the Gaussian policy's initial standard deviation."""


@settings("learner.")
class LearnerConfig:
    """PPO on two advantage streams: MAPPO (arXiv 2103.01955), IPPO (2011.09533) or HAPPO
    (2109.11251)."""

    kind: str = "mappo"
    """``mappo``, whose critics see the team's state, ``ippo``, whose critics see what their agent
    sees, ``happo``, whose agents improve one after the other (as published with
    ``network.share_parameters = false``), or the import path ``package.module:Class`` of your own
    `marl.learners.base.Learner`."""
    rollout_steps: Annotated[int, Range(1, 1e6)] = 125
    """T, steps of every environment between two updates."""
    epochs: Annotated[int, Range(1, 1000)] = 8
    """Passes over a rollout."""
    minibatches: Annotated[int, Range(1, 1e5)] = 4
    """Gradient steps per pass."""
    chunk_length: Annotated[int, Range(1, 1e6)] = 10
    """Recurrent networks: most steps that a gradient reaches back. Minibatches then consist of
    chunks of successive steps of one environment, all as long: a rollout of 32 steps is cut into 4
    of 8."""
    learning_rate: Annotated[float, Range(0, 1)] = 1e-3
    """Adam step size, annealed linearly to zero over the run."""
    anneal: bool = True
    """Whether the step size is annealed."""
    clip_coef: Annotated[float, Range(1e-6, 1)] = 0.2
    """PPO's clip range of the probability ratio."""
    value_clip: Annotated[float, Range(0, 1e6)] = 0.2
    """Clip range of a value's change, in units of the normalised value; 0 switches it off."""
    gamma: Annotated[float, Range(0, 1)] = 0.99
    """Discount of both advantage streams."""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.95
    """Generalised advantage estimation's lambda."""
    entropy_coef: Annotated[float, Range(0, 1e3)] = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: Annotated[float, Range(1e-9, 1e9)] = 0.5
    """Largest gradient norm of each network."""
    local_weight: Annotated[float, Range(0, 1)] = 0.5
    """omega: share of the local advantages in the actors' advantage; 0 is shared, 1 local only."""
    absence: Absence = "alive_mean"
    """What an agent that is absent (dead) earns in its local stream. ``ends``: nothing, and its
    stream ends when it leaves; where local rewards are positive in the mean, to die then costs an
    agent all that was still to come. With the others its stream goes on to the end of the episode.
    ``alive_mean``: the mean local reward of those present in that step. ``team_share``: the team's
    R / n, i.e. the local rewards of those present, summed and divided among all. ``centred``: R / n
    for all, and for those present also what their local reward is above the mean of theirs: the
    agents' rewards add up to R however many are absent, and none's grows as others die. A constant
    added to all local rewards makes absence neither better nor worse with alive_mean and centred, a
    constant added to R with centred only."""

    @property
    def chunk_steps(self) -> int:
        """Steps of a recurrent network's chunks: as few chunks as may be, the steps divided evenly.

        The last chunk of a rollout is filled up to that length, so that even ones waste little.
        """
        chunks = -(-self.rollout_steps // self.chunk_length)
        return -(-self.rollout_steps // chunks)


@settings("reward.ratio.")
class RatioConfig:
    """A reward that is the log-ratio of two policies, r_i = beta log(pi_i / pi_ref,i)."""

    beta: Annotated[float, Range(1e-6, 1e6)] = 0.1
    """beta: the smaller, the further from the reference the same preferences lead."""
    reference_period: Annotated[int, Range(0, 1e9)] = 1
    """``dpo``: iterations between two moves of the reference; 0: it stays what it was at first."""
    reference_rate: Annotated[float, Range(0, 1)] = 0.1
    """``dpo``: a move is reference += rate (policy - reference); at 1 it becomes a copy. Every move
    lets the same preferences count anew: where old episodes are trained on, too, a Gaussian policy
    can then run past the best actions."""
    temperature: Annotated[float, Range(1e-3, 1e6)] = 1.0
    """``omapl``: of two actions whose w_i (q_i - v_i) are as far apart as their standard deviation
    over the data, the better one is cloned exp(1 / temperature) times as often. The smaller, the
    more the reward counts, which pays only where it is right."""


@settings("reward.sequence.")
class SequenceConfig:
    """Reward models that read whole episodes: RUDDER, AREL, STAS and TAR2.

    The width of their networks is the first of ``reward.hidden_sizes``: 64 in TAR2's code, 128 in
    STAS's, at most 100 in AREL's.
    """

    layers: Annotated[int, Range(1, 100)] = 3
    """AREL, STAS, TAR2: layers of attention; 3 in the code of each."""
    heads: Annotated[int, Range(1, 100)] = 4
    """AREL, STAS, TAR2: heads of attention; 3 in AREL's code, 4 in the others'."""
    coalitions: Annotated[int, Range(1, 1000)] = 5
    """STAS, TAR2: random coalitions an agent's contribution is averaged over; 5 in both codes."""
    prediction_weight: Annotated[float, Range(0, 1e6)] = 0.5
    """RUDDER's loss: weight of the squared errors of the predictions before the end. 0.5 in the
    authors' tutorial, 0.1 in AREL's code for its comparison."""
    variance_weight: Annotated[float, Range(0, 1e6)] = 20.0
    """AREL's loss: weight of the variance of rewards within an episode; 20 in its code, for
    episodes of 25 steps. Over T steps it counts about 1 / T as much as the error, so that it is
    most of the loss of much shorter ones."""
    dynamics_weight: Annotated[float, Range(0, 1e6)] = 0.05
    """TAR2's loss: weight of the loss of predicted actions; 0.05 in its code."""


@settings("reward.")
class RewardConfig:
    """What the policy's reward is, and how it is learned.

    Its first four settings are preset by `algorithm` (table in ``marl/config/presets.py``).
    """

    source: RewardSource | Literal[""] = ""
    """``task``: the environment's own reward. ``hidden``: an oracle on a benchmark's dense reward.
    ``learned``: from preferences or returns. ``policy``: no other than the policy's log-ratio to a
    reference, whose loss trains the policy itself. Empty: the preset's."""
    model: str = ""
    """``factored``: local rewards that add up to the global one. ``central``: one network of the
    state and the joint action. ``constant``: every step of an episode gets its normalised return.
    ``policy_ratio``: the log-ratio of a policy that is learned beside the run's and a uniform one;
    its local parts are advantages, which the run's policy improves by without GAE. Or the import
    path of your own. Empty: the preset's."""
    loss: str = ""
    """``preference``: Bradley-Terry on labelled pairs. ``regression``: squared error of the sum of
    rewards to the episode's return, without labels. ``both``: their sum. Empty: the preset's."""
    gamma: Annotated[float, Range(0, 1)] | None = None
    """gamma_R in R = Q_tot(s, a) - gamma_R V_tot(s'); 0 leaves V out. Without: the preset's."""
    unbiased_regression: bool = False
    """Whether the regression subtracts the variance that sampling steps adds to its squared error;
    steps are then drawn without replacement instead of one from each stratum."""
    preference_weight: Annotated[float, Range(0, 1e6)] = 1.0
    """Weight of the Bradley-Terry loss in ``preference`` and ``both``. With 0 and a calibration to
    the return, the reward is fitted to returns alone."""
    calibration: Annotated[float, Range(0, 1e6)] = 0.0
    """c, weight of a term that ties scores S to a scale, with any model and any loss; 0: off."""
    calibrate_to: Literal["return", "label"] = "return"
    """What the term c C draws scores to. ``return``: kappa z(G), z the return in standard
    deviations from the mean of all kept episodes. ``label``: + kappa / 2 for the preferred episode
    of a pair, - kappa / 2 for the other. True returns are right where labels are wrong: what
    ``return`` gains under mistakes says nothing about labels of people or models."""
    calibration_scale: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """kappa, in nats: the score that one deviation of the return is worth, so that of two episodes
    that far apart the better is preferred with probability sigmoid(kappa); or the score that being
    preferred is worth, 1 / beta of Cal-DPO."""
    target_rate: Annotated[float, Range(0, 1)] = 0.001
    """Polyak rate per gradient step of the target networks: V and the mixer used at s'. Three times
    as many gradient steps per iteration, if ``gradient_steps`` is given, move them three times as
    far; a third of the rate makes up for it."""
    drift_tolerance: Annotated[float, Range(0, 1e6)] = 0.1
    """Rise of the averaged loss above its lowest (in nats, of preferences), which halves the rate.
    At 0 this guard is off."""
    alpha: Annotated[float, Range(1e-9, 1e9)] = 10.0
    """Logit scale: S = (alpha / T_max) * sum of R."""
    length_normalised: bool = False
    """Average R over each episode's own length instead of T_max: length then does not count, and
    preferences leave the mean of R open. Where episodes can end early, it decides whether to end
    them pays."""
    sample_steps: Annotated[int, Range(1, 1e6)] = 100
    """K, steps drawn from each episode to estimate its sum. Episodes of at most K steps are read
    whole."""
    batch_episodes: Annotated[int, Range(2, 1e5)] = 32
    """M, episodes in one gradient step; every labelled pair among them is trained on."""
    gradient_steps: Annotated[int, Range(0, 1e5)] = 0
    """K_R, gradient steps per iteration; 0: as many as the data and the fit ask for, by the next
    three settings."""
    env_steps_per_gradient_step: Annotated[int, Range(1, 1e9)] = 256
    """With ``gradient_steps = 0``, one block of gradient steps is always taken: one step for every
    so many environment steps of the iteration, rounded up, and at least 10."""
    fit_share: Annotated[float, Range(0, 0.99)] = 0.0
    """With ``gradient_steps = 0``, further blocks are allowed up to this share of the work; 0:
    none. On four tasks 0.6 gained no more than as many steps without a measurement did. Work is
    counted, not timed, so that runs can be repeated exactly: the rows (steps of the sampled
    episodes, padding included) that the fit passes through its networks, against these and the rows
    of the policy's update (steps of the rollout times epochs). With networks of equal size a row of
    the fit takes 0.6 to 1 times as long as one of the update."""
    held_out_fall: Annotated[float, Range(0, 1)] = 0.01
    """Another block follows as long as one of the last two lowered the loss by at least this share
    of its lowest, measured on one held-out batch, drawn once per fit. The target networks move in
    the first block only. Without a held-out batch there is one block."""
    learning_rate: Annotated[float, Range(0, 1)] = 1e-3
    """Adam step size."""
    regularisation: Annotated[float, Range(0, 1e6)] = 0.01
    """lambda in lambda * mean(R^2)."""
    split_regularisation: Annotated[float, Range(0, 1e6)] = 0.01
    """mu in mu * mean(sum_i (S_i - S_bar)^2), S_i the score of agent i's local rewards over an
    episode, S_bar the agents' mean. Preferences fix only the sum of the S_i: at 0, where agents see
    one another, the split may drift until each is paid at the others' cost. A policy's log-ratio,
    whose probabilities add up to 1, cannot drift so, and is left alone."""
    beta: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Temperature of the value loss."""
    exponent_clip: Annotated[float, Range(0.1, 50)] = 5.0
    """Largest exponent in the Gumbel loss."""
    value_loss: Literal["gumbel", "soft", "expectile"] = "gumbel"
    """``gumbel``: v -> beta log E exp(q / beta). ``soft``: v -> E_pi[q - beta log pi].
    ``expectile``: v -> the `expectile` of q."""
    expectile: Annotated[float, Range(1e-6, 1 - 1e-6)] = 0.7
    """Level of the expectile loss."""
    local_form: Literal["complete", "additive", "plain"] = "complete"
    """``additive``: r_i = w_i(s) q_i - gamma_R w_i(s') v_i'. ``complete``: the same plus an equal
    share of b(s) - gamma_R b(s'), so that R = sum_i r_i. ``plain``: r_i = q_i - gamma_R v_i'."""
    mixer: Literal["linear", "two_layer"] = "linear"
    """``linear``: sum_i w_i(s) q_i + b(s). ``two_layer``: monotone, needs ``local_form =
    "plain"``."""
    value_as_critic: bool = False
    """Whether V_tot takes the place of the critics, which then learn nothing: the advantages are
    Q_tot - V_tot and w_i (q_i - v_i), without GAE, and V does not see the time. A factored reward
    with gamma_R > 0, one linear mixer and no memory has them."""
    shared_mixer: bool = True
    """Whether Q and V are mixed by the same network; a separate one needs ``mixer = "linear"``."""
    share_parameters: bool = True
    """One utility network for all agents, told apart by a one-hot id; or one each."""
    encoder: str = ""
    """What reads an agent's observation in the model, as ``network.encoder`` does in the policy:
    in q_i and v_i of a factored reward, and in the policy of a ``policy_ratio``. Pictures are read
    by convolutions in a central reward, too."""
    recurrence: Literal["none", "gru"] = "none"
    """``gru``, for ``imap`` and ``slf``: the second hidden layer of q_i and v_i (the only one, if
    there is one) is a gated recurrent unit. q_i then depends on all that its agent saw and did in
    the episode, v_i on what it saw. It is fitted on whole episodes, whatever `sample_steps` says,
    of at most 500 steps; the mixer is feed-forward."""
    hidden_sizes: Sizes = (64, 64)
    """Units of each hidden layer of the utilities; a central reward gets as many parameters."""
    mixer_hidden: Annotated[int, Range(1, 1e5)] = 64
    """Units of the mixer's hypernetwork."""
    max_grad_norm: Annotated[float, Range(1e-9, 1e9)] = 1.0
    """Largest gradient norm of the reward model."""
    ratio: RatioConfig = field(default_factory=RatioConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)


@settings("eval.")
class EvalConfig:
    """Evaluation while training, greedy and sampled, in environments of its own."""

    every: Annotated[int, Range(0, 1e12)] = 0
    """Environment steps between evaluations, which are not counted as steps; 0: none."""
    episodes: Annotated[int, Range(1, 1e9)] = 32
    """Whole episodes of each kind, the same ones each time."""
    num_envs: Annotated[int, Range(1, 1e6)] = 16
    """Environments in a batch."""
    patience: Annotated[int, Range(0, 1e6)] = 0
    """Training ends before `total_steps` where the mean greedy returns of so many evaluations are
    none of them more than `min_delta` above the best one before them; 0: never. Those at multiples
    of `every` count."""
    min_delta: Annotated[float, Range(0, 1e12)] = 0.0
    """Least rise of the mean return that counts as an improvement."""

    film_every: Annotated[int, Range(0, 1e6)] = 0
    """Films an episode at every so many-th evaluation, into ``films/`` of the run's folder; 0:
    none."""

    def is_due(self, steps: int, batch_steps: int) -> bool:
        """Return whether an iteration of `batch_steps`, which ends at `steps`, reaches a multiple
        of `every`."""
        return bool(self.every) and steps // self.every > (steps - batch_steps) // self.every

    def is_plateau(self, returns: Mapping[int, float], batch_steps: int) -> bool:
        """Return whether the greedy returns by step, in their order, end on a plateau."""
        counted = [value for step, value in returns.items() if self.is_due(step, batch_steps)]
        if not self.patience or len(counted) <= self.patience:
            return False
        best_before = max(counted[: -self.patience])
        return max(counted[-self.patience :]) <= best_before + self.min_delta


@settings()
class Config:
    """One run."""

    algorithm: Annotated[Algorithm, Hints(OTHER_NAMES)] = "slf"
    """Preset of the reward, learned from preferences: imap (factored, implicit), slf (factored,
    gamma_R = 0; no benchmark tells it from imap, and it is simpler), ipl (central, implicit), sl
    (central, gamma_R = 0); from returns: rrd (factored), rrd_central, ircr (the normalised return
    at every step), rudder (what a step changes in the prediction of the return), arel, stas, tar2
    (attention; the last two split among agents); none but the policy itself, which preferences
    train: dpo; or given: sparse (the task's own), dense (oracle on the hidden one)."""
    total_steps: Annotated[int, Range(1, 1e12)] = 1_000_000
    """Environment steps, summed over environments."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """The one seed; every generator derives from it."""
    device: str = "cpu"
    """Device of the networks: ``cpu`` or ``cuda``."""
    threads: Annotated[int, Range(1, 1024)] = 2
    """Threads of the physics; with 2 or more, actors and critics also learn side by side."""
    checkpoint_every: Annotated[int, Range(0, 1e12)] = 0
    """Environment steps between checkpoints; 0: a quarter of ``total_steps``, at most 200,000."""
    keep_checkpoints: Annotated[int, Range(1, 1000)] = 3
    """Newest checkpoints kept."""
    init: str = ""
    """Folder of a run or of a fit, or one of its checkpoints ``RUN/checkpoints/step_*.ckpt``, from
    which a new run starts: the actor, the statistics of observations and states, and the critics,
    each where the sizes are equal. Empty: from random weights. A run that is resumed does not read
    it again."""
    init_reward: bool = False
    """Whether a run with ``init`` starts with that one's reward model, too. It is paid from the
    first iteration on and goes on learning."""
    init_buffer: bool = False
    """Whether a run with ``init`` starts with that one's whole episodes and the answers about them,
    too. They are learned from as if this run had played and asked about them."""
    diagnose_hidden: bool = False
    """Benchmarks only: report how the learned reward correlates with the hidden one."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        check_conflicts(self)

    @property
    def reward_choice(self) -> RewardChoice:
        """Source, model, loss and gamma_R of the reward: the preset and what overrides it."""
        reward = self.reward
        return chosen_reward(
            self.algorithm,
            source=reward.source,
            model=reward.model,
            loss=reward.loss,
            gamma=reward.gamma,
        )

    @property
    def learns_reward(self) -> bool:
        """Whether anything is fitted to labels or returns: a reward, or the policy itself."""
        return self.reward_choice.is_fitted

    @property
    def fits_policy(self) -> bool:
        """Whether the policy is its own reward model, so that the reward's loss trains it."""
        return self.reward_choice.source == "policy"

    @property
    def fitted_reward(self) -> RewardConfig:
        """Settings of what is fitted: a recurrent policy is fitted as a recurrent reward is."""
        if not self.fits_policy:
            return self.reward
        return replace(self.reward, recurrence=self.network.recurrence)

    @property
    def learns_from_labels(self) -> bool:
        """Whether a labeller is asked about pairs of episodes."""
        return self.reward_choice.needs_labels

    @property
    def learns_from_returns(self) -> bool:
        """Whether the reward is fitted to the returns of episodes, or its scores are."""
        calibrated = self.reward.calibration > 0.0 and self.reward.calibrate_to == "return"
        return self.reward_choice.needs_returns or (self.learns_reward and calibrated)

    @property
    def calls_plugins(self) -> bool:
        """Whether an iteration calls what may fail: a labeller that is no rule of this package and
        no people, who have a log of their own, or a reward model of the user's."""
        rules = {"return", "outcome", "facts", "people"}
        labellers = set(self.preferences.labellers) if self.learns_from_labels else set()
        return bool(labellers - rules) or bool(self.reward.model)

    @property
    def asks_people(self) -> bool:
        """Whether people label, on the page of ``marl label``."""
        return self.learns_from_labels and self.preferences.labeller == "people"

    @property
    def is_factored(self) -> bool:
        """Whether the learned reward may split into local ones."""
        return self.reward_choice.is_factored

    @property
    def sees_hidden(self) -> bool:
        """Whether anything may see the hidden reward: an oracle, a diagnosis, a myopic teacher."""
        myopic = self.learns_from_labels and self.preferences.teacher.myopia < 1.0
        return self.reward_choice.source == "hidden" or self.diagnose_hidden or myopic

    @property
    def reads_history(self) -> bool:
        """Whether what is fitted reads episodes whole and in order, rather than single steps."""
        return self.reward_choice.reads_history or self.fitted_reward.recurrence != "none"

    @property
    def reward_gamma(self) -> float:
        """gamma_R; explicit rewards are the implicit ones at 0."""
        return self.reward_choice.gamma

    @property
    def batch_steps(self) -> int:
        """Environment steps in one iteration."""
        return self.env.num_envs * self.learner.rollout_steps

    @property
    def batch_rows(self) -> int:
        """Rows of one iteration's minibatches: steps or, of recurrent networks, chunks of steps."""
        if self.network.recurrence == "none":
            return self.batch_steps
        return self.env.num_envs * -(-self.learner.rollout_steps // self.learner.chunk_steps)

    @property
    def num_iterations(self) -> int:
        """Iterations needed to reach `total_steps`."""
        return -(-self.total_steps // self.batch_steps)
