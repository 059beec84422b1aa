"""Drawing of the images of the "shapes" data set.

Glossary: H, W an image's height and width in pixels, V vertices of a polygon. Colours and textures are drawn
independently of the form, so that the outline is the only cue to an object's class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from .shape_outlines import (
    FORMS,
    Doubles,
    Floats,
    coverage_of,
    points_on_circle,
    polygon_area,
    random_outline,
    random_rotation,
)

MIN_RADIUS_PX, MAX_RADIUS_PX = 8.0, 48.0
CROWD_RADIUS_PX = (4.0, 6.0)
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.4, 60
MIN_CONTRAST = 50.0  # distance of mean RGB colours, 0..441
PLACEMENT_TRIES = 12


@dataclass
class Instance:
    """One object, or one crowd.

    Attributes:
        form: one of `FORMS`.
        polygon: (V, 2) xy, pixels; None for a crowd.
        full_px: area without occlusion and before cropping at the image's border, pixels.
        visible: (H, W) bool, the visible pixels.
        whole: whether all of it is visible, so that `polygon` is its exact outline.
        is_crowd: whether it is a crowd.
    """

    form: str
    polygon: Doubles | None
    full_px: float
    visible: npt.NDArray[np.bool_]
    whole: bool
    is_crowd: bool = False


def smooth_noise(rng: np.random.Generator, cell_px: float, *, height: int, width: int) -> Floats:
    """Draw smooth noise: uniform values of -1..1 on a grid, with bicubic interpolation.

    Args:
        rng: source of the random numbers.
        cell_px: spacing of the grid, pixels.
        height: height of the image, pixels.
        width: width of the image, pixels.

    Returns:
        (H, W) noise.
    """
    grid = rng.uniform(-1, 1, (int(height / cell_px) + 2, int(width / cell_px) + 2)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def random_texture(rng: np.random.Generator, *, height: int, width: int) -> Floats:
    """Draw a texture of a random kind: noise, blobs, a gradient, stripes or a checkerboard.

    Args:
        rng: source of the random numbers.
        height: height of the image, pixels.
        width: width of the image, pixels.

    Returns:
        (H, W) values of about -1..1.
    """
    size = {"height": height, "width": width}
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    (a, b), (c, d) = random_rotation(rng).astype(np.float32)
    u, v = a * x + b * y, c * x + d * y
    kind = rng.choice(["noise", "blobs", "gradient", "stripes", "checkers"])
    if kind == "noise":
        cells_px = rng.choice([2, 4, 8, 16, 32], size=3, replace=False)
        texture = np.mean([smooth_noise(rng, cell_px, **size) for cell_px in cells_px], axis=0) * 1.7
    elif kind == "blobs":
        texture = np.tanh(4 * smooth_noise(rng, rng.uniform(5, 16), **size))
    elif kind == "gradient":
        texture = (u - u.min()) / np.ptp(u) * 2 - 1
    elif kind == "stripes":
        texture = np.tanh(rng.uniform(1, 4) * np.sin(u * np.pi / rng.uniform(2, 10)))
    else:
        cell_px = rng.uniform(2.5, 6)  # larger cells would look like objects of the class "square"
        texture = np.tanh(6 * np.sin(u * np.pi / cell_px) * np.sin(v * np.pi / cell_px))
    return np.asarray(texture, np.float32)


@dataclass
class Scene:
    """An image that is drawn step by step, from back to front.

    Attributes:
        rng: source of the random numbers.
        height: height, pixels.
        width: width, pixels.
        instances: objects drawn so far, from back to front.
        size: height and width, as keyword arguments.
        canvas: (H, W, 3) float32 RGB, 0..255.
    """

    rng: np.random.Generator
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = {"height": self.height, "width": self.width}
        self.canvas = np.full((self.height, self.width, 3), self.rng.uniform(25, 230, 3), np.float32)
        self.paint(np.ones((self.height, self.width), np.float32), contrast=0.0)
        if self.rng.random() < 0.4:  # a second background texture behind a wavy border
            waves = smooth_noise(self.rng, self.rng.uniform(30, 80), **self.size)
            self.paint(np.clip(0.5 + self.rng.uniform(5, 30) * waves, 0, 1), contrast=0.0)

    def paint(self, coverage: Floats, *, contrast: float) -> None:
        """Blend a random texture into the canvas.

        Args:
            coverage: (H, W) opacity of the texture, 0..1.
            contrast: minimum distance between the texture's mean colour and that of its surroundings, RGB 0..441. It
                is raised, to at most 140, where the texture or its surroundings vary strongly, since the edge would
                otherwise be hard to see.
        """
        rng = self.rng
        surroundings = self.canvas[cv2.dilate(coverage, np.ones((7, 7), np.uint8)) > 0]
        direction = rng.normal(size=3)
        amplitude = rng.uniform(5, 40) / np.linalg.norm(direction) * direction
        variation = np.linalg.norm(surroundings.std(axis=0)) + 0.6 * np.linalg.norm(amplitude)
        required = contrast + float(variation)
        colour = rng.uniform(25, 230, 3)
        # at most 140, so that the loop ends: some corner of the cube 25..230 is at least 177 away from any mean
        while np.linalg.norm(colour - surroundings.mean(axis=0)) < min(required, 140.0):
            colour = rng.uniform(25, 230, 3)
        pattern = (colour + random_texture(rng, **self.size)[..., None] * amplitude).astype(np.float32)
        self.canvas += coverage[..., None] * (pattern - self.canvas)

    def add_clutter(self) -> None:
        """Draw a line, an arc or a blob, which belongs to no category."""
        rng, kind = self.rng, self.rng.choice(["line", "arc", "blob"])
        centre = rng.uniform((0, 0), (self.width, self.height))
        full_turn = np.linspace(0, 2 * np.pi, 40)
        if kind == "blob":
            amplitudes, phases = rng.uniform(0.2, 0.4, 2), rng.uniform(0, 2 * np.pi, 2)
            waves = [a * np.cos(n * full_turn + phase) for n, a, phase in zip((2, 3), amplitudes, phases, strict=True)]
            radii = 1 + waves[0] + waves[1]
            outline = centre + rng.uniform(5, 20) * radii[:, None] * points_on_circle(full_turn)
            coverage = coverage_of(outline, **self.size)
        else:
            points = np.stack([centre, rng.uniform((0, 0), (self.width, self.height))])
            if kind == "arc":  # at most half a turn: a closed arc could be taken for a circle
                angles = rng.uniform(0, 2 * np.pi) + full_turn * rng.uniform(0.15, 0.5)
                points = centre + rng.uniform(10, 50) * points_on_circle(angles)
            stroke = np.zeros((self.height, self.width), np.uint8)
            vertices = np.round((points - 0.5) * 16).astype(np.int32)
            cv2.polylines(stroke, [vertices], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, shift=4)
            coverage = (stroke / 255).astype(np.float32)
        if coverage.any():  # a blob at the border may lie outside
            self.paint(coverage, contrast=20.0)

    def add(self, new: Instance, coverage: Floats) -> bool:
        """Draw an instance in front of the others, unless too little of it or of another one would be visible.

        Args:
            new: the instance.
            coverage: (H, W) opacity, 0..1.

        Returns:
            Whether the instance was drawn.
        """
        visible_after = [old.visible & ~new.visible for old in self.instances]
        for visible, instance in zip([*visible_after, new.visible], [*self.instances, new], strict=True):
            if visible.sum() < max(MIN_VISIBLE_SHARE * instance.full_px, MIN_VISIBLE_PX):
                return False
        for visible, old in zip(visible_after, self.instances, strict=True):
            old.whole = old.whole and bool((visible == old.visible).all())
            old.visible = visible
        self.paint(coverage, contrast=MIN_CONTRAST)
        self.instances.append(new)
        return True

    def add_shape(self) -> None:
        """Draw one shape in front of the others, if one of `PLACEMENT_TRIES` random places has room for it."""
        rng, extent = self.rng, np.array([self.width, self.height])
        # drawn once, before the tries: the room that is left must not change the distribution of forms
        form = str(rng.choice(FORMS))
        radius_px = MIN_RADIUS_PX * (MAX_RADIUS_PX / MIN_RADIUS_PX) ** rng.random()
        neighbours = [old.polygon for old in self.instances if old.polygon is not None]
        for _ in range(PLACEMENT_TRIES):
            centre = rng.uniform((0, 0), extent)
            if neighbours and rng.random() < 0.4:  # uniform places alone would rarely make two small shapes overlap
                neighbour = neighbours[rng.integers(len(neighbours))]
                distance_px = (radius_px + np.ptp(neighbour, axis=0).mean() / 2) * rng.uniform(0.4, 0.9)
                centre = neighbour.mean(axis=0) + distance_px * random_rotation(rng)[0]
            centre = np.clip(centre, 0.6 * radius_px, extent - 0.6 * radius_px)
            polygon = random_outline(form, centre, radius_px, rng)
            coverage = coverage_of(polygon, **self.size)
            is_inside = bool((polygon >= 0).all() and (polygon <= extent).all())
            new = Instance(form, polygon, polygon_area(polygon), coverage >= 0.5, whole=is_inside)
            if self.add(new, coverage):
                return

    def add_crowd(self) -> None:
        """Draw a jittered grid of small shapes of one form, as one crowd. Call before `add_shape`."""
        rng, extent = self.rng, np.array([self.width, self.height])
        form, radius_px = str(rng.choice(FORMS)), rng.uniform(*CROWD_RADIUS_PX)
        step_px, cells = 2.4 * radius_px, rng.integers(3, 6, size=2)
        corner = rng.uniform((step_px, step_px), extent - cells * step_px)
        coverage = np.zeros((self.height, self.width), np.float32)
        for cell in np.ndindex(*cells):
            centre = corner + step_px * (cell + rng.uniform(-0.15, 0.15, 2))
            coverage = np.maximum(coverage, coverage_of(random_outline(form, centre, radius_px, rng), **self.size))
        # closed over the gaps: as in COCO, a crowd is a region, not the union of its members
        members = (coverage >= 0.5).astype(np.uint8)
        region = cv2.morphologyEx(members, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0
        is_placed = self.add(Instance(form, None, float(region.sum()), region, False, is_crowd=True), coverage)
        assert is_placed, "the first instance, which lies inside the image, is always placed"
