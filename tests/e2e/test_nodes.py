# SPDX-License-Identifier: Apache-2.0
"""On a Ray cluster of two nodes that runs already, a job trains across both and the doctor looks at both."""

from __future__ import annotations

from pathlib import Path

import pytest
from main_job import COMPARABLE, Run, assert_same_updates, micro
from two_nodes import ON_BOTH_NODES, Cluster

from cw_grpo.metrics import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_a_loss_across_the_nodes_of_a_cluster_that_stays_makes_the_estimators_update(
    cluster: Cluster, recipe_run: Run, home: Path, tmp_path: Path
) -> None:
    """The loss takes the same weights from the same policy: strictly on-policy its gradient is the estimator's."""
    loss = ("method=cw_grpo_live", micro(36), *ON_BOTH_NODES)
    run = Run(tmp_path / "run", home, *COMPARABLE, *loss, env=cluster.env)
    assert "Ray is up" in run.finish()
    assert_same_updates(run, recipe_run)
    of_loss, of_estimator = ([name for name in of.metrics if name.startswith(PREFIX)] for of in (run, recipe_run))
    assert sorted(of_loss) == sorted(of_estimator)
    # Twice: the logs of both nodes lie in one directory here, and each node sends them.
    assert run.log.count("CW-GRPO: the policy loss cw_grpo_live applies the weights") == 2
    # One rank on each node, by Ray's own list of actors, none of which is left; the nodes are.
    ranks, left, nodes = cluster.look(
        "{a['Address']['NodeID'] for a in actors if 'WorkerDict' in a['ActorClassName']}",
        "[a['ActorClassName'] for a in actors if a['State'] != 'DEAD']",
        "sum(node['Alive'] for node in ray.nodes())",
    )
    assert (len(ranks), left, nodes) == (2, [], 2)


def test_the_doctor_looks_at_every_node(cluster: Cluster) -> None:
    node = cluster.start(f"--address={cluster.address}", VERL_USE_EXTERNAL_PLUGINS="none")
    try:
        done = cluster.run("doctor", "--address=auto")
    finally:
        node.terminate()
        node.wait(30)
    lines = [line for line in done.stdout.splitlines() if " node " in line]
    assert done.returncode == 1, done.stdout
    assert sorted(line[:6] for line in lines) == ["FAILED", "ok    ", "ok    "], done.stdout
    assert "VERL_USE_EXTERNAL_PLUGINS='none'" in done.stdout
