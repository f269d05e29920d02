"""Rounds of a package index that lies, stalls and cuts."""

from __future__ import annotations

import signal

from kills import may_leave
from lying_index import LIES, Behaviour
from rounds import Round
from whole import finish_build, store_whole
from worlds import World


def lying_index(this: Round) -> None:
    """An index that lies, stalls and cuts: never a link to what is not whole; then a good one succeeds."""
    world, chance = this.world, this.chance
    lies = tuple(chance.sample(LIES, chance.choice([1, 1, 2, 4])))
    cold = World(world.template, world.root, world.index, world.root / "uv-cache")
    for _ in range(chance.randint(1, 2)):
        behaviour = Behaviour(str(chance.random()), chance.choice([0.3, 0.6, 1.0]), lies)
        world.index.behaviour = behaviour
        arguments = cold.build()
        command = cold.start(*arguments, env={"UV_HTTP_TIMEOUT": "1", "UV_HTTP_RETRIES": "0"})
        if "stalled" in lies and chance.random() < 0.5:
            command.wait(chance.uniform(0.4, 2.0) * this.pace)
            signum = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
            command.send(int(signum), group=signum is signal.SIGINT)
        ended = this.note(command.finish())
        this.trail.append(f"the index lied: {dict(behaviour.told)}")
        world.index.behaviour = Behaviour()
        for lie, count in behaviour.told.items():
            this.faults[f"index: {lie}"] += count
        store_whole(this, leftovers=may_leave(ended))
        if ended.status and (world.links / "result-vllm-python312-cuda12_9-sm90").exists() and not ended.sent:
            this.hold(["a build that failed has a link"])
    this_world, this.world = this.world, cold
    finish_build(this)
    this.world = this_world
