"""ScaledAdam, the Eden schedule, loss scaling and gradient clipping.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, section 3.5 and algorithm 1;
icefall's ``zipformer/optim.py``.
"""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Steps that estimate the clipping threshold before the first full period.
EARLY_ESTIMATES = (10, 20, 40)
TINY = 1e-20


class ScaledAdam(Optimizer):
    """Adam with steps relative to the size of a parameter, and a learned size.

    The size of a parameter is its root mean square (rms).  A parameter with more than
    one element moves by lr * rms(p) * g / sqrt(E[g^2]).  Every ``size_update_period``
    steps its size changes by an Adam step on the gradient of ln(size).

    Gradients are clipped to ``clipping_scale`` times the median, over
    ``clipping_update_period`` steps, of the norm of all gradients in a group, each
    weighted by the rms of its parameter.  A missing gradient counts as zero.  A group
    without any gradient does not move; its moments start with its first gradient.

    Args:
      params: parameters or parameter groups; each group is clipped separately.
      lr: learning rate, the relative change of a parameter per step; about 0.04.
      clipping_scale: see above; None disables clipping.
      betas: decay rates of the momentum and of the squared gradients.
      scalar_lr_scale: factor on ``lr`` for sizes and for one-element parameters.
      eps: added to denominators.
      param_min_rms, param_max_rms: range of the learned sizes.
      scalar_max: maximum absolute value of a one-element parameter.
      size_update_period, clipping_update_period: steps.
    Raises:
      ValueError: if ``lr`` or ``betas`` are out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.03,
        clipping_scale: Optional[float] = None,
        betas: tuple[float, float] = (0.9, 0.98),
        scalar_lr_scale: float = 0.1,
        eps: float = 1e-8,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
        clipping_update_period: int = 100,
    ) -> None:
        if lr < 0.0 or not 0.0 < betas[0] <= betas[1] < 1.0:
            raise ValueError(
                f"lr is {lr} and betas are {betas}; need lr >= 0 and 0 < beta1 <= "
                "beta2 < 1"
            )
        defaults = dict(
            lr=lr,
            clipping_scale=clipping_scale,
            betas=betas,
            scalar_lr_scale=scalar_lr_scale,
            eps=eps,
            param_min_rms=param_min_rms,
            param_max_rms=param_max_rms,
            scalar_max=scalar_max,
            size_update_period=size_update_period,
            clipping_update_period=clipping_update_period,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Tensor]] = None) -> Optional[Tensor]:
        """Move the parameters by one step, without changing the gradients.

        Raises:
          RuntimeError: if the median of the recent gradient norms is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params: list[Tensor] = group["params"]
        shared = self._group_state(params, group)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        clip = self._clip_factor(group, shared, grads)
        if clip == 0.0:  # not finite, and inf * 0 would be nan
            grads = [torch.zeros_like(p) for p in params]

        beta1, beta2 = group["betas"]
        moments = [self.state[p]["exp_avg_sq"] for p in params]
        deltas = [self.state[p]["delta"] for p in params]
        torch._foreach_mul_(moments, beta2)
        torch._foreach_addcmul_(moments, grads, grads, (1.0 - beta2) * clip * clip)
        denominators = torch._foreach_sqrt(moments)
        correction = 1.0 - beta2 ** (shared["step"] + 1)
        if correction < 0.99:
            torch._foreach_mul_(denominators, correction**-0.5)
        torch._foreach_add_(denominators, group["eps"])

        size_steps = self._size_steps(group, shared, params, grads, clip)
        sizes = shared["param_rms"].clamp(min=group["param_min_rms"])
        sizes = sizes.masked_fill(one_element(params), group["scalar_lr_scale"])
        rates = (sizes * (-group["lr"] * clip * (1.0 - beta1))).tolist()
        torch._foreach_mul_(deltas, beta1)
        torch._foreach_addcdiv_(deltas, grads, denominators, rates)
        if size_steps is not None:
            resize = (size_steps * (1.0 - beta1)).tolist()
            torch._foreach_add_(deltas, torch._foreach_mul(params, resize))
        torch._foreach_add_(params, deltas)
        for p in params:
            if p.numel() == 1:
                p.clamp_(min=-group["scalar_max"], max=group["scalar_max"])
        shared["step"] += 1

    def _group_state(
        self, params: list[Tensor], group: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the state of the group, stored with its first parameter."""
        shared = self.state[params[0]]
        if "step" not in shared:
            # In the parameters' dtype: load_state_dict() of torch casts states to it.
            like = {"device": params[0].device, "dtype": params[0].dtype}
            shared["step"] = 0
            shared["param_rms"] = rms_of(params)
            shared["scale_grads"] = torch.zeros(
                group["size_update_period"], len(params), **like
            )
            shared["scale_exp_avg_sq"] = torch.zeros(len(params), **like)
            for p in params:
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
                self.state[p]["delta"] = torch.zeros_like(p)
        return shared

    def _size_steps(
        self,
        group: dict[str, Any],
        shared: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        clip: float,
    ) -> Optional[Tensor]:
        """Store the gradients of the sizes.

        Returns:
          (P,) relative changes of the sizes at the end of a period, otherwise None.
        """
        period = group["size_update_period"]
        step = shared["step"]
        slopes = torch.stack([x.sum() for x in torch._foreach_mul(params, grads)])
        shared["scale_grads"][step % period] = slopes * clip
        if step % period != period - 1:
            return None
        rms = rms_of(params)
        shared["param_rms"] = rms
        if step == 0:
            return None
        beta2 = group["betas"][1] ** period
        history = shared["scale_grads"]
        moment = shared["scale_exp_avg_sq"]
        moment.mul_(beta2).add_(history.square().mean(dim=0), alpha=1.0 - beta2)
        correction = 1.0 - beta2 ** ((step + 1) // period)
        lr = group["lr"] * group["scalar_lr_scale"]
        steps = -lr * correction**0.5 * history.sum(dim=0)
        steps = steps / (moment.sqrt() + group["eps"])
        # A parameter below the minimum size neither shrinks nor grows.
        steps = steps.masked_fill(rms < group["param_min_rms"], 0.0).clamp(-0.1, 0.1)
        steps = torch.minimum(steps, (group["param_max_rms"] - rms) / rms)
        return steps.masked_fill(one_element(params), 0.0)

    def _clip_factor(
        self, group: dict[str, Any], shared: dict[str, Any], grads: list[Tensor]
    ) -> float:
        """Return the clipping factor on the gradients, 0 if they are not finite."""
        step, scale = shared["step"], group["clipping_scale"]
        if scale is None or step == 0:
            return 1.0
        weights = shared["param_rms"].masked_fill(
            one_element(grads), group["scalar_lr_scale"]
        )
        norms = torch.stack(torch._foreach_norm(grads))
        norm = float((norms * weights).norm())
        period = group["clipping_update_period"]
        if "model_norms" not in shared:
            shared["model_norms"] = torch.zeros_like(weights[:1]).repeat(period)
        shared["model_norms"][step % period] = norm
        early = step < period and step in EARLY_ESTIMATES
        if early or step % period == 0:
            self._estimate_threshold(shared, scale, step if early else period)
        threshold = shared.get("threshold")
        if threshold is None:
            return 1.0
        factor = min(1.0, threshold / (norm + TINY))
        if not math.isfinite(norm):
            factor = 0.0
        shared["num_clipped"] += factor < 1.0
        if factor < 0.5:
            logging.warning("gradients scaled by %.3g: norm %.3g", factor, norm)
        return factor

    @staticmethod
    def _estimate_threshold(shared: dict[str, Any], scale: float, count: int) -> None:
        recent = shared["model_norms"].sort().values[-count:]
        median = float(recent[min(count - 1, count // 4 * 2)])
        if not math.isfinite(median):
            raise RuntimeError(
                f"the median of the last {count} gradient norms is {median}; lower "
                "optim.base_lr, or check the data"
            )
        early = count < len(shared["model_norms"])
        shared["threshold"] = scale * median * (2.0 if early else 1.0)
        logging.info(
            "gradient norms: median %.3e, threshold %.3e, clipped %d times",
            median,
            shared["threshold"],
            shared.get("num_clipped", 0),
        )
        shared["num_clipped"] = 0


def one_element(tensors: list[Tensor]) -> Tensor:
    """Return which tensors have one element, (len(tensors),) bool."""
    return torch.tensor([t.numel() == 1 for t in tensors], device=tensors[0].device)


def rms_of(tensors: list[Tensor]) -> Tensor:
    """Return the root mean square of each tensor, (len(tensors),)."""
    norms = torch.stack(torch._foreach_norm(tensors))
    counts = torch.tensor([float(t.numel()) for t in tensors], device=norms.device)
    return norms / counts.sqrt()


class Eden:
    """Learning rate schedule over batches b and epochs e, with a warm-up.

    lr = base_lr * ((b^2 + B^2) / B^2)^-1/4 * ((e^2 + E^2) / E^2)^-1/4 * warmup(b),
    where warmup(b) rises linearly from ``warmup_start`` to 1.

    Source: Zipformer paper, see above, eq. 10.

    Args:
      optimizer: the ``lr`` of each group is its base rate.
      lr_batches: B, batches after which the rate falls.
      lr_epochs: E, epochs after which the rate falls.
      warmup_batches: length of the warm-up.
      warmup_start: factor at batch 0, 0 to 1.
    Raises:
      ValueError: if ``warmup_start`` is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float,
        lr_epochs: float,
        warmup_batches: float = 500.0,
        warmup_start: float = 0.5,
    ) -> None:
        if not 0.0 <= warmup_start <= 1.0:
            raise ValueError(f"warmup_start is {warmup_start}, must be 0 to 1")
        self.optimizer = optimizer
        self.lr_batches = lr_batches
        self.lr_epochs = lr_epochs
        self.warmup_batches = warmup_batches
        self.warmup_start = warmup_start
        for group in optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
        self.base_lrs = [group["base_lr"] for group in optimizer.param_groups]
        self.batch = 0
        self.epoch = 0.0
        self._set_lr()

    def factor(self) -> float:
        """Return the current learning rate relative to the base rate."""
        by_batch = (1.0 + (self.batch / self.lr_batches) ** 2) ** -0.25
        by_epoch = (1.0 + (self.epoch / self.lr_epochs) ** 2) ** -0.25
        if self.batch >= self.warmup_batches:
            return by_batch * by_epoch
        warm = self.batch / self.warmup_batches
        warm = self.warmup_start + (1.0 - self.warmup_start) * warm
        return by_batch * by_epoch * warm

    def step_batch(self, batch: Optional[int] = None) -> None:
        """Add one batch, or set the number of batches since the start of the run."""
        self.batch = self.batch + 1 if batch is None else batch
        self._set_lr()

    def step_epoch(self, epoch: Optional[float] = None) -> None:
        """Add one epoch, or set the number of finished epochs."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self._set_lr()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, without the base rates."""
        return {"batch": self.batch, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the progress; the base rates stay."""
        self.batch, self.epoch = state["batch"], state["epoch"]
        self._set_lr()

    def _set_lr(self) -> None:
        factor = self.factor()
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = base_lr * factor


def make_scaler(enabled: bool) -> Any:
    """Return a GradScaler for fp16 on CUDA, with an initial scale of 1 as in icefall.

    Gradients of a loss summed over frames are large: torch's default of 65536 would
    overflow in the first updates.
    """
    if hasattr(torch.amp, "GradScaler"):  # from torch 2.3 on
        return torch.amp.GradScaler("cuda", init_scale=1.0, enabled=enabled)
    return torch.cuda.amp.GradScaler(init_scale=1.0, enabled=enabled)


def clip_gradients(params: list[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a maximum 2-norm.

    Args:
      limit: maximum; 0 is no maximum.
    Returns:
      2-norm of all gradients before scaling.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return 0.0
    norm = torch.stack(torch._foreach_norm(grads)).float().norm().item()
    if limit and norm > limit:
        torch._foreach_mul_(grads, limit / norm)
    return norm
