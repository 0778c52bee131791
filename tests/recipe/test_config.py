# SPDX-License-Identifier: Apache-2.0
"""The recipe's config groups on stock verl: all combinations compose, and verl takes them."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.config import FSDPActorConfig, McoreActorConfig, RolloutConfig

from cw_grpo.checks.layout import layout_problem, read_layout
from cw_grpo.job.plan import LaunchError, make_plan
from cw_grpo.run_config import is_free_to_change
from cw_grpo.settings import check_job

pytestmark = pytest.mark.xdist_group("recipe/test_config")  # in one process, which composes a job once

CONFIG = Path(__file__).parents[2] / "recipe" / "cw_grpo" / "config"
METHODS = sorted(path.stem for path in (CONFIG / "method").glob("*.yaml"))
SCALES = ("smollm2", "tiny")
GPU_SCALES = ("qwen7b", "qwen1_5b")
ONE_GROUP = ("cw_grpo_live", "cw_grpo_released")
"""Methods whose micro-batches must be whole groups."""
GPU_CLUSTERS = {"1node": (1, 4), "1node_h200": (1, 4), "1node8": (1, 8), "nnodes": (2, 4)}
"""Nodes, and GPUs of each; for `nnodes` as NNODES=2 says."""
OWN_KEYS = (
    "algorithm.adv_estimator",
    "actor_rollout_ref.actor.policy_loss.",
    "actor_rollout_ref.actor.use_dynamic_bsz",
    "actor_rollout_ref.actor.clip_ratio_",
)
"""What a method file may set."""
NAMES = ("trainer.experiment_name", "trainer.default_local_dir", "actor_rollout_ref.rollout.trace.experiment_name")
"""What has the method in its name."""


ATTENTION = {
    "actor_rollout_ref.model.use_remove_padding",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.model.override_config.attn_implementation",
    "actor_rollout_ref.actor.use_remove_padding",
}
MICRO_BATCH = {"rows_per_micro_batch", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"}


@functools.cache
def _compose(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base=None):
        return compose("cw_grpo", overrides=list(overrides))


def job(*overrides: str) -> DictConfig:
    return _compose(*overrides).copy()


def leaves(node: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in node.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


@pytest.fixture(autouse=True)
def nnodes(monkeypatch) -> None:
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.delenv("GPUS_PER_NODE", raising=False)


def accepted(config: DictConfig, actor: type = FSDPActorConfig) -> None:
    """verl's own checks, and ours, pass."""
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    # The only values that verl leaves open belong to parts that are off: a reward model, a teacher, a critic.
    missing = [key for key, value in leaves(resolved).items() if value == "???"]
    assert not [key for key in missing if not key.startswith(("reward.reward_model.", "critic.", "distillation."))]
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    check_job(config)
    assert layout_problem(config) is None
    assert isinstance(omega_conf_to_dataclass(config.actor_rollout_ref.actor), actor)
    assert isinstance(omega_conf_to_dataclass(config.actor_rollout_ref.rollout), RolloutConfig)
    assert isinstance(omega_conf_to_dataclass(config.algorithm), AlgoConfig)


def test_the_methods_are_those_of_the_readme() -> None:
    assert METHODS == ["clip_cov", "cw_grpo", "cw_grpo_live", "cw_grpo_released", "grpo", "kl_cov"]


@pytest.mark.parametrize(("method", "scale"), [*itertools.product(METHODS, SCALES)])
def test_every_combination_is_taken_by_verl(method: str, scale: str) -> None:
    config = job(f"method={method}", f"scale={scale}", "cluster=cpu")
    accepted(config)
    assert not need_critic(config)
    assert config.trainer.device == "cpu" and config.actor_rollout_ref.rollout.name == "transformers"


@pytest.mark.parametrize(("scale", "cluster"), [("qwen7b", "1node"), ("qwen1_5b", "nnodes")])
def test_fsdp1_and_megatron_are_taken_too(scale: str, cluster: str) -> None:
    chosen = (f"scale={scale}", f"cluster={cluster}")
    fsdp1 = job(*chosen, "actor_rollout_ref.actor.strategy=fsdp")
    accepted(fsdp1)
    assert omega_conf_to_dataclass(fsdp1.actor_rollout_ref.actor).engine.strategy == "fsdp"
    fsdp2, megatron = job(*chosen), job(*chosen, "model_engine=megatron")
    accepted(megatron, McoreActorConfig)
    # Other words for the same schedule, and no other difference outside of the engine.
    dp, mcore = fsdp2.actor_rollout_ref.actor.optim, megatron.actor_rollout_ref.actor.optim
    for key in ("lr", "lr_warmup_steps_ratio", "weight_decay", "betas", "clip_grad"):
        assert dp[key] == mcore[key], key
    assert (dp.lr_scheduler_type, dp.lr * dp.min_lr_ratio) == (mcore.lr_decay_style, pytest.approx(mcore.min_lr))
    assert read_layout(fsdp2).ranks == read_layout(megatron).ranks
    engine = ("model_engine", *(f"actor_rollout_ref.{key}." for key in ("actor", "ref", "rollout.qat")), "critic.")
    plain, other = (leaves(OmegaConf.to_container(config, resolve=True)) for config in (fsdp2, megatron))
    assert [k for k in plain.keys() | other.keys() if plain.get(k) != other.get(k) and not k.startswith(engine)] == []


