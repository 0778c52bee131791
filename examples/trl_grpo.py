# SPDX-License-Identifier: Apache-2.0
"""CW-GRPO in TRL: a trainer that weights the advantages, and two steps of a tiny random model on a CPU."""

from __future__ import annotations

import string
import tempfile

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from cw_grpo import covariance_weights


class CovarianceGRPOTrainer(GRPOTrainer):
    """GRPO on text whose advantages are multiplied by the weights of arXiv 2605.11538."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)  # of this process, before TRL shuffles and splits it
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        size = self.num_generations if self.model.training else self.num_generations_eval
        if len(mask) % size:
            raise ValueError(f"a process has {len(mask)} completions, not whole groups of {size}; change the batch")
        log_probs = batch.get("old_per_token_logps")
        if log_probs is None:  # TRL leaves them out where the policy has not changed since
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            sizes = mask.shape[1], self.args.per_device_train_batch_size
            with torch.no_grad():
                log_probs, *_ = self._get_per_token_logps_and_entropies(self.model, ids, attention, *sizes)
        groups = torch.arange(len(mask)) // size
        weights = covariance_weights(log_probs, batch["advantages"], mask, groups).weights
        batch["advantages"] = batch["advantages"].unsqueeze(1) * weights
        return batch


def vowels(completions: list[str], **_) -> list[float]:
    """The reward: the share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def main(**options) -> None:
    """Two steps of 2 prompts x 4 completions; ``options`` are of GRPOConfig."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", *string.ascii_lowercase])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<end>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), initializer_range=0.5, **sizes, **ends))
    with tempfile.TemporaryDirectory() as directory:
        defaults = {
            "output_dir": directory,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        }
        trainer = CovarianceGRPOTrainer(
            model=model,
            reward_funcs=vowels,
            args=GRPOConfig(**defaults | options),
            train_dataset=Dataset.from_dict({"prompt": ["abc", "de", "fghi", "j"]}),
            processing_class=tokenizer,
        )
        trainer.train()


if __name__ == "__main__":
    main()
