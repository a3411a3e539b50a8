"""Determines how a pretrained text tower works by running it on short texts of arbitrary tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mimic_pl.encoders.loading_errors import reason
from mimic_pl.errors import ConfigError

TextTower = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Maps ``input_ids`` and ``attention_mask`` to ``tokens`` ``[batch, text_tokens, width]``, and maybe ``pooled``."""

_REFUSALS = (IndexError, RuntimeError, ValueError, TypeError, AttributeError)

_LONG = 512
"""Tokens. A text tower with relative positions, as in T5, has no limit, but a long text would fill the memory."""


class TextProbe:
    """Runs a text tower on arbitrary texts without padding tokens.

    Args:
        tower: The tower, in evaluation mode.
        config: Its transformers configuration.
        name: Name of the model in error messages.
    """

    def __init__(self, tower: TextTower, config: Any, name: str) -> None:
        self.tower = tower
        self.name = name
        positions = getattr(config, "max_position_embeddings", None)
        self.positions: int | None = positions if positions and positions > 0 else None  # -1 in XLNet
        # Special tokens are avoided: RoBERTa gives padding no position, and CLIP pools the end token.
        special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep")}
        self._token, self._other = [id_ for id_ in range(len(special) + 2) if id_ not in special][:2]
        self._last: int = max(self._other, (getattr(config, "vocab_size", None) or 0) - 1)

    @torch.no_grad()
    def outputs(self, length: int) -> dict[str, Tensor]:
        """The tower's outputs for a text of ``length`` tokens.

        Raises:
            ConfigError: It has fewer positions, or cannot encode a text at all.
        """
        tried = length if self.positions else min(length, _LONG)
        outputs = self._attempt(tried)
        if isinstance(outputs, dict):
            return outputs
        self._run(torch.tensor([[self._token]]), torch.tensor([[1]]))
        longest, refused = 1, tried
        while refused - longest > 1:
            middle = (longest + refused) // 2
            longest, refused = (longest, middle) if isinstance(self._attempt(middle), str) else (middle, refused)
        raise ConfigError(
            f"text_length is {length}, but {self.name} has only {longest} positions for tokens. Lower text_length or "
            "choose another model."
        )

    @torch.no_grad()
    def pools_padding(self) -> bool:
        """Whether ``pooled`` reads positions that the attention mask hides, as in SigLIP, which pools the last one.

        Such a tower was trained on texts padded to one length, without a mask.
        """
        # CLIP pools the token with the largest id, if its configuration is an old one.
        texts = torch.tensor([[self._last] + [hidden] * 3 for hidden in (self._token, self._other)])
        first, changed = self._run(texts, torch.tensor([[1, 0, 0, 0]] * 2))["pooled"]
        return not torch.allclose(first, changed, rtol=1e-4, atol=1e-6)

    @torch.no_grad()
    def is_causal(self) -> bool:
        """Whether the first token does not attend to those after it, as in decoders."""
        texts = torch.tensor([[self._token] * 4, [self._token] + [self._other] * 3])
        first, changed = self._run(texts, torch.ones_like(texts))["tokens"][:, 0]
        return torch.allclose(first, changed, rtol=1e-5, atol=1e-7)

    def _attempt(self, length: int) -> dict[str, Tensor] | str:
        """The outputs for a text of this length, or why the tower refuses it."""
        if self.positions is not None and length > self.positions:
            return f"it has {self.positions} positions."
        try:
            return self._run(torch.full((1, length), self._token), torch.ones(1, length, dtype=torch.long))
        except ConfigError as error:
            return str(error)

    def _run(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        try:
            return self.tower(input_ids, attention_mask)
        except _REFUSALS as error:
            raise ConfigError(f"{self.name} cannot encode a text: {reason(error)}") from error
