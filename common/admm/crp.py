"""CRP, correlation preservation (AlignQ, CVPR 2022): the alignment should keep the relations between samples.

    minimise  task loss + weight * sum over layers of mu ||Z||   subject to  Z = D

D is `relation_shift` at a site, the last activation quantizer of a block. ADMM (Boyd et al., 2011, section 3.1) takes
turns: the network descends on task loss + `CRP.penalty`, then `CRP.update` moves Z and the multiplier G.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from common.admm.correlation import On, align_with_shift
from common.quantizers.alignq import AlignAct

Norm = Literal["fro", "l1"]

PUBLISHED_BATCH_SIZES = (28, 32)  # those mu and rho are sized for; the first is the reference

log = logging.getLogger("alignq.crp")  # below the run's own logger, whose file it reaches


class CRP(nn.Module):
    """State, penalty and updates of correlation preservation, for the sites of one network.

        for (x_s, y_s), (x_t, _) in batches:
            with crp.collect("source"):
                logits = model(x_s)
            with crp.collect("target"):
                model(x_t)
            loss = cross_entropy(logits, y_s) + crp.penalty("source") + crp.penalty("target")
            loss.backward(); optimizer.step()
            crp.update("source"); crp.update("target")

    Z and G are buffers, B x B, zero at the start, one pair per site and domain; no optimizer sees them. Batches of
    n < B samples use the leading n x n block, batches of one sample are skipped, sites in evaluation mode are left
    alone. The network holds no trace of CRP outside ``collect``.

    A limit of the method: rows and columns are positions in a batch, not samples. Z and G carry over to whatever
    samples the next batch has at these positions, so they act on the typical relation shift, not on that of a pair.

    Args:
        sites: name -> alignment quantizer, as the model's ``crp_sites()`` gives them.
        batch_size: B, of training, per process.
        mu, rho: penalty of the relations, penalty of ADMM.
        weight: factor of the penalty (crp_weight). The penalty is a sum over B x B entries: see `strength_note`.
        norm: ``fro`` shrinks D as a block, as published; ``l1`` entry by entry.
        on: Y is the ``aligned`` value or the ``quantized`` one.
    Raises:
        ValueError: no sites, sites that do not align, sites whose names collide, or a number out of its range.
    """

    def __init__(
        self,
        sites: Mapping[str, nn.Module],
        *,
        batch_size: int,
        mu: float = 0.2,
        rho: float = 0.3,
        weight: float = 1.0,
        norm: Norm = "fro",
        on: On = "aligned",
        domains: Sequence[str] = ("source",),
    ) -> None:
        super().__init__()
        if not (batch_size >= 1 and mu >= 0 and rho > 0 and weight >= 0):
            raise ValueError(f"CRP with batch_size {batch_size}, mu {mu}, rho {rho}, weight {weight}")
        if norm not in get_args(Norm) or on not in get_args(On):
            raise ValueError(f"CRP with norm {norm!r}, on {on!r}: expected one of {get_args(Norm)}, {get_args(On)}")
        self.batch_size, self.mu, self.rho, self.weight, self.norm, self.on = batch_size, mu, rho, weight, norm, on
        self.domains = tuple(domains)
        self._sites: dict[str, AlignAct] = {}  # a plain dictionary: the sites stay the network's own submodules
        for name, site in sites.items():
            if not isinstance(site, AlignAct):
                raise ValueError(f"CRP preserves relations under alignment; {name} is a {type(site).__name__}")
            self._sites[name] = site
        # made once: a compiled network is compiled anew where it meets another function
        self._observers = {name: partial(self._forward, name, site.forward) for name, site in self._sites.items()}
        names = [_buffer(v, domain, site) for domain in self.domains for site in sites for v in ("Z", "G")]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"CRP needs sites and domains with distinct names, got {list(sites)} and {self.domains}")
        for name in names:
            self.register_buffer(name, torch.zeros(batch_size, batch_size))
        self._shifts: dict[str, dict[str, Tensor]] = {domain: {} for domain in self.domains}
        self._collected: dict[str, Tensor] = {}  # of the domain that is collected, or was last

    @contextmanager
    def collect(self, domain: str) -> Iterator[None]:
        """Within it, one training pass of the network leaves each site's D behind, with its graph.

        Raises:
            ValueError: an unknown domain, a collect inside another, a site that runs twice or sees more than B samples.
        """
        if any("forward" in vars(site) for site in self._sites.values()):
            raise ValueError("collect() inside collect(): one pass has one domain")
        self._shifts[self._known(domain)] = self._collected = {}
        for name, site in self._sites.items():
            site.forward = self._observers[name]  # type: ignore[method-assign]
        try:
            yield
        finally:
            for site in self._sites.values():
                vars(site).pop("forward", None)

    def penalty(self, domain: str) -> Tensor:
        """weight * sum over sites of <G, D - Z> + rho/2 ||D - Z||_F^2, sums over the entries; Z and G are constants.

        Returns:
            0-dimensional; zero where nothing was collected.
        """
        total = next(self.buffers()).new_zeros(())
        for name, shift in self._shifts[self._known(domain)].items():
            z, gamma = self._state(domain, name, len(shift))
            gap = shift - z
            total = total + ((gamma + (self.rho / 2) * gap) * gap).sum()
        return self.weight * total

    @torch.no_grad()
    def update(self, domain: str) -> None:
        """Z and G after the network's step, on the leading block of the batch last collected; see `admm_update`."""
        shifts = self._shifts[self._known(domain)]
        for name, shift in shifts.items():
            shifts[name] = shift.detach()  # the graph has served
            z, gamma = self._state(domain, name, len(shift))
            new_z, new_gamma = admm_update(gamma, shifts[name].to(gamma.dtype), self.mu, self.rho, self.norm)
            z.copy_(new_z)
            gamma.copy_(new_gamma)

    def shifts(self, domain: str) -> dict[str, Tensor]:
        """D of each site for the batch last collected, n x n, detached; empty where nothing was collected."""
        return {name: shift.detach() for name, shift in self._shifts[self._known(domain)].items()}

    def mean_abs_shift(self, domain: str) -> dict[str, Tensor]:
        """Mean |D_ij| of each site, for the log: 0-dimensional tensors, on the device until they are read."""
        return {name: shift.abs().mean() for name, shift in self.shifts(domain).items()}

    def shift_norm(self, domain: str) -> dict[str, Tensor]:
        """||D||_F of each site, for the log: 0-dimensional tensors, on the device until they are read."""
        return {name: torch.linalg.matrix_norm(shift) for name, shift in self.shifts(domain).items()}

    def extra_repr(self) -> str:
        options = ("batch_size", "mu", "rho", "weight", "norm", "on", "domains")
        return ", ".join([f"{len(self._sites)} sites", *(f"{name}={getattr(self, name)}" for name in options)])

    def _forward(self, name: str, forward: Any, x: Tensor) -> Tensor:
        """In place of a site's own forward: the same output, and D. No domain here: all share one compiled code."""
        site = self._sites[name]
        if not site.training or len(x) < 2:
            return forward(x)
        if len(x) > self.batch_size:
            raise ValueError(f"CRP was made for {self.batch_size} samples, {name} received {len(x)}")
        if name in self._collected:
            raise ValueError(f"{name} ran twice in one collect()")
        levels, self._collected[name] = align_with_shift(x, site.act_range, site.grid, self.on)
        return levels

    def _state(self, domain: str, name: str, n: int) -> tuple[Tensor, Tensor]:
        """Z and G of a site, as views of their leading n x n block."""
        z, gamma = (self.get_buffer(_buffer(variable, domain, name)) for variable in ("Z", "G"))
        return z[:n, :n], gamma[:n, :n]

    def _known(self, domain: str) -> str:
        if domain not in self._shifts:
            raise ValueError(f"CRP has no domain {domain!r}, only {', '.join(self.domains)}")
        return domain

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """A state of another batch size cannot be carried over: it restarts at zero, with a line in the log."""
        own = {name for name, _ in self.named_buffers()}
        sizes = {len(value) for key, value in state_dict.items() if key.removeprefix(prefix) in own}
        if sizes - {self.batch_size}:
            saved = ", ".join(map(str, sorted(sizes)))
            log.warning("CRP state is of batch size %s, this run's is %d: it restarts at zero", saved, self.batch_size)
            for buffer in self.buffers():
                buffer.zero_()
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)


