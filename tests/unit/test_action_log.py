"""The log of actions since each copy's open episode began."""

import numpy as np

from envs.adapters.team_env import ActionLog


def test_log_forgets_ended_episodes_and_grows() -> None:
    log = ActionLog(2)
    for t in range(200):
        # Copy 0 ends every 7 steps, copy 1 never: 200 = 28 * 7 + 4 leaves 4 and 200 steps.
        log.add(np.array([[t, 1], [t, 2]]), np.array([t % 7 == 6, False]))
    np.testing.assert_array_equal(log.lengths, [4, 200])
    assert log.actions.shape == (2, 200, 2)
    np.testing.assert_array_equal(log.actions[0, :4, 0], [196, 197, 198, 199])
    assert not log.actions[0, 4:].any()
    np.testing.assert_array_equal(log.actions[1, :, 0], np.arange(200))


def test_a_restored_log_goes_on() -> None:
    log, other = ActionLog(2), ActionLog(2)
    going_on = np.zeros(2, np.bool_)
    log.add(np.array([[1.5], [2.5]]), going_on)
    other.restore(log.lengths, log.actions)
    for one in (log, other):
        one.add(np.array([[3.5], [4.5]]), np.array([False, True]))
    np.testing.assert_array_equal(other.actions, [[[1.5], [3.5]], [[0], [0]]])
    np.testing.assert_array_equal(other.actions, log.actions)
