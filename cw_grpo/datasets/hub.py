"""Datasets and tokenizers from the Hugging Face hub, or from its cache when the hub is out of reach."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cw_grpo.datasets.benchmarks import Benchmark
from cw_grpo.datasets.messages import one_line
from cw_grpo.datasets.reading import FORMATS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_TIMEOUT = 10
"""Seconds for the question whether the hub is in reach."""


def read_hub(benchmark: Benchmark) -> list[dict[str, Any]]:
    """The rows on the hub, or in its cache on this machine when the hub is out of reach.

    Raises:
        RuntimeError: neither; names the dataset and the way without a network.
    """
    import datasets
    from huggingface_hub import HfApi

    try:
        with _cache_if_offline(lambda: HfApi().dataset_info(benchmark.id, timeout=HUB_TIMEOUT)):
            return datasets.load_dataset(benchmark.id, split=benchmark.hub_split).to_list()
    except Exception as error:  # of httpx, huggingface_hub, datasets, and of whatever the files hold
        raise RuntimeError(
            f"{benchmark.name}: could not load {benchmark.id} (split {benchmark.hub_split}) from the Hugging Face hub: "
            f"{one_line(error)}. Without a network, copy the file here and name it with --from FILE "
            f"({', '.join(FORMATS)})."
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory or from the hub.

    Raises:
        RuntimeError: it cannot be loaded, or has no chat template.
    """
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    local = Path(name).is_dir()
    try:
        with (
            contextlib.nullcontext()
            if local
            else _cache_if_offline(lambda: HfApi().model_info(name, timeout=HUB_TIMEOUT))
        ):
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise RuntimeError(f"--tokenizer {name}: {one_line(error)}") from error
    if not tokenizer.chat_template:
        raise RuntimeError(f"--tokenizer {name} has no chat template, so the length of a prompt is not known")
    return tokenizer


@contextlib.contextmanager
def _cache_if_offline(ask: Callable[[], Any]) -> Iterator[None]:
    """Ask the hub a question; if it is out of reach, the block uses caches alone: retries take half a minute."""
    import datasets
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        ask()
    except (httpx.TransportError, OfflineModeIsEnabled, ConnectionError):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
