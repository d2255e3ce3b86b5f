"""Training: one loop for every objective, on one domain or two."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.adaptation import Objective
from common.config.options import Options
from common.data.kinds import RunData, cyclic
from common.engine.evaluation import evaluate
from common.engine.meters import FiniteWatch, Pace, Sums, precision, progress_bar
from common.engine.result import finish
from common.engine.schedule import learning_rate_factor, parameter_groups, set_learning_rate
from common.machine import distributed
from common.machine.acceleration import Acceleration
from common.measure import feature_map
from common.measure.criteria import CRITERIA
from common.quantizers.learned_scale import scales_from_first_batch
from common.runs import states
from common.runs.job import FEATURES_BEFORE, Job

Best = dict[str, Any]  # epoch, what it was judged by, and the means of every test set at it


class Trainer:
    """Trains to the last epoch, saving after each.

    Args:
        objective: of a network on its device. pretrained: whether the network's backbone has weights already.
    """

    def __init__(self, objective: Objective, data: RunData, options: Options, job: Job, pretrained: bool) -> None:
        self.objective, self.data, self.options, self.job = objective, data, options, job
        self.network, self.crp = objective.network, objective.crp
        self.best: Best = {"judged": -math.inf, "epoch": -1}
        self.peaks = {name: {"prec1": 0.0, "prec5": 0.0, "prec1_domain": 0.0} for name in data.test}
        self.start = 0
        content = job.restore(data.test)
        self.pretrained = bool(content["pretrained"]) if content else pretrained
        self.trained = objective.trained
        self.optimizer = self._make_optimizer()
        if content:
            self._continue(content)
        device = data.train["source"].device
        batch = options.training.train_batch_size // distributed.size()
        self.faster = Acceleration(options.acceleration, self.network, device, batch)
        self.faster.load_state_dict(content.get("amp", {}) if content else {})
        warm_up = options.adaptation is not None and options.adaptation.warmup_epochs > 0
        unused = (hasattr(self.network, "discriminate") and not objective.discriminates) or warm_up
        self.compute: Any = distributed.replicate(self.trained, objective, unused=unused)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        training, backbone = self.options.training, self.options.backbone
        slow = self.network.backbone() if self.pretrained and backbone is not None else None
        scale = backbone.backbone_lr_scale if backbone is not None else 1.0
        groups = parameter_groups(self.trained, training.weight_decay, slow, scale)
        fused = self.options.acceleration.fused_optimizer
        return torch.optim.SGD(groups, training.lr, training.momentum, fused=fused)

    def _continue(self, content: dict[str, Any]) -> None:
        states.continue_from(self.network, content["state_dict_t"], "the network")
        if self.objective.heads is not None:
            states.continue_from(self.objective.heads, content.get("heads"), "the objective's own layers")
        states.continue_optimizer(self.optimizer, content["optimizer_t"])
        if self.crp is not None:
            relations = [content.get("crp", {}), *content.get("crp_others", [])]  # by process
            own = relations[distributed.rank() if distributed.rank() < len(relations) else 0]
            states.continue_crp(self.crp, own)
        self.start, self.peaks = content["epoch"], content["peaks"]
        self.best = content["best"] or self.best

    def train(self) -> dict[str, Any]:
        """Returns the summary, in the first process."""
        if self.start == 0:
            self._draw_features_before()
        for epoch in range(self.start, self.options.training.num_epochs):
            distributed.seed_epoch(self.options.run.seed, epoch)
            row = self.train_one_epoch(epoch)
            distributed.average_statistics(self.trained)
            row |= {name: evaluate(self.objective, self.data, name, self.job, epoch)[0] for name in self.data.test}
            is_best = self._judge(row, epoch)
            self.job.record(epoch, row)
            self.job.save(self._state(row, epoch), epoch, is_best)
        if not distributed.leave():
            return {}
        return finish(self.objective, self.data, self.job, self.best)

    def _draw_features_before(self) -> None:
        if not (self.job.writes and self.options.task.cross):
            return
        network = copy.deepcopy(self.network)  # whose learned scales wait for a training batch
        with scales_from_first_batch(network):
            feature_map.save(feature_map.collect(network, self.data.test), self.job.folder / FEATURES_BEFORE)

    def _judge(self, row: dict[str, Any], epoch: int) -> bool:
        """Whether this epoch is the best by --select; peaks of every set are kept too."""
        select = self.options.data.select
        means = {name: row[name] for name in self.data.test}
        for name, peak in self.peaks.items():
            for what in peak:
                peak[what] = max(peak[what], means[name].get(what, 0.0))
        judged = (
            means["target"][select]
            if select in CRITERIA
            else means[select if select in means else next(iter(means))]["prec1"]
        )
        is_best = select == "last" or judged > self.best["judged"]
        if is_best:
            self.best = {"judged": judged, "epoch": epoch, **means}
        return is_best

    def _state(self, row: dict[str, Any], epoch: int) -> dict[str, Any]:
        state = {
            "state_dict_t": self.network.state_dict(),
            **self._published(),
            "optimizer_t": self.optimizer.state_dict(),
            "scheduler_t": {"last_epoch": epoch, "lr": row["lr"]},
            "best": self.best,
            "peaks": self.peaks,
            "pretrained": self.pretrained,
            "amp": self.faster.state_dict(),
        }
        if self.objective.heads is not None:
            state["heads"] = self.objective.heads.state_dict()
        if self.crp is not None:
            state["crp"], *others = distributed.gather({k: v.cpu() for k, v in self.crp.state_dict().items()})
            state |= {"crp_others": others} if others else {}
        return state

    def _published(self) -> dict[str, float]:
        """The top-level keys that the published programs' checkpoints have."""
        if not self.options.task.cross:
            judging = "val" if "val" in self.peaks else "test"
            return {"best_prec1": self.best["judged"], "best_prec5": self.peaks[judging]["prec5"]}
        short = {"target": "tgt", "source": "src"}
        return {f"{short[d]}_best_{what}": value for d, peak in self.peaks.items() for what, value in peak.items()}

    def train_one_epoch(self, epoch: int) -> dict[str, Any]:
        """One epoch; returns the row for metrics.jsonl: learning rate, training means, relation shifts.

        The schedules of adaptation run over the epochs behind --warmup_epochs, which see the source alone.

        Raises:
            UserError: the loss became NaN or infinite.
        """
        training, adaptation, run = self.options.training, self.options.adaptation, self.options.run
        self.trained.train()
        warm_up, length = (adaptation.warmup_epochs, adaptation.epoch_length) if adaptation is not None else (0, None)
        alone = not self.objective.adapts or epoch < warm_up
        steps = len(self.data.train["source"]) if alone else self.data.steps(length or self.objective.epoch_length)
        sums, watch, pace = Sums(), FiniteWatch(self.data.train["source"].device), Pace()
        source = pace.watch(cyclic(self.data.train["source"], epoch, steps))
        target = None if alone else pace.watch(cyclic(self.data.train["target"], epoch, steps))
        last_good = f"the last good checkpoint is {self.job.last}" if self.job.last.exists() else "there is none yet"
        lr, epochs = training.lr, training.num_epochs
        alpha = adaptation.alpha if adaptation is not None else 0.0
        for step, (images, labels) in enumerate(progress_bar(source, f"epoch {epoch}", steps), start=1):
            progress = (epoch * steps + step - 1) / (epochs * steps)
            steps_down = training.lr_decay_steps, training.lr_gamma
            factor = learning_rate_factor(epoch, progress, *steps_down, alpha, training.schedule)
            lr = training.lr * factor
            set_learning_rate(self.optimizer, lr)
            adapted = max(epoch - warm_up + (step - 1) / steps, 0) / (epochs - warm_up)
            losses, logits = self._step(images, labels, target, adapted)
            self._update_relations(sums, target is not None)
            watch.see(losses["Train_loss"], step)
            sums.add(len(labels), **losses, **precision(logits.detach(), labels))
            if step % run.print_freq == 0 or step == steps:
                watch.check(epoch, last_good)
                report(sums, lr, epoch, step, steps, self.job)
        self.job.log(f"epoch {epoch}: {pace}")
        return _row(lr, sums.mean())

    def _step(
        self, images: Tensor, labels: Tensor, target: Iterator[tuple[Tensor, Tensor]] | None, adapted: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        target_images = next(target)[0] if target is not None else None  # target labels are never read
        with self.faster.forward(len(images)):
            losses, logits = self.compute(images, labels, target_images, adapted)
        self.faster.descend(self.optimizer, losses["Train_loss"])
        return losses, logits

    def _update_relations(self, sums: Sums, both: bool) -> None:
        if self.crp is None:
            return
        for domain in self.crp.domains if both else self.crp.domains[:1]:
            self.crp.update(domain)
            shifts = self.crp.mean_abs_shift(domain)
            sums.add(1, **{f"shift {domain} {name}": value for name, value in shifts.items()})


def _row(lr: float, mean: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"lr": lr, "train": {k: v for k, v in mean.items() if not k.startswith("shift ")}}
    by_layer = {k.removeprefix("shift "): v for k, v in mean.items() if k.startswith("shift ")}
    if by_layer:
        row["relation_shift"] = {"mean": float(np.mean(list(by_layer.values()))), "layers": by_layer}
    return row


def report(sums: Sums, lr: float, epoch: int, step: int, steps: int, job: Job) -> None:
    """The published block of lines, and the published tags."""
    now, mean = sums.latest(), sums.mean()
    losses = [name for name in mean if name.endswith("_loss")]
    lines = [f"Epoch[{epoch}]({step}/{steps}): "]
    lines += [f"{name}: {now[name]:.4f} ({mean[name]:.4f})" for name in losses]
    lines.append(f"Prec@1 {now['prec1']:.3f} ({mean['prec1']:.3f}), Prec@5 {now['prec5']:.3f} ({mean['prec5']:.3f})")
    lines.append(f"LR = {lr:.6g}")
    job.log("\n".join(lines) + "\n")
    tags = {name: mean[name] for name in losses if name != "Train_loss"}
    tags |= {"Performance_loss": mean["Train_loss"], "Train-top-1": mean["prec1"], "Train-top-5": mean["prec5"]}
    job.scalars("train", tags, epoch * steps + step)
