"""The groups of options that every program, or every cross-domain program, has."""

from dataclasses import dataclass

from common.adaptation.realign import PRIOR
from common.flags import (
    BARE,
    batch_size,
    count,
    epochs,
    flag,
    natural,
    non_negative,
    number,
    path,
    positive,
    seed_number,
    switch,
    word,
)
from common.quantizers.rounding import FLOAT_BITS

FLOAT = FLOAT_BITS
above_zero = number(float, 1e-6, 1e6)
width = number(int, 1, FLOAT, "bits")


def bare_or_path(text: str) -> str:
    return text if text == BARE else path(text)


@dataclass(frozen=True)
class Quantization:
    """The network and how it is quantized. Bits that were not typed are filled in by the reader."""

    model: str = flag("", word, "network", also=("target_model",))
    method: str = flag("ours", word, "quantization method")  # checked by the registry
    bitW: int = flag(FLOAT, width, "bits of the weights; 32 is float (default: as --abitW)")
    abitW: int = flag(FLOAT, width, "bits of the activations; 32 is float (default: as --bitW)")
    act_range: float = flag(2.0, above_zero, "activations are aligned to [-r, r]")
    grad_approx: str = flag("sigmoid", help="gradient of the weights' rounding", choices=("sigmoid", "ste"))
    lam: float = flag(1.0, above_zero, "gain of the sigmoid gradient")
    lam2: float = flag(4.0, above_zero, "sharpness of the sigmoid gradient")
    levels: str = flag(
        "exact",
        help="2^k levels; weights of 2^k - 1, one of them zero; or the published CRP code's grid",
        choices=("exact", "symmetric", "published"),
    )
    stage: str = flag(
        "plain",
        help="align: 32-bit tensors are aligned without rounding; any other value is plain",
        choices=("plain", "align", "second", "org", "aligned"),
    )

    quant_linear: bool = switch(
        False, "quantize Linear layers and convolutions without BatchNorm too, in a network of others"
    )

    @property
    def bits(self) -> int:
        """The width that names a run: the weights', or the activations' where weights are float."""
        return self.bitW if self.bitW != FLOAT else self.abitW

    @property
    def scheme(self) -> dict[str, object]:
        """As ``make_scheme`` and ``build_model`` take it, a method's own options apart."""
        names = ("method", "bitW", "abitW", "act_range", "levels", "grad_approx", "lam", "lam2")
        stage = "align" if self.stage == "align" else "plain"
        return {**{name: getattr(self, name) for name in names}, "stage": stage}


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    pretrained: bool = switch(True, "start a run below 32 bits from its source file")
    source_dir: str = flag("pretrained", path, "folder of the source file")
    source_file: str | None = flag(
        None, path, "file with the weights to start from, a path or below --source_dir (default: the table's)"
    )


@dataclass(frozen=True)
class Backbone:
    """Of a task whose network has a backbone with ImageNet weights."""

    backbone_weights: str | None = flag(None, path, "ImageNet weights of the backbone: FILE, imagenet or none")
    backbone_lr_scale: float = flag(0.1, non_negative, "learning rate of the pretrained backbone, relative")
    quant_shortcut: bool = switch(False, "quantize ResNet-50's downsample branches too")


@dataclass(frozen=True)
class Training:
    num_epochs: int = flag(200, count, "epochs")
    train_batch_size: int = flag(128, batch_size, "samples per training batch (of each domain)")
    eval_batch_size: int = flag(100, batch_size, "samples per test batch", also=("test_batch_size",))
    lr: float = flag(0.04, positive, "learning rate")
    lr_decay_steps: list[int] = flag(
        [80, 120], natural, "epochs at which it is multiplied by --lr_gamma", nargs="*", read_all=epochs
    )
    lr_gamma: float = flag(0.1, positive, "factor at those epochs")
    schedule: str = flag(
        "steps", help="of the learning rate: --lr_decay_steps, or a cosine to 0", choices=("steps", "cosine")
    )
    momentum: float = flag(0.9, number(float, 0, 1, below=True), "of SGD")
    weight_decay: float = flag(1e-4, non_negative, "of SGD; learned scales have none")
    reestimate: int = flag(
        0, natural, "training batches from which BatchNorm statistics are estimated anew after the last epoch; 0: not"
    )


@dataclass(frozen=True)
class Distillation:
    """The float teacher whose logits are a second target beside the labels (common.adaptation.distillation)."""

    distill: str | None = flag(None, path, "file of the float network to learn from as well")
    distill_weight: float = flag(1.0, non_negative, "weight of the distance to its predictions")
    distill_temperature: float = flag(4.0, above_zero, "temperature of both predictions in it")


@dataclass(frozen=True)
class Adaptation:
    """Of a cross-domain program."""

    adaptation: str = flag("", word, "what a step minimises")  # checked by the registry
    src_only_flag: bool = switch(False, "train on the source alone, as --adaptation source_only")
    warmup_epochs: int = flag(0, natural, "epochs on the source alone before adaptation begins")
    epoch_length: str | None = flag(
        None, help="the shorter or the longer loader (default: the objective's)", choices=("min", "max")
    )
    alpha: float = flag(0.0, non_negative, "learning rate / (1 + alpha p)^0.75, p the progress in [0, 1]")


@dataclass(frozen=True)
class Realignment:
    """Re-alignment of the evaluated networks (common.adaptation.realign), beside what they are without it."""

    adapt: str = flag("none", help="also evaluate re-aligned: bn by BatchNorm statistics", choices=("none", "bn"))
    adapt_images: int = flag(
        256,
        count,
        "training images of each domain or corruption to re-align by; of cifar10c some that are then not tested on",
    )
    adapt_prior: float = flag(PRIOR, non_negative, "the source's statistics count as so many images")


@dataclass(frozen=True)
class Run:
    """The run itself: its folder and what it is to do there."""

    job_dir: str | None = flag(None, path, "folder of the run (default: experiment/…, named by method and bits)")
    config: str | None = flag(None, path, "take the values of a job's config.json; typed flags win")
    resume: str | None = flag(
        None, bare_or_path, "continue from last.pt of the job, or from PATH", nargs="?", const=BARE
    )
    reset: bool = switch(False, "delete the job's folder first")
    test_only: bool = switch(False, "evaluate and do not train")
    seed: int = flag(0, seed_number, "of initialisation, sample order and augmentation")
    float_names: bool = switch(False, "name every layer that stayed float, at the end")
    save_every: int = flag(0, natural, "keep checkpoint/model_N.pt every N epochs; 0: last and best alone")
    print_freq: int = flag(200, count, "steps between two progress reports")


NOT_REPEATED = ("config", "resume", "reset", "test_only")  # what a job's config.json does not pass on
UNUSED = (  # of the published programs; accepted, without use there or here
    *("arch", "dataset", "source_model", "refine", "lr_decay_step", "mask_step", "random"),
    *("keep_grad", "tau", "bit_range", "dataset_root", "src_data_dir", "bottle_neck"),
)
