# SPDX-License-Identifier: Apache-2.0
"""Datasets and tokenizers from the Hugging Face hub, or from its cache when the hub is out of reach."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cw_grpo.datasets.benchmarks import Benchmark
from cw_grpo.datasets.messages import one_line
from cw_grpo.datasets.reading import FORMATS, mark_short_floats

if TYPE_CHECKING:
    from datasets import Dataset
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
            return dataset_rows(datasets.load_dataset(benchmark.id, split=benchmark.hub_split))
    except Exception as error:  # of httpx, huggingface_hub, datasets, and of whatever the files hold
        raise RuntimeError(
            f"{benchmark.name}: could not load {benchmark.id} (split {benchmark.hub_split}) from the Hugging Face hub: "
            f"{one_line(error)}. Without a network, copy the file here and name it with --from FILE "
            f"({', '.join(FORMATS)})."
        ) from error


def dataset_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """The rows of a dataset; what it keeps as float16 or float32 is ``Unreadable``, as in a parquet file."""
    return mark_short_floats(dataset.to_list(), dataset.features.arrow_schema)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory or from the hub.

    Raises:
        RuntimeError: it cannot be loaded, or has no chat template.
    """
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    local = Path(name).is_dir()
    try:
        with _cache_if_offline(lambda: local or HfApi().model_info(name, timeout=HUB_TIMEOUT)):
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