# A method sets its own keys alone (tested below): each with every scale, and one of them with every cluster.
@pytest.mark.parametrize(
    ("method", "scale", "cluster"),
    [
        *itertools.product(METHODS, GPU_SCALES, ["1node"]),
        *itertools.product(["cw_grpo_live"], GPU_SCALES, sorted(set(GPU_CLUSTERS) - {"1node"})),
    ],
)
def test_every_number_of_the_paper_is_where_verl_reads_it_and_verl_takes_it(
    method: str, scale: str, cluster: str
) -> None:
    """Table 5, the authors' settings (section 4 of the design), and what each scale adds to them."""
    composed = job(f"method={method}", f"scale={scale}", f"cluster={cluster}")
    accepted(composed)
    assert (composed.trainer.nnodes, composed.trainer.n_gpus_per_node) == GPU_CLUSTERS[cluster]
    assert composed.actor_rollout_ref.rollout.name == "vllm" and composed.trainer.device == "cuda"
    config = leaves(OmegaConf.to_container(composed, resolve=True))
    model, opens = {
        "qwen7b": ("Qwen/Qwen2.5-Math-7B-Instruct", None),
        "qwen1_5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", True),
    }[scale]
    actor, rollout, reward = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout.", "reward.custom_reward_function."
    expected = {
        # 12 prompts a step, 12 generations: 144 completions; one update each.
        "data.train_batch_size": 12,
        rollout + "n": 12,
        actor + "ppo_mini_batch_size": 12,
        actor + "ppo_epochs": 1,
        # Whole groups, for the losses; one micro-batching for all methods.
        actor + "ppo_micro_batch_size_per_gpu": 12,
        actor + "use_dynamic_bsz": False,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 12,
        rollout + "log_prob_micro_batch_size_per_gpu": 12,
        # 1/G sum_i 1/|o_i| sum_t; beta 0.04 of TRL, its k3.
        actor + "loss_agg_mode": "seq-mean-token-mean",
        actor + "use_kl_loss": True,
        actor + "kl_loss_coef": 0.04,
        actor + "kl_loss_type": "low_var_kl",
        actor + "entropy_coeff": 0,
        "algorithm.use_kl_in_reward": False,
        "algorithm.norm_adv_by_std_in_grpo": True,
        actor + "optim.lr": 1e-6,
        actor + "optim.lr_warmup_steps_ratio": 0.1,
        actor + "optim.lr_scheduler_type": "cosine",
        actor + "optim.min_lr_ratio": 0.1,
        actor + "optim.weight_decay": 0.0,
        "data.max_prompt_length": 512,
        "data.filter_overlong_prompts": True,
        "data.max_response_length": 4096,
        rollout + "prompt_length": 512,
        rollout + "response_length": 4096,
        # verl takes the model's positions (4096 of the 7B model), and limits an answer by the two lengths above.
        rollout + "max_model_len": None,
        rollout + "temperature": 0.7,
        rollout + "top_p": 1,
        "trainer.total_training_steps": 100,
        "trainer.save_freq": 50,
        reward + "reward_kwargs.accuracy_weight": 1.0,
        reward + "reward_kwargs.format_weight": 1.0,
        "actor_rollout_ref.model.path": model,
        # Validation: not the paper's.
        "trainer.test_freq": 50,
        "trainer.val_before_train": True,
        rollout + "val_kwargs.n": 4,
        rollout + "val_kwargs.do_sample": True,
        rollout + "val_kwargs.temperature": 0.7,
        rollout + "val_kwargs.top_p": 1.0,
    }
    assert {key: config[key] for key in expected} == expected
    assert config.get(reward + "reward_kwargs.think_in_prompt") == opens
    names = [Path(path).stem for path in (config["data.train_files"], *config["data.val_files"])]
    assert names == ["open-rs", "aime24", "amc23", "math500", "minerva", "olympiadbench"]


