"""Office-31: 31 classes of office objects in three looks, amazon, dslr and webcam (Saenko et al., ECCV 2010).

Any other set of domain folders loads as well, by the names of its folders; the three are checked against the published
counts in a folder called office31 alone, elsewhere their names are just names.
"""

from pathlib import Path

from common.data.download import DEMO_HINT
from common.data.folders import ImageList, check_same_classes, read_domain, wrong_level
from common.data.splits import Partition, partition
from common.errors import UserError

FOLDER = "office31"
IMAGE_COUNTS = {"amazon": 2817, "dslr": 498, "webcam": 795}
CLASSES = (
    *("back_pack", "bike", "bike_helmet", "bookcase", "bottle", "calculator", "desk_chair", "desk_lamp"),
    *("desktop_computer", "file_cabinet", "headphones", "keyboard", "laptop_computer", "letter_tray", "mobile_phone"),
    *("monitor", "mouse", "mug", "paper_notebook", "pen", "phone", "printer", "projector", "punchers", "ring_binder"),
    *("ruler", "scissors", "speaker", "stapler", "tape_dispenser", "trash_can"),
)
ARCHIVE = "domain_adaptation_images.tar.gz"
ARCHIVE_MD5 = "1b536d114869a5a8aa4580b89e9758fb"
ARCHIVE_URL = "https://drive.google.com/file/d/0B4IapRTv9pJ1WGZVd1VDMmhwdlE/view?resourcekey=0-gNMHVtZfRAyO_t2_WrOunA"


def load(data_dir: Path | str, domain: str, allow_partial: bool = False) -> ImageList:
    """Read a domain from `data_dir/office31/domain` or `data_dir/domain`, in either with or without `images/` below.

    Args:
        data_dir: the folder that holds `office31`, or `office31` itself.
        domain: amazon, dslr or webcam, or the name of another folder of class folders.
        allow_partial: take amazon, dslr or webcam with other classes or fewer images than published. The demo's
            folders need no such leave.
    Raises:
        UserError: the domain is not there, lies on another level, or is not complete.
    """
    data_dir = Path(data_dir)
    found = find(data_dir, domain)
    if found is not None:
        images = read_domain(found.parent, domain)
        if domain in IMAGE_COUNTS and found.parent.resolve().name == FOLDER and not (allow_partial or images.demo):
            _check_complete(images)
        return images
    for root, below in ((data_dir, domain), (data_dir, f"{FOLDER}/{domain}"), (data_dir / FOLDER, domain)):
        hint = wrong_level(root, below)
        if hint:
            raise UserError(hint)
    if domain not in IMAGE_COUNTS:
        return read_domain(data_dir, domain)  # which says what is there instead
    raise UserError(
        f"no {domain} in {data_dir / FOLDER} or {data_dir}; expected Office-31: fetch {ARCHIVE} (md5 {ARCHIVE_MD5}) "
        f"from {ARCHIVE_URL} and unpack it so that {data_dir / FOLDER / domain / 'images'} exists, {DEMO_HINT}"
    )


def find(data_dir: Path | str, domain: str) -> Path | None:
    """The folder of a domain, in `data_dir/office31` or in `data_dir`; nothing in it is read. None: there is none."""
    places = (Path(data_dir) / FOLDER / domain, Path(data_dir) / domain)
    return next((place for place in places if place.is_dir()), None)


def load_pair(
    data_dir: Path | str,
    source: str,
    target: str,
    *,
    train_split: bool = True,
    split_dir: Path | str | None = None,
    seed: int = 1,
    allow_partial: bool = False,
) -> tuple[Partition, Partition]:
    """Source and target, each divided into training and test images; see `load` and `common.data.splits.partition`.

    Args:
        train_split: an 80/20 split per class; False takes each whole domain for training and for test.
        split_dir: where the list files of the splits are kept; None keeps none.
        seed: of the split, not of the run.
    Raises:
        UserError: as `load` and `partition`, or the two have different classes.
    """
    domains = [load(data_dir, domain, allow_partial) for domain in (source, target)]
    check_same_classes(*domains)
    first, second = (partition(images, train_split=train_split, folder=split_dir, seed=seed) for images in domains)
    return first, second


def _check_complete(images: ImageList) -> None:
    expected = IMAGE_COUNTS[images.domain]
    if len(images.classes) == len(CLASSES) and len(images) == expected:
        return
    missing = sorted(set(CLASSES) - set(images.classes))
    without = f", without {', '.join(missing)}," if 0 < len(missing) <= 5 else ""
    raise UserError(
        f"{images.root} holds {len(images)} images of {len(images.classes)} classes{without} where Office-31's "
        f"{images.domain} has {expected} of {len(CLASSES)}: unpack {ARCHIVE} again, or add --allow_partial to use what "
        "is there"
    )
