"""What verl's processes see: in fresh processes, Ray actors among them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

IGNORE = ("-W", "ignore")


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *IGNORE, "-c", textwrap.dedent(code)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_verl_is_enough() -> None:
    done = run_python("""
        import sys, verl
        assert "cw_grpo.plugin" in sys.modules
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
        print(get_adv_estimator_fn("cw_grpo").__name__)
        print(get_policy_loss_fn("cw_grpo_live").__name__, get_policy_loss_fn("cw_grpo_released").__name__)
    """)
    assert done.stdout.split() == [
        "compute_cw_grpo_outcome_advantage",
        "compute_policy_loss_cw_grpo",
        "compute_policy_loss_cw_grpo_released",
    ], done.stderr


@pytest.mark.parametrize("module", ["advantage", "policy_loss"])
def test_an_adapter_can_be_imported_first(module: str) -> None:
    done = run_python(f"""
        import cw_grpo.{module}
        from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
        print(get_adv_estimator_fn("cw_grpo").__module__, get_policy_loss_fn("cw_grpo_live").__module__)
    """)
    assert done.stdout.split() == ["cw_grpo.advantage", "cw_grpo.policy_loss"], done.stderr


def test_every_name_that_verls_trainers_hold_is_the_hooked_one() -> None:
    done = run_python("""
        from verl.trainer import main_ppo
        from verl.trainer.ppo import ray_trainer
        from verl.trainer.ppo.v1 import trainer_base, utils
        from verl.experimental.separation import ray_trainer as separation
        for holder, name in [
            (ray_trainer, "compute_advantage"),
            (utils, "compute_advantage"),
            (separation, "compute_advantage"),
            (utils, "compute_advantage_for_multi_trajectories"),
            (trainer_base, "compute_advantage_for_multi_trajectories"),
            (trainer_base, "compute_data_metrics"),
            (ray_trainer, "compute_data_metrics"),
            (main_ppo, "validate_config"),
        ]:
            assert getattr(holder, name).__code__.co_filename.endswith("cw_grpo/hooks/__init__.py"), (holder, name)
        assert trainer_base.PPOTrainer._balance_batch.__code__.co_filename.endswith("cw_grpo/hooks/__init__.py")
        for mode in ("sync", "colocate_async", "separate_async"):
            cls = trainer_base.get_trainer_cls(mode)
            assert cls._compute_advantage is trainer_base.PPOTrainer._compute_advantage, mode
            assert cls._balance_batch is trainer_base.PPOTrainer._balance_batch, mode
        print("held")
    """)
    assert done.stdout.endswith("held\n"), done.stderr


def test_seen_in_a_ray_actor_and_hooked_functions_can_be_pickled() -> None:
    # An actor of a __main__ is pickled by value, with the globals that it uses.
    done = run_python("""
        import ray
        from verl.trainer.ppo.ray_trainer import compute_advantage
        from verl.utils.config import validate_config

        @ray.remote
        class Runner:
            def look(self):
                from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
                from cw_grpo import hooks
                from verl.trainer.ppo import ray_trainer
                assert compute_advantage is ray_trainer.compute_advantage
                assert validate_config.__name__ == "validate_config"
                hooked = [str(hook) for hook, state in hooks.states().items() if state == hooks.IN_PLACE]
                return "cw_grpo" in ADV_ESTIMATOR_REGISTRY, "cw_grpo_live" in POLICY_LOSS_REGISTRY, hooked

        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        estimator, loss, hooked = ray.get(Runner.remote().look.remote(), timeout=90)
        assert estimator and loss
        assert "verl.trainer.ppo.ray_trainer.compute_advantage" in hooked
        print("seen")
    """)
    assert done.stdout.endswith("seen\n"), done.stderr


def doctor(**env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *IGNORE, "-c", "from cw_grpo.cli import app; app()", "doctor"],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_doctor_is_content_here() -> None:
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verl 0.9" in done.stdout
    assert done.stdout.count("ok  ") == 5


def test_doctor_says_when_verl_does_not_load_the_plugin() -> None:
    done = doctor(VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS='none'" in done.stdout


def test_doctor_is_content_with_a_plugin_named_in_the_environment() -> None:
    done = doctor(VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES="cw_grpo.plugin")
    assert done.returncode == 0, done.stdout + done.stderr


def test_doctor_shows_the_error_that_verl_swallows(tmp_path) -> None:
    (tmp_path / "wrapt.py").write_text("raise ImportError('wrapt is broken')")
    done = doctor(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "wrapt is broken" in done.stdout


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
    assert "verl 0.9" in done.stdout
    assert done.stdout.endswith("grpo runs\n")
