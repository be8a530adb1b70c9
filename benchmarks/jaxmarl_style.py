"""Recurrent MAPPO on SMAX wholly in JAX, for its speed: the work of JaxMARL's own script.

JaxMARL's package ships its environments and not its training scripts. This is the same amount of
work, written anew from its settings: parameters shared by all agents, actor and critic each of a
ReLU layer, a GRU, a ReLU layer and an output; 128 environments of 128 steps; 4 epochs of 4
minibatches of whole sequences; Adam with clipped gradients; collecting and updating compiled as one
function. It is a yardstick of speed and no learner to use: it records nothing. Prints steps per
second::

    python -m benchmarks.jaxmarl_style smacv2_5_units --num-envs 128 --width 128

Axes: T time, E environments, N agents, R = N * E rows, H units.
"""

import argparse
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen

from envs.jaxmarl.smax import import_smax

STEPS, EPOCHS, MINIBATCHES = 128, 4, 4
GAMMA, GAE_LAMBDA, CLIP, ENTROPY, LEARNING_RATE, MAX_NORM = 0.99, 0.95, 0.05, 0.01, 4e-3, 0.25


class Body(linen.Module):
    """A recurrent network over (T, R, I) inputs; the memory is zero where an episode starts."""

    width: int
    outputs: int

    @linen.compact
    def __call__(self, memory: Any, x: Any, starts: Any) -> Any:
        """Return the memory after the last step and (T, R, outputs)."""
        x = linen.relu(linen.Dense(self.width)(x))
        cell = linen.GRUCell(self.width)

        def step(unit: Any, carry: Any, now: tuple[Any, Any]) -> Any:
            inputs, starting = now
            return unit(jnp.where(starting[:, None], 0.0, carry), inputs)

        scanned = linen.scan(step, variable_broadcast="params", split_rngs={"params": False})
        memory, x = scanned(cell, memory, (x, starts))
        return memory, linen.Dense(self.outputs)(linen.relu(linen.Dense(self.width)(x)))


class Steps(NamedTuple):
    """What a rollout keeps, each (T, R, ...)."""

    obs: Any
    state: Any
    legal: Any
    starts: Any
    actions: Any
    log_probs: Any
    values: Any
    rewards: Any
    over: Any


def log_probs_of(logits: Any, legal: Any) -> Any:
    """Return log-probabilities of all actions; an illegal one has next to none."""
    return jax.nn.log_softmax(jnp.where(legal, logits, -1e10))


