"""Two optimisers and one schedule: AdamW for the layers, lazy Adam for the n-gram table.

A step touches a few thousand of the table's rows; moving all of them costs more than the rest of the update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mrse.config import TrainConfig
from mrse.model.experts import FtAtt, LightBert
from mrse.training.distributed import ALONE, World

_CLOSING_SHARE = 0.05
_BETAS = (0.9, 0.98)


class Optimisers:
    """All parameters of a model, with the learning rate of each at each step."""

    def __init__(self, config: TrainConfig, model: nn.Module, world: World = ALONE) -> None:
        self._config = config
        self._model = model
        self._world = world
        self._tables = tables = [module.grams.weight for module in model.modules() if isinstance(module, FtAtt)]
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        given = {
            id(parameter) for module in model.modules() if isinstance(module, LightBert) for parameter in module.given()
        }
        groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if any(parameter is table for table in tables):
                continue
            decays = parameter.ndim >= 2 and id(parameter) not in embeddings
            share = config.text_encoder_learning_rate_share if id(parameter) in given else 1.0
            groups.setdefault((name.startswith("experts."), share, decays), []).append(parameter)
        self._dense = [parameter for group in groups.values() for parameter in group]
        self._adam = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "experts": experts,
                    "share": share,
                    "weight_decay": config.weight_decay if decays else 0.0,
                }
                for (experts, share, decays), parameters in groups.items()
            ],
            betas=_BETAS,
            fused=True,
        )
        self._all: dict[str, torch.optim.Optimizer] = {"adam": self._adam}
        if tables:
            group = {"params": tables, "experts": True, "share": config.ngram_learning_rate_share}
            self._all["lazy"] = torch.optim.SparseAdam([group], betas=_BETAS)

    def step(self, loss: Tensor, step: int) -> Tensor:
        """One update; the norm that the gradient had, a scalar that nobody has waited for."""
        for optimiser in self._all.values():
            for group in optimiser.param_groups:
                share = float(group["share"]) * rate(self._config, step, bool(group["experts"]))
                group["lr"] = self._config.learning_rate * share
        self._model.zero_grad(set_to_none=True)
        self._world.backward(loss, self._dense, self._tables)
        norm = nn.utils.clip_grad_norm_(self._dense, self._config.clip)
        for optimiser in self._all.values():
            optimiser.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and counters, by name."""
        return {
            f"{kind}/{place}/{name}": torch.as_tensor(value)
            for kind, optimiser in self._all.items()
            for place, moments in optimiser.state_dict()["state"].items()
            for name, value in moments.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for kind, optimiser in self._all.items():
            moments: dict[int, dict[str, Tensor | int]] = {}
            for key, value in tensors.items():
                owner, place, name = key.split("/")
                if owner == kind:
                    counter = kind == "lazy" and name == "step"
                    moments.setdefault(int(place), {})[name] = int(value) if counter else value
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": moments, "param_groups": groups})


def rate(config: TrainConfig, step: int, experts: bool) -> float:
    """The learning rate's share at a step: in each phase a linear rise, then a cosine fall; the experts start the
    second phase where they ended the first.

    Args:
        config: steps, `warmup_share`, `expert_learning_rate_share`.
        step: from 0.
        experts: for the experts, or for what is fused over them.
    """
    if step < config.align_steps:
        low = config.expert_learning_rate_share if experts else 1.0
        return _rise_and_fall(step, config.align_steps, config.warmup_share, low)
    goes_on = experts and config.align_steps > 0
    high = config.expert_learning_rate_share if goes_on else 1.0
    warmup = 0.0 if goes_on else config.warmup_share
    return high * _rise_and_fall(step - config.align_steps, config.fuse_steps, warmup, _CLOSING_SHARE)


def _rise_and_fall(step: int, steps: int, warmup_share: float, low: float) -> float:
    warmup = warmup_share * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, steps - warmup)
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * done))