@pytest.mark.parametrize(
    ("method", "attention"), [*((method, "flash_attn") for method in METHODS), ("cw_grpo", "sdpa")]
)
def test_one_gpu_takes_the_papers_1_5b_model_with_smaller_micro_batches(method: str, attention: str) -> None:
    overrides = ("scale=qwen1_5b", "cluster=1gpu", f"method={method}", f"attention={attention}")
    one, several = job(*overrides), job("scale=qwen1_5b", "cluster=1node", f"method={method}")
    assert one.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 2
    if method in ONE_GROUP:
        with pytest.raises(ValueError, match="ppo_micro_batch_size_per_gpu"):
            check_job(one)
        one = job(*overrides, "rows_per_micro_batch=12")
    accepted(one)
    first, second = (leaves(OmegaConf.to_container(config, resolve=True)) for config in (one, several))
    different = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    gpus = {"trainer.n_gpus_per_node", "actor_rollout_ref.rollout.n_gpus_per_node"}
    trains = {key for key in different if not is_free_to_change(key, several)}
    assert trains <= ATTENTION | MICRO_BATCH | gpus
    assert (attention == "sdpa") == (not one.actor_rollout_ref.model.use_remove_padding)
    assert one.trainer.n_gpus_per_node == one.transfer_queue.backend.SimpleStorage.num_data_storage_units == 1


def test_smollm2_on_one_gpu_is_the_cpus_job_with_vllm_in_bfloat16() -> None:
    gpu, cpu = (job("scale=smollm2", f"cluster={cluster}", "method=cw_grpo_live") for cluster in ("1gpu", "cpu"))
    accepted(gpu)
    rollout = gpu.actor_rollout_ref.rollout
    assert (rollout.name, rollout.dtype, gpu.actor_rollout_ref.actor.fsdp_config.dtype) == ("vllm",) + ("bfloat16",) * 2
    for node in ("data", "actor_rollout_ref.actor.optim", "actor_rollout_ref.actor.policy_loss", "algorithm", "reward"):
        first, second = (OmegaConf.to_container(OmegaConf.select(config, node), resolve=True) for config in (gpu, cpu))
        for one in (first, second):
            one.pop("dataloader_num_workers", None), one.pop("num_workers", None)
        assert first == second, node