class Loop:
    """Collecting and updating, as one compiled function of what changes."""

    def __init__(self, scenario: str, num_envs: int, width: int) -> None:
        smax = import_smax()
        self.env = smax.HeuristicEnemySMAX(
            scenario=smax.map_name_to_scenario(scenario),
            see_enemy_actions=True,
            walls_cause_death=True,
            attack_mode="closest",
        )
        self.num_envs, self.rows, self.width = num_envs, num_envs * self.env.num_agents, width
        self.actor = Body(width, self.env.num_ally_actions)
        self.critic = Body(width, 1)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(MAX_NORM), optax.adam(LEARNING_RATE, eps=1e-5)
        )

    def begin(self, key: Any) -> Any:
        """Return parameters, optimizers, battles, what is seen, memories and a key."""
        key, actor_key, critic_key, reset_key = jax.random.split(key, 4)
        obs, battles = jax.vmap(self.env.reset)(jax.random.split(reset_key, self.num_envs))
        starts = jnp.ones(self.rows, bool)
        memory = jnp.zeros((self.rows, self.width))
        seen, told = self._seen(obs)
        parameters = (
            self.actor.init(actor_key, memory, seen[None], starts[None]),
            self.critic.init(critic_key, memory, told[None], starts[None]),
        )
        optimizers = tuple(self.optimizer.init(part) for part in parameters)
        return parameters, optimizers, battles, obs, starts, (memory, memory), key

    def iterate(self, carry: Any, _: None) -> Any:
        """Collect a rollout and learn from it."""
        parameters, optimizers, battles, obs, starts, memories, key = carry
        first = memories
        running = (battles, obs, starts, memories, key)
        running, steps = jax.lax.scan(
            lambda now, _: self._step(parameters, now), running, None, STEPS
        )
        battles, obs, starts, memories, key = running
        _, last = self.critic.apply(
            parameters[1], memories[1], self._seen(obs)[1][None], starts[None]
        )
        advantages = self._advantages(steps, last[0, :, 0])
        data = (steps, advantages, advantages + steps.values)

        def epoch(learner: Any, key: Any) -> Any:
            order = jax.random.permutation(key, self.rows).reshape(MINIBATCHES, -1)
            return jax.lax.scan(
                lambda now, rows: (self._learn(now, first, data, rows), None), learner, order
            )

        key, epoch_key = jax.random.split(key)
        (parameters, optimizers), _ = jax.lax.scan(
            epoch, (parameters, optimizers), jax.random.split(epoch_key, EPOCHS)
        )
        return (parameters, optimizers, battles, obs, starts, memories, key), None

    def _seen(self, obs: dict[str, Any]) -> tuple[Any, Any]:
        """Return (R, O) observations and (R, S + N) states with the agent's number, agent first."""
        agents, count = self.env.agents, self.env.num_agents
        state = jnp.broadcast_to(obs["world_state"], (count, *obs["world_state"].shape))
        ids = jnp.broadcast_to(jnp.eye(count)[:, None], (count, self.num_envs, count))
        told = jnp.concatenate((state, ids), axis=-1).reshape(self.rows, -1)
        return jnp.concatenate([obs[agent] for agent in agents]), told

    def _step(self, parameters: Any, running: Any) -> Any:
        battles, obs, starts, memories, key = running
        key, act_key, step_key = jax.random.split(key, 3)
        seen, told = self._seen(obs)
        legal = jax.vmap(self.env.get_avail_actions)(battles)
        legal = jnp.concatenate([legal[agent] for agent in self.env.agents]).astype(bool)
        actor_memory, logits = self.actor.apply(
            parameters[0], memories[0], seen[None], starts[None]
        )
        critic_memory, values = self.critic.apply(
            parameters[1], memories[1], told[None], starts[None]
        )
        log_probs = log_probs_of(logits[0], legal)
        actions = jax.random.categorical(act_key, log_probs)
        each = actions.reshape(self.env.num_agents, self.num_envs)
        joint = {agent: each[i] for i, agent in enumerate(self.env.agents)}
        keys = jax.random.split(step_key, self.num_envs)
        obs, battles, rewards, dones, _ = jax.vmap(self.env.step)(keys, battles, joint)
        over = jnp.tile(dones["__all__"], self.env.num_agents)
        steps = Steps(
            obs=seen,
            state=told,
            legal=legal,
            starts=starts,
            actions=actions,
            log_probs=jnp.take_along_axis(log_probs, actions[:, None], 1)[:, 0],
            values=values[0, :, 0],
            rewards=jnp.concatenate([rewards[agent] for agent in self.env.agents]),
            over=over,
        )
        return (battles, obs, over, (actor_memory, critic_memory), key), steps

    def _advantages(self, steps: Steps, last: Any) -> Any:
        """Return generalised advantages; as in JaxMARL a time limit counts as an end."""

        def back(carry: Any, step: Steps) -> Any:
            advantage, after = carry
            going_on = 1.0 - step.over
            delta = step.rewards + GAMMA * after * going_on - step.values
            advantage = delta + GAMMA * GAE_LAMBDA * going_on * advantage
            return (advantage, step.values), advantage

        return jax.lax.scan(back, (jnp.zeros_like(last), last), steps, reverse=True, unroll=16)[1]

    def _learn(self, learner: Any, first: Any, data: Any, rows: Any) -> Any:
        """Return parameters and optimizers after one minibatch of whole sequences."""
        parameters, optimizers = learner
        steps, advantages, targets = jax.tree.map(lambda x: x[:, rows], data)

        def actor_loss(part: Any) -> Any:
            _, logits = self.actor.apply(part, first[0][rows], steps.obs, steps.starts)
            log_probs = log_probs_of(logits, steps.legal)
            chosen = jnp.take_along_axis(log_probs, steps.actions[..., None], -1)[..., 0]
            ratio = jnp.exp(chosen - steps.log_probs)
            scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            clipped = jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP)
            entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
            return -jnp.minimum(ratio * scaled, clipped * scaled).mean() - ENTROPY * entropy

        def critic_loss(part: Any) -> Any:
            _, values = self.critic.apply(part, first[1][rows], steps.state, steps.starts)
            values = values[..., 0]
            near = steps.values + jnp.clip(values - steps.values, -CLIP, CLIP)
            errors = jnp.maximum((values - targets) ** 2, (near - targets) ** 2)
            return 0.25 * errors.mean()

        improved = []
        for loss, part, state in zip(
            (actor_loss, critic_loss), parameters, optimizers, strict=True
        ):
            updates, state = self.optimizer.update(jax.grad(loss)(part), state)
            improved.append((optax.apply_updates(part, updates), state))
        return tuple(part for part, _ in improved), tuple(state for _, state in improved)


def rates(scenario: str, num_envs: int, width: int, iterations: int) -> dict[str, float]:
    """Return environment steps per second, and per CPU second, after two iterations."""
    loop = Loop(scenario, num_envs, width)
    carry = jax.jit(loop.begin)(jax.random.PRNGKey(0))
    iterate = jax.jit(loop.iterate, donate_argnums=0)
    for _ in range(2):  # compiled a second time for the types that the first call returns
        carry, _ = jax.block_until_ready(iterate(carry, None))
    began, worked = time.perf_counter(), time.process_time()
    for _ in range(iterations):
        carry, _ = jax.block_until_ready(iterate(carry, None))
    steps = iterations * num_envs * STEPS
    return {
        "steps_per_second": steps / (time.perf_counter() - began),
        "steps_per_cpu_second": steps / (time.process_time() - worked),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario")
    parser.add_argument("--num-envs", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(rates(**vars(options))))
