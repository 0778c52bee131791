# SPDX-License-Identifier: Apache-2.0
"""What verl's processes see: in fresh processes, Ray actors among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import verl
from jobs import make_job

from cw_grpo import checks, hooks, plugin

IGNORE = ("-W", "ignore")
HOOKED = "cw_grpo/hooks/__init__.py"


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *IGNORE, "-c", textwrap.dedent(code)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# One process for what three tests ask, because verl takes seven processor seconds to import. Its Ray actor is one of a
# __main__, which is pickled by value, with the globals that it uses.
PROCESS = """
import json, sys
import verl

seen = {"plugin": "cw_grpo.plugin" in sys.modules}

from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

losses = [get_policy_loss_fn(name).__name__ for name in ("cw_grpo_live", "cw_grpo_released")]
seen["registered"] = [get_adv_estimator_fn("cw_grpo").__name__, *losses]

from verl.trainer import main_ppo
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.v1 import trainer_base, utils
from verl.experimental.separation import ray_trainer as separation

seen["files"] = {f"{holder.__name__}.{name}": getattr(holder, name).__code__.co_filename for holder, name in [
    (ray_trainer, "compute_advantage"),
    (utils, "compute_advantage"),
    (separation, "compute_advantage"),
    (utils, "compute_advantage_for_multi_trajectories"),
    (trainer_base, "compute_advantage_for_multi_trajectories"),
    (trainer_base, "compute_data_metrics"),
    (ray_trainer, "compute_data_metrics"),
    (main_ppo, "validate_config"),
    (trainer_base.PPOTrainer, "_balance_batch"),
]}
seen["inherited"] = {
    mode: [
        getattr(trainer_base.get_trainer_cls(mode), name) is getattr(trainer_base.PPOTrainer, name)
        for name in ("_compute_advantage", "_balance_batch")
    ]
    for mode in ("sync", "colocate_async", "separate_async")
}

import ray
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils.config import validate_config