def test_node_counts_that_the_ranks_of_nnodes_allow(monkeypatch) -> None:
    """As cluster/nnodes.yaml lists them, of machines with four and with eight GPUs; verl agrees."""
    config = job("scale=qwen7b", "cluster=nnodes", "method=cw_grpo_live")
    for gpus, nodes in (4, (1, 2, 3, 4, 6, 12)), (8, (1, 2, 3, 6)):
        monkeypatch.setenv("GPUS_PER_NODE", str(gpus))
        for count in range(1, 13):
            monkeypatch.setenv("NNODES", str(count))
            assert (layout_problem(config) is None) == (count in nodes), (count, gpus)
            if count in nodes:
                accepted(config)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_file_sets_the_methods_own_keys_only(method: str) -> None:
    text = (CONFIG / "method" / f"{method}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    for key in leaves(yaml.safe_load(text)):
        assert key.startswith(OWN_KEYS), key
    plain, other = (leaves(OmegaConf.to_container(job(f"method={m}"), resolve=True)) for m in ("grpo", method))
    for key in plain.keys() | other.keys():
        assert plain.get(key) == other.get(key) or key.startswith((*OWN_KEYS, *NAMES)), key


@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_alone_on_verls_plain_trainer(method: str) -> None:
    """`--config-dir=.../recipe/cw_grpo/config +method=...` in a user's own job."""
    own = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", "actor_rollout_ref.rollout.n=8"]
    own += ["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8", "actor_rollout_ref.rollout.name=vllm"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        path = f"hydra.searchpath=[file://{CONFIG}]"
        config = compose("ppo_trainer", overrides=[path, f"+method={method}", *own])
        plain = compose("ppo_trainer", overrides=[path, "algorithm.adv_estimator=grpo", *own])
    accepted(config)
    before, after = (leaves(OmegaConf.to_container(c)) for c in (plain, config))
    assert [key for key in after if after[key] != before.get(key) and not key.startswith(OWN_KEYS)] == []


def test_what_each_method_is() -> None:
    def chosen(method: str) -> tuple[str, str]:
        config = job(f"method={method}")
        return config.algorithm.adv_estimator, config.actor_rollout_ref.actor.policy_loss.loss_mode

    assert {method: chosen(method) for method in METHODS} == {
        "cw_grpo": ("cw_grpo", "vanilla"),
        "cw_grpo_live": ("grpo", "cw_grpo_live"),
        "cw_grpo_released": ("grpo", "cw_grpo_released"),
        "grpo": ("grpo", "vanilla"),
        "clip_cov": ("grpo", "clip_cov"),
        "kl_cov": ("grpo", "kl_cov"),
    }
    clip = job("method=clip_cov").actor_rollout_ref.actor
    assert (clip.clip_ratio_low, clip.clip_ratio_high) == (1.0, 1.0)
    assert (clip.policy_loss.clip_cov_ratio, clip.policy_loss.clip_cov_lb, clip.policy_loss.clip_cov_ub) == (2e-4, 1, 5)
    kl = job("method=kl_cov").actor_rollout_ref.actor.policy_loss
    assert (kl.kl_cov_ratio, kl.ppo_kl_coef) == (2e-3, 1.0)


def test_what_the_papers_runs_have_in_common() -> None:
    """The primary config without its groups: section 2.1 and Table 5 of the paper, and the authors' settings."""
    with initialize_config_dir(str(CONFIG), version_base=None):
        config = compose("cw_grpo", overrides=["~scale", "~cluster", "~method"])
    assert config.actor_rollout_ref.actor.ulysses_sequence_parallel_size == 1
    actor = config.actor_rollout_ref.actor
    assert config.data.train_batch_size == 12 and config.actor_rollout_ref.rollout.n == 12
    assert actor.ppo_mini_batch_size == 12 and actor.ppo_epochs == 1
    assert actor.loss_agg_mode == "seq-mean-token-mean"
    assert (actor.use_kl_loss, actor.kl_loss_coef, actor.kl_loss_type) == (True, 0.04, "low_var_kl")
    optim = actor.optim
    assert (optim.lr, optim.lr_warmup_steps_ratio, optim.min_lr_ratio, optim.weight_decay) == (1e-6, 0.1, 0.1, 0.0)
    assert optim.lr_scheduler_type == "cosine"
    assert (config.data.max_prompt_length, config.data.max_response_length) == (512, 4096)
    assert config.actor_rollout_ref.rollout.temperature == 0.7
    assert (config.trainer.total_training_steps, config.trainer.save_freq) == (100, 50)


def test_tiny_is_the_papers_12_by_12() -> None:
    config = job("scale=tiny")
    assert (config.data.train_batch_size, config.actor_rollout_ref.rollout.n) == (12, 12)
    assert config.trainer.total_training_steps == 80


def test_one_seed_sets_the_order_of_the_data_and_the_responses() -> None:
    for overrides, seed in ((), 1), (("seed=7",), 7):
        config = job("scale=tiny", "cluster=cpu", *overrides)
        assert (config.data.seed, config.actor_rollout_ref.rollout.seed) == (seed, seed)


def test_runs_on_the_cpu_are_deterministic_and_those_on_gpus_are_as_verl_has_it() -> None:
    for cluster, deterministic in ("cpu", True), ("1node", False):
        assert job("scale=tiny", f"cluster={cluster}").actor_rollout_ref.rollout.full_determinism is deterministic


def test_the_papers_two_scales_differ_in_the_model_alone() -> None:
    first, second, base = (
        leaves(OmegaConf.to_container(job(f"scale={scale}", "cluster=1node")))
        for scale in ("qwen1_5b", "qwen7b", "paper")
    )
    model, reward = "actor_rollout_ref.model.path", "reward.custom_reward_function.reward_kwargs.think_in_prompt"
    bucket = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    for one, other, own in ((first, base, {reward}), (second, base, {bucket}), (first, second, {reward, bucket})):
        different = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        assert different == {"scale_name", model} | own


@pytest.mark.parametrize("scale", SCALES)
def test_training_and_validation_questions_are_drawn_from_seeds_apart(scale: str) -> None:
    data = job(f"scale={scale}").prepare.data
    assert data.train.seed + data.train.size <= data.val.seed


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method=cwgrpo", ("method/cwgrpo", *METHODS)),
        ("scale=huge", ("scale/huge", "paper", *SCALES, *GPU_SCALES)),
        ("cluster=gpu", ("cluster/gpu", "cpu", "1gpu", *GPU_CLUSTERS)),
        ("model_engine=megatorn", ("model_engine/megatorn", "dp", "megatron")),
        ("data.batch=3", ("there is no key data.batch",)),
        ("data.train_batch_size", ("data.train_batch_size",)),
        ("trainer.total_training_steps=${nothing}", ("nothing",)),
    ],
)
def test_a_mistyped_setting_is_rejected_with_what_exists(override: str, says: tuple[str, ...]) -> None:
    with pytest.raises(LaunchError) as caught:
        make_plan([override])
    assert caught.value.status == 2
    for text in says:
        assert text in str(caught.value)
    assert "\nTraceback" not in str(caught.value)
