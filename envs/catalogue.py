"""Names of the environments that `marl envs` lists, without the packages that make them.

A family may accept more names than these: `particles/nav_9`, `mamujoco/manysegmentant_4x2`.
"""

SEGMENTED = {"ManySegmentSwimmer": "Swimmer", "ManySegmentAnt": "Ant"}
"""Scenarios with any partition AxB (A agents of B segments), and the scenario they extend."""

PARTITIONS: dict[str, tuple[str, ...]] = {
    "Ant": ("2x4", "2x4d", "4x2"),
    "HalfCheetah": ("2x3", "6x1"),
    "Hopper": ("3x1",),
    "Humanoid": ("9|8",),
    "HumanoidStandup": ("9|8",),
    "Walker2d": ("2x3",),
    "Reacher": ("2x1",),
    "Swimmer": ("2x1",),
    "Pusher": ("3p",),
    "CoupledHalfCheetah": ("1p1",),
    "ManySegmentSwimmer": ("2x2", "2x5", "6x1", "10x2"),
    "ManySegmentAnt": ("2x2", "2x3", "3x1"),
}
"""Partitions of each scenario; of the segmented ones, those that the tests cover."""

MAMUJOCO_NAMES: tuple[str, ...] = tuple(
    f"{scenario.lower()}_{partition}"
    for scenario, partitions in PARTITIONS.items()
    for partition in partitions
)
"""Names `scenario_from_name` accepts; the segmented scenarios accept any other AxB as well."""

FLEET_SCENARIOS: tuple[str, ...] = tuple(s for s in PARTITIONS if s not in SEGMENTED)
"""Robots a fleet can consist of."""

FLEET_NAMES: tuple[str, ...] = tuple(f"{scenario.lower()}_4" for scenario in FLEET_SCENARIOS)
"""Fleets of four; any number of robots can be asked for."""

PARTICLE_NAMES = ("nav_3", "nav_6", "nav_12", "spread_3")
"""Usual sizes; any number of agents can be asked for."""

GYM_TEAMS = {"Foraging-8x8-2p-2f-coop-v3": "lbforaging", "rware-tiny-2ag-v2": "rware"}
"""Usual ids of gymnasium teams, and the package that registers each."""

SMAX_NAMES: tuple[str, ...] = (
    "3m",
    "2s3z",
    "25m",
    "3s5z",
    "8m",
    "5m_vs_6m",
    "10m_vs_11m",
    "27m_vs_30m",
    "3s5z_vs_3s6z",
    "3s_vs_5z",
    "6h_vs_8z",
    "smacv2_5_units",
    "smacv2_10_units",
    "smacv2_20_units",
)
"""JaxMARL's scenarios; those named after SMACv2 draw unit types and positions anew each time."""

OVERCOOKED_LAYOUTS = (
    "cramped_room",
    "asymm_advantages",
    "coord_ring",
    "forced_coord",
    "counter_circuit",
)
"""The classic kitchens."""

MPE_SCENARIOS = {
    "simple_spread": "SimpleSpreadMPE",
    "simple_reference": "SimpleReferenceMPE",
    "simple_speaker_listener": "SimpleSpeakerListenerMPE",
}
"""JaxMARL's cooperative particle tasks, and its classes."""

MABRAX_ROBOTS = {
    "ant_4x2": "Ant",
    "halfcheetah_6x1": "HalfCheetah",
    "hopper_3x1": "Hopper",
    "humanoid_9|8": "Humanoid",
    "walker2d_2x3": "Walker2d",
}
"""Robots of JaxMARL in Brax, and its classes."""

JAXMARL_TEAMS: dict[str, str] = {
    **{f"overcooked_{layout}": "" for layout in OVERCOOKED_LAYOUTS},
    **{f"mpe_{scenario}": "" for scenario in MPE_SCENARIOS},
    "hanabi_2": "",
    "switch_riddle_3": "",
    "coin_game": "",
    **{f"mabrax_{robot}": "brax" for robot in MABRAX_ROBOTS},
}
"""JaxMARL's cooperative tasks beside SMAX, and the package that some need; Hanabi takes up to five
players, the riddle any number."""

JUMANJI_WAREHOUSES: dict[str, dict[str, int]] = {
    f"warehouse_{size}_{agents}ag{easy}": {
        "shelf_rows": rows,
        "shelf_columns": 3,
        "column_height": 8,
        "num_agents": agents,
        "sensor_range": 1,
        "request_queue_size": agents * (2 if easy else 1),
    }
    for size, rows in (("tiny", 1), ("small", 2))
    for agents in (2, 4)
    for easy in ("", "_easy")
}
"""Jumanji's warehouses under the names of rware, and their sizes; `easy` asks for twice as many
shelves at a time."""

JUMANJI_NAMES = (*JUMANJI_WAREHOUSES, "foraging", "connector")
"""Jumanji's teams."""

VMAS_NAMES: tuple[str, ...] = (
    "balance",
    "ball_passage",
    "ball_trajectory",
    "buzz_wire",
    "discovery",
    "dispersion",
    "dropout",
    "flocking",
    "football",
    "give_way",
    "joint_passage",
    "joint_passage_size",
    "multi_give_way",
    "navigation",
    "passage",
    "reverse_transport",
    "road_traffic",
    "sampling",
    "transport",
    "wheel",
    "wind_flocking",
    "simple_reference",
    "simple_speaker_listener",
    "simple_spread",
)
"""The cooperative scenarios of VMAS. In football, the other side is scripted."""

SMACV2_MAPS = ("10gen_terran", "10gen_protoss", "10gen_zerg")
"""Maps of SMACv2."""

PROBES = (
    "composite",
    "continuous_match",
    "coordination",
    "dying",
    "keys",
    "local_credit",
    "masked",
    "recall",
    "time_limit",
)
"""Tiny tasks with a known optimum."""
