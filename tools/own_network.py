"""A network of your own from float to a 4-bit file: torchvision's ResNet-18 on class folders, or on demo data."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from common.conversion import calibrate, quantize_model
from common.data.demo import office31
from common.data.folder_batches import FolderBatches
from common.data.folders import read_domain
from common.data.splits import partition
from common.deploy import description, packed
from common.runs.annotations import Count, NewFolder
from common.runs.tool import run_tool
from common.vision import models
from tools.arguments import Side


def own_network(
    *,
    images: Path | None = None,
    out: NewFolder = Path("results/own"),
    epochs: Count = 20,
    tuning: Count = 6,
    img_size: Side = 64,
) -> None:
    """Train in float, convert to 4 bits, calibrate, fine-tune, save; with top-1 on held-out images on the way.

    Args:
        images: folder of class folders (default: a look of the demo's Office-31).
        out: folder of the float weights and of the 4-bit file.
        epochs: of the float network.
        tuning: epochs at 4 bits.
        img_size: side of the images.
    """
    folder = images.absolute() if images else office31.write("data/demo") / "webcam"
    found = read_domain(folder.parent, folder.name)
    parts = partition(found)
    training = FolderBatches(image_list=parts.train, batch_size=32, img_size=img_size, train=True, drop_last=True)
    test = FolderBatches(image_list=parts.test, batch_size=32, img_size=img_size, train=False)
    top1 = "demo top-1" if found.demo else "top-1"
    torch.manual_seed(0)
    network = models.resnet18(num_classes=len(found.classes))
    print(f"float: {top1} {accuracy(train(network, training, epochs, lr=0.05), test):.2f}")
    out.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), out / "resnet18.pth")
    quantized = quantize_model(network, "ours", bitW=4, abitW=4)
    print(f"4 bits, converted: {top1} {accuracy(quantized, test):.2f}")
    print(f"4 bits, calibrated: {top1} {accuracy(calibrate.calibrate(quantized, training), test):.2f}")
    print(f"4 bits, fine-tuned: {top1} {accuracy(train(quantized, training, tuning, lr=0.01), test):.2f}")
    about = {"model": "torchvision:resnet18", "bitW": 4, "abitW": 4, "img_size": img_size, "demo": found.demo}
    packed.save(quantized, description.describe(about, len(found.classes), found.classes), out / "q.safetensors")


def train(network: torch.nn.Module, batches: FolderBatches, epochs: int, lr: float) -> torch.nn.Module:
    optimizer = torch.optim.SGD(network.train().parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=len(batches))
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    return network


@torch.no_grad()
def accuracy(network: torch.nn.Module, batches: FolderBatches) -> float:
    network.eval()
    return 100 * float(torch.cat([network(images).argmax(1) == labels for images, labels in batches]).float().mean())


if __name__ == "__main__":
    run_tool(own_network)