def admm_update(gamma: Tensor, shift: Tensor, mu: float, rho: float, norm: Norm = "fro") -> tuple[Tensor, Tensor]:
    """One step of Z and of the multiplier (Boyd et al., 2011, equations 3.3 and 3.4, for min mu ||Z|| s.t. Z = D).

    Args:
        gamma, shift: G and D, (n, n).
    Returns:
        Z = prox(D + G / rho) with threshold mu / rho, and G + rho (D - Z), which is the projection of G + rho D onto
        the ball of the dual norm: ||G||_F <= mu for ``fro``, |G_ij| <= mu for ``l1``. Z of before plays no part.
    """
    prox = prox_frobenius if norm == "fro" else prox_l1
    z = prox(shift + gamma / rho, mu / rho)
    return z, gamma + rho * (shift - z)


def prox_frobenius(v: Tensor, threshold: float) -> Tensor:
    """argmin_Z threshold ||Z||_F + 1/2 ||Z - V||_F^2 = max(0, 1 - threshold / ||V||_F) V; 0 at V = 0."""
    norm = torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    return (1 - threshold / norm).clamp_min(0) * v


def prox_l1(v: Tensor, threshold: float) -> Tensor:
    """argmin_Z threshold ||Z||_1 + 1/2 ||Z - V||_F^2, the soft threshold sign(V) max(0, |V| - threshold)."""
    return torch.nn.functional.softshrink(v, threshold)


def strength_note(batch_size: int, weight: float) -> str | None:
    """What to log about crp_weight: the penalty sums over B x B entries, so its strength grows with B^2.

    Returns:
        One line, or ``None`` at the published batch sizes, 28 and 32.
    """
    if batch_size in PUBLISHED_BATCH_SIZES:
        return None
    reference = PUBLISHED_BATCH_SIZES[0]
    kept = weight * (reference / batch_size) ** 2
    return (
        f"CRP sums over the {batch_size} x {batch_size} pairs of a batch; --crp_weight {kept:.3g} would keep the "
        f"strength that {weight:g} has at the published batch size {reference}"
    )


def _buffer(variable: str, domain: str, site: str) -> str:
    return f"{variable}_{domain}_{site.replace('.', '_')}"
