"""The "shapes" data set: a small COCO-format set to train a detector where nothing can be downloaded.

Glossary: H, W an image's height and width in pixels, V vertices of a polygon.
Coordinates are continuous, as in COCO: pixel i covers [i, i + 1]. Colours and textures are drawn without a
look at the form, so that the class of an object is told by its outline alone.
Layout: images/{train,val}/*.jpg, annotations/instances_{train,val}.json, manifest.json (settings, sizes).
"""

import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_utils  # type: ignore[import-untyped, unused-ignore]

from resnet_backbone.errors import AlreadyExists

GENERATOR_VERSION = 1  # raise it with every change that alters a byte of the output
SPLITS: tuple[str, ...] = ("train", "val")
# With holes, as in COCO: code that takes category ids for labels fails here too.
CATEGORY_IDS: dict[str, int] = {"circle": 1, "triangle": 2, "square": 4, "star": 7, "cross": 9}
FORMS: tuple[str, ...] = tuple(CATEGORY_IDS)

MIN_RADIUS_PX, MAX_RADIUS_PX = 8.0, 48.0
CROWD_RADIUS_PX = (4.0, 6.0)
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.4, 60
MAX_SHAPES = 6
EMPTY_SHARE = CROWD_SHARE = 0.04
MIN_CONTRAST = 50.0  # distance of mean RGB colours, 0..441
PLACEMENT_TRIES = 12
SUPERSAMPLE = 8  # fillPoly also fills the cells that it touches: at 8 a pixel that adds 1/16 px on each side
JPEG_OPTIONS = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    # Halved chroma would smear the edges that differ in hue alone.
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Record: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class ShapesSettings:
    """What the bytes of a data set depend on."""

    train_images: int = 2000
    val_images: int = 200
    side_px: int = 144
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in {"train_images": 1, "val_images": 1, "side_px": 128, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                default = getattr(ShapesSettings, name)
                raise ValueError(
                    f"{name} is {value!r}, wanted an integer of at least {lowest}: the default is {default}"
                )


@dataclass
class Instance:
    """One object, or one crowd, and what of it is still to be seen."""

    form: str
    polygon: Doubles | None  # (V, 2) xy, pixels; None for a crowd
    full_px: float  # area before the border or another shape hid some of it
    visible: npt.NDArray[np.bool_]  # (H, W)
    whole: bool  # nothing is hidden: the polygon tells the exact outline
    is_crowd: bool = False


def unit_outline(form: str) -> Doubles:
    """(V, 2) vertices of `form` within the unit circle, so that "radius" means the same for every form."""
    if form == "cross":
        arm = 0.32
        end = (1 - arm**2) ** 0.5
        x = [arm, arm, -arm, -arm, -end, -end, -arm, -arm, arm, arm, end, end]
        return np.stack([x, np.roll(x, 3)], axis=1)
    vertices = {"circle": 48, "triangle": 3, "square": 4, "star": 10}[form]
    angles = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    reach = np.where(np.arange(vertices) % 2, 0.45 if form == "star" else 1.0, 1.0)
    return np.asarray(ring(angles) * reach[:, None])


def ring(angles: Doubles) -> Doubles:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rotation(rng: np.random.Generator) -> Doubles:
    angle = rng.uniform(0, 2 * np.pi)
    return ring(np.array([angle, angle + np.pi / 2]))


def place_outline(form: str, centre: Doubles, radius_px: float, rng: np.random.Generator) -> Doubles:
    """(V, 2) the outline turned, squashed by 0.8 to 1.25 along any direction (area kept) and moved."""
    squash = 0.8 ** rng.uniform(-0.5, 0.5)
    points = unit_outline(form) @ rotation(rng) * (squash, 1 / squash) @ rotation(rng)
    # Rounded before drawing: what is written in the annotation is then what was painted.
    return np.asarray(np.round(points * radius_px + centre, 2))


def polygon_area(polygon: Doubles) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def coverage_of(polygon: Doubles, *, height: int, width: int) -> Floats:
    """(H, W) share of each pixel that lies inside the polygon, 0..1."""
    coverage = np.zeros((height, width), np.float32)
    x1, y1 = np.maximum(np.floor(polygon.min(axis=0)), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(polygon.max(axis=0)), (width, height)).astype(int)
    if x1 < x2 and y1 < y2:
        fine = np.zeros(((y2 - y1) * SUPERSAMPLE, (x2 - x1) * SUPERSAMPLE), np.uint8)
        # OpenCV counts from the centre of the first cell (- 0.5), in fixed point of 4 fractional bits (* 16).
        cells = np.round(((polygon - (x1, y1)) * SUPERSAMPLE - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(fine, [cells], 255, shift=4)
        coverage[y1:y2, x1:x2] = cv2.resize(fine, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA) / 255.0
    return coverage


def smooth_noise(rng: np.random.Generator, cell_px: float, *, height: int, width: int) -> Floats:
    grid = rng.uniform(-1, 1, (int(height / cell_px) + 2, int(width / cell_px) + 2)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def texture(rng: np.random.Generator, *, height: int, width: int) -> Floats:
    """(H, W) a pattern in about -1..1."""
    size = {"height": height, "width": width}
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    (a, b), (c, d) = rotation(rng).astype(np.float32)
    u, v = a * x + b * y, c * x + d * y
    kind = rng.choice(["noise", "blobs", "gradient", "stripes", "checkers"])
    if kind == "noise":
        cells = rng.choice([2, 4, 8, 16, 32], size=3, replace=False)
        pattern = np.mean([smooth_noise(rng, cell_px, **size) for cell_px in cells], axis=0) * 1.7
    elif kind == "blobs":
        pattern = np.tanh(4 * smooth_noise(rng, rng.uniform(5, 16), **size))
    elif kind == "gradient":
        pattern = (u - u.min()) / np.ptp(u) * 2 - 1
    elif kind == "stripes":
        pattern = np.tanh(rng.uniform(1, 4) * np.sin(u * np.pi / rng.uniform(2, 10)))
    else:
        cell_px = rng.uniform(2.5, 6)  # any larger, and the cells would be objects of the class "square"
        pattern = np.tanh(6 * np.sin(u * np.pi / cell_px) * np.sin(v * np.pi / cell_px))
    return np.asarray(pattern, np.float32)


@dataclass
class Scene:
    """An image in the making: its canvas, (H, W, 3) RGB 0..255, and its objects from back to front."""

    rng: np.random.Generator
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = {"height": self.height, "width": self.width}
        self.canvas = np.full((self.height, self.width, 3), self.rng.uniform(25, 230, 3), np.float32)
        self.paint(np.ones((self.height, self.width), np.float32), contrast=0.0)
        if self.rng.random() < 0.4:  # a second ground, along a wavy border
            waves = smooth_noise(self.rng, self.rng.uniform(30, 80), **self.size)
            self.paint(np.clip(0.5 + self.rng.uniform(5, 30) * waves, 0, 1), contrast=0.0)

    def paint(self, coverage: Floats, *, contrast: float) -> None:
        """Cover some of the canvas with a texture whose mean lies `contrast` or more from what is around it.

        Strong textures, of the paint or of its surroundings, ask for more, lest the edge be lost in them.
        """
        rng = self.rng
        around = self.canvas[cv2.dilate(coverage, np.ones((7, 7), np.uint8)) > 0]
        direction = rng.normal(size=3)
        swing = rng.uniform(5, 40) / np.linalg.norm(direction) * direction
        need = contrast + float(np.linalg.norm(around.std(axis=0)) + 0.6 * np.linalg.norm(swing))
        colour = rng.uniform(25, 230, 3)
        # At most 140: some corner of the cube lies 177 or more from any point, so that the search ends.
        while np.linalg.norm(colour - around.mean(axis=0)) < min(need, 140.0):
            colour = rng.uniform(25, 230, 3)
        pattern = (colour + texture(rng, **self.size)[..., None] * swing).astype(np.float32)
        self.canvas += coverage[..., None] * (pattern - self.canvas)

    def add_clutter(self) -> None:
        """A line, an arc or a lump: something that belongs to no category."""
        rng, kind = self.rng, self.rng.choice(["line", "arc", "lump"])
        centre = rng.uniform((0, 0), (self.width, self.height))
        turn = np.linspace(0, 2 * np.pi, 40)
        if kind == "lump":
            first, second = rng.uniform(0.2, 0.4, 2), rng.uniform(0, 2 * np.pi, 2)
            reach = 1 + first[0] * np.cos(2 * turn + second[0]) + first[1] * np.cos(3 * turn + second[1])
            coverage = coverage_of(centre + rng.uniform(5, 20) * reach[:, None] * ring(turn), **self.size)
        else:
            points = np.stack([centre, rng.uniform((0, 0), (self.width, self.height))])
            if kind == "arc":  # of half a turn at most: a closed one could pass for a circle
                angles = rng.uniform(0, 2 * np.pi) + turn * rng.uniform(0.15, 0.5)
                points = centre + rng.uniform(10, 50) * ring(angles)
            stroke = np.zeros((self.height, self.width), np.uint8)
            cells = np.round((points - 0.5) * 16).astype(np.int32)
            cv2.polylines(stroke, [cells], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, shift=4)
            coverage = (stroke / 255).astype(np.float32)
        if coverage.any():  # a lump on the border may lie outside
            self.paint(coverage, contrast=20.0)

    def add(self, new: Instance, coverage: Floats) -> bool:
        """Paint `new` in front, unless it or one behind it would be too hidden to be annotated honestly."""
        left = [old.visible & ~new.visible for old in self.instances]
        for visible, of in zip([*left, new.visible], [*self.instances, new], strict=True):
            if visible.sum() < max(MIN_VISIBLE_SHARE * of.full_px, MIN_VISIBLE_PX):
                return False
        for visible, old in zip(left, self.instances, strict=True):
            old.whole = old.whole and bool((visible == old.visible).all())
            old.visible = visible
        self.paint(coverage, contrast=MIN_CONTRAST)
        self.instances.append(new)
        return True

    def add_shape(self) -> None:
        """One more shape in front of the others; none where no try finds room for it."""
        rng, extent = self.rng, np.array([self.width, self.height])
        # Drawn once, before the tries: where there is little room must not decide about the form.
        form = str(rng.choice(FORMS))
        radius_px = MIN_RADIUS_PX * (MAX_RADIUS_PX / MIN_RADIUS_PX) ** rng.random()
        neighbours = [old.polygon for old in self.instances if old.polygon is not None]
        for _ in range(PLACEMENT_TRIES):
            centre = rng.uniform((0, 0), extent)
            if neighbours and rng.random() < 0.4:  # chance alone would seldom let two small shapes overlap
                other = neighbours[rng.integers(len(neighbours))]
                apart_px = (radius_px + np.ptp(other, axis=0).mean() / 2) * rng.uniform(0.4, 0.9)
                centre = other.mean(axis=0) + apart_px * rotation(rng)[0]
            centre = np.clip(centre, 0.6 * radius_px, extent - 0.6 * radius_px)
            polygon = place_outline(form, centre, radius_px, rng)
            coverage = coverage_of(polygon, **self.size)
            inside = bool((polygon >= 0).all() and (polygon <= extent).all())
            new = Instance(form, polygon, polygon_area(polygon), coverage >= 0.5, whole=inside)
            if self.add(new, coverage):
                return

    def add_crowd(self) -> None:
        """A jittered grid of tiny shapes of one form, as one crowd."""
        rng, extent = self.rng, np.array([self.width, self.height])
        form, radius_px = str(rng.choice(FORMS)), rng.uniform(*CROWD_RADIUS_PX)
        step_px, cells = 2.4 * radius_px, rng.integers(3, 6, size=2)
        corner = rng.uniform((step_px, step_px), extent - cells * step_px)
        coverage = np.zeros((self.height, self.width), np.float32)
        for cell in np.ndindex(*cells):
            centre = corner + step_px * (cell + rng.uniform(-0.15, 0.15, 2))
            coverage = np.maximum(coverage, coverage_of(place_outline(form, centre, radius_px, rng), **self.size))
        # Closed over the gaps: as in COCO, a crowd is a region and not the sum of its members.
        members = (coverage >= 0.5).astype(np.uint8)
        region = cv2.morphologyEx(members, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0
        placed = self.add(Instance(form, None, float(region.sum()), region, False, is_crowd=True), coverage)
        assert placed, "a crowd comes first and lies inside the image"


def make_sample(settings: ShapesSettings, split: str, index: int) -> tuple[Bytes, list[Instance]]:
    """Image `index` of a split, (H, W, 3) RGB, its objects: a function of seed, split, index and side."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    short, long = settings.side_px, round(settings.side_px * 4 / 3)
    height, width = [(short, short), (short, long), (long, short)][rng.choice(3, p=[0.7, 0.15, 0.15])]
    scene = Scene(rng, height, width)
    for _ in range(rng.integers(0, 5)):
        scene.add_clutter()
    lot = rng.random()
    if EMPTY_SHARE <= lot < EMPTY_SHARE + CROWD_SHARE:
        scene.add_crowd()
    for _ in range(rng.integers(1, MAX_SHAPES + 1) if lot >= EMPTY_SHARE else 0):
        scene.add_shape()
    blurred = cv2.GaussianBlur(scene.canvas, (0, 0), rng.uniform(0.2, 0.7))
    noisy = blurred + rng.normal(0, rng.uniform(1, 7), blurred.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), scene.instances


def coco_annotation(instance: Instance) -> Record:
    """COCO's record of an object, without ids: a polygon where all of it shows, else the visible bitmap."""
    record: Record = {"category_id": CATEGORY_IDS[instance.form], "iscrowd": int(instance.is_crowd)}
    if instance.whole:
        polygon = instance.polygon
        assert polygon is not None
        record["bbox"] = np.round([*polygon.min(axis=0), *np.ptp(polygon, axis=0)], 2).tolist()
        record["area"] = round(polygon_area(polygon), 2)
        record["segmentation"] = [polygon.ravel().tolist()]
        return record
    rle = mask_utils.encode(np.asfortranarray(instance.visible, dtype=np.uint8))
    counts: object = rle["counts"].decode("ascii")
    if instance.is_crowd:  # COCO's own files write the runs of crowds as plain numbers
        column_major = instance.visible.ravel(order="F")
        edges = np.flatnonzero(np.diff(column_major, prepend=False, append=not column_major[-1]))
        counts = np.diff(edges, prepend=0).tolist()
    record["bbox"] = mask_utils.toBbox(rle).tolist()
    record["area"] = int(mask_utils.area(rle))
    record["segmentation"] = {"size": list(instance.visible.shape), "counts": counts}
    return record


def write_sample(root: Path, settings: ShapesSettings, split: str, index: int) -> tuple[Record, list[Record]]:
    """Write one image; its COCO record and those of its objects, which have no ids of their own yet."""
    pixels, instances = make_sample(settings, split, index)
    image_id = 2 * index + 1 + SPLITS.index(split)  # odd in train, even in val: no id names two images
    file_name = f"{image_id:012d}.jpg"
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), JPEG_OPTIONS)
    assert done
    (root / "images" / split / file_name).write_bytes(encoded.tobytes())
    height, width = pixels.shape[:2]
    image: Record = {"id": image_id, "file_name": file_name, "height": height, "width": width}
    return image, [{"image_id": image_id, **coco_annotation(instance)} for instance in instances]


def write_annotations(root: Path, seed: int, split: str, made: list[tuple[Record, list[Record]]]) -> None:
    records = [record for _, of_image in made for record in of_image]
    first = 1 + SPLITS.index(split)  # odd and even, as with images
    instances = {
        "info": {"description": "shapes", "version": str(GENERATOR_VERSION), "seed": seed, "split": split},
        "licenses": [],
        "images": [image for image, _ in made],
        "annotations": [{"id": 2 * number + first, **record} for number, record in enumerate(records)],
        "categories": [{"id": CATEGORY_IDS[form], "name": form, "supercategory": "shape"} for form in FORMS],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances))


def manifest_of(root: Path, settings: ShapesSettings) -> Record:
    """What was asked for, and the size in bytes of every file of it that lies under root."""
    paths = [*root.glob("images/*/*.jpg"), *root.glob("annotations/*.json")]
    return {
        "generator": "shapes",
        "generator_version": GENERATOR_VERSION,
        "settings": asdict(settings),
        "files": {path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(paths)},
    }


def holds_shapes(root: Path, settings: ShapesSettings) -> bool:
    """Whether root already holds this very data set, every file in its full length."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return bool(manifest == manifest_of(root, settings))


def generate_shapes(
    root: Path,
    *,
    train_images: int = 2000,
    val_images: int = 200,
    side_px: int = 144,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Write the data set to the folder `root`, all of it or nothing; where it lies already, nothing is done.

    The same settings give the same bytes, whatever the number of workers.
    """
    settings = ShapesSettings(train_images, val_images, side_px, seed)
    if workers < 1:
        raise ValueError(f"workers is {workers}, wanted at least 1 process: pass workers=1")
    if holds_shapes(root, settings):
        return
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise AlreadyExists(
            f"{root} holds something other than the whole of {settings}, version {GENERATOR_VERSION}, "
            "wanted a new or an empty folder: choose another one, or remove what is there"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private, and that would outlive the renaming
        write_all(unfinished, settings, workers)
        os.replace(unfinished, root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_all(root: Path, settings: ShapesSettings, workers: int) -> None:
    for folder in ("annotations", *(f"images/{split}" for split in SPLITS)):
        (root / folder).mkdir(parents=True)
    write = partial(write_sample, root, settings)
    # spawn: a fork would copy the locks that the caller's threads (torch's) hold at that moment
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for split, count in zip(SPLITS, (settings.train_images, settings.val_images), strict=True):
            made = list(pool.map(write, [split] * count, range(count), chunksize=16))
            write_annotations(root, settings.seed, split, made)
    (root / "manifest.json").write_text(json.dumps(manifest_of(root, settings), indent=1))