@ray.remote
class Runner:
    def look(self):
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
        from cw_grpo import hooks
        from verl.trainer.ppo import ray_trainer
        return {
            "same function": compute_advantage is ray_trainer.compute_advantage,
            "name": validate_config.__name__,
            "registered": ["cw_grpo" in ADV_ESTIMATOR_REGISTRY, "cw_grpo_live" in POLICY_LOSS_REGISTRY],
            "hooked": [str(hook) for hook, state in hooks.states().items() if state == hooks.IN_PLACE],
        }

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
seen["actor"] = ray.get(Runner.remote().look.remote(), timeout=240)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    done = run_python(PROCESS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_verl_is_enough(seen: dict[str, Any]) -> None:
    assert seen["plugin"]
    assert seen["registered"] == [
        "compute_cw_grpo_outcome_advantage",
        "compute_policy_loss_cw_grpo",
        "compute_policy_loss_cw_grpo_released",
    ]


def test_every_name_that_verls_trainers_hold_is_the_hooked_one(seen: dict[str, Any]) -> None:
    assert len(seen["files"]) == 9
    assert {name: file for name, file in seen["files"].items() if not file.endswith(HOOKED)} == {}
    assert seen["inherited"] == {mode: [True, True] for mode in ("sync", "colocate_async", "separate_async")}


def test_seen_in_a_ray_actor_and_hooked_functions_can_be_pickled(seen: dict[str, Any]) -> None:
    actor = seen["actor"]
    assert actor["same function"] and actor["name"] == "validate_config"
    assert actor["registered"] == [True, True]
    assert "verl.trainer.ppo.ray_trainer.compute_advantage" in actor["hooked"]


@pytest.mark.parametrize("module", ["advantage", "policy_loss"])
def test_an_adapter_can_be_imported_first(module: str) -> None:
    done = run_python(f"""
        import cw_grpo.{module}
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
        print(get_adv_estimator_fn("cw_grpo").__module__, get_policy_loss_fn("cw_grpo_live").__module__)
    """)
    assert done.stdout.split() == ["cw_grpo.advantage", "cw_grpo.policy_loss"], done.stderr


# Another verl: the same modules with one thing renamed, as a release could have it.
RENAMED = """
    import importlib.util, sys, wrapt

    def rename(module):
        {change}

    wrapt.register_post_import_hook(rename, "{module}")
    import verl
    from cw_grpo import checks
"""


@pytest.mark.parametrize(
    ("module", "change", "said"),
    [
        (
            "verl.trainer.ppo.ray_trainer",
            "del module.compute_advantage",
            "verl.trainer.ppo.ray_trainer has no compute_advantage",
        ),
        (
            "verl.trainer.ppo.ray_trainer",
            "module.compute_advantage = lambda data, adv_estimator: data",
            "no parameter config",
        ),
    ],
)
def test_a_verl_that_lacks_what_a_hook_holds_is_an_error_with_the_versions(module: str, change: str, said: str) -> None:
    done = run_python(
        textwrap.dedent(RENAMED.format(module=module, change=change))
        + textwrap.dedent("""
        import verl.trainer.ppo.ray_trainer
        from omegaconf import OmegaConf
        job = OmegaConf.create({
            "algorithm": {"adv_estimator": "cw_grpo"},
            "actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": "vanilla"}}, "rollout": {"n": 4}},
        })
        try:
            checks.check_plugin(job)
        except RuntimeError as error:
            print(error)
        job.algorithm.adv_estimator = "grpo"
        checks.check_plugin(job)
        print("grpo runs")
    """)
    )
    assert said in done.stdout, done.stderr
    assert f"verl {verl.__version__}, cw-grpo" in done.stdout
    assert done.stdout.endswith("grpo runs\n")


JOBS = {
    "V0": ("cw_grpo", "vanilla", False),
    "V1": ("cw_grpo", "vanilla", True),
    "losses in V0": ("grpo", "cw_grpo_live", False),
    "losses in V1": ("grpo", "cw_grpo_live", True),
    "no CW-GRPO": ("grpo", "vanilla", True),
}
"""Estimator, loss and `trainer.use_v1`."""


@pytest.mark.parametrize(
    ("name", "stopped"),
    [
        ("ray_trainer.compute_advantage", {"V0", "losses in V0"}),
        ("utils.compute_advantage_for_multi_trajectories", {"V1", "losses in V1"}),
        ("trainer_base.PPOTrainer._balance_batch", {"losses in V1"}),
        ("config.validate_config", set()),
        ("metric_utils.compute_data_metrics", set()),
        ("ray_trainer.RayPPOTrainer._get_gen_batch", set()),
    ],
)
def test_a_missing_hook_stops_the_jobs_that_need_it_and_no_other(name: str, stopped: set[str], monkeypatch) -> None:
    lacking = [hook for hook in plugin.HOOKS if str(hook).endswith(f".{name}")]
    assert lacking
    for hook in lacking:
        monkeypatch.setitem(hooks._states, hook, "as if it were not there")
    found = set()
    for kind, (estimator, loss, v1) in JOBS.items():
        job = make_job(estimator, loss)
        job.trainer.use_v1 = v1
        job.trainer.balance_batch = False
        try:
            checks.check_plugin(job)
        except RuntimeError as error:
            assert f"{lacking[0]}: as if it were not there" in str(error)
            found.add(kind)
    assert found == stopped
    features = "; ".join(hooks.missing_features())
    assert all(f"{hook.feature} ({hook}: as if" in features for hook in lacking if hook.feature)
    assert stopped or features


def test_the_losses_need_a_verl_that_they_are_supported_with(monkeypatch) -> None:
    monkeypatch.setattr(verl, "__version__", "0.8.0")
    job = make_job("grpo", "cw_grpo_live")
    with pytest.raises(RuntimeError, match=r"losses of CW-GRPO need verl 0\.9\.0 .* is verl 0\.8\.0\. Set .*cw_grpo"):
        checks.check_plugin(job)
    checks.check_plugin(make_job("cw_grpo"))
