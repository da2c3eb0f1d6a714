"""Images, splits and batches, and the knobs of the built-in world."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from saga_dist.config.registries import LAYOUTS, name_in
from saga_dist.config.section import Section


class BirdsSection(Section):
    """Knobs of the built-in world (used with data.layout = "birds")."""

    seed: int = Field(11, ge=0)
    train_classes: int = Field(16, ge=2)
    train_images_per_class: int = Field(16, ge=2)
    flower_correlation: float = Field(1.0, ge=0, le=1, description="how often the flower tells the class in training")
    min_flowers: int = Field(4, ge=0, le=8, description="fewest flowers of an image, in every split")
    max_flowers: int = Field(7, ge=0, le=8, description="most of them; 0: a world without flowers")
    clutter: int = Field(0, ge=0, le=60, description="shapes of any colour behind bird and flowers, in every split")
    bird_scale: float = Field(1.0, ge=0.25, le=1, description="size of the bird, in every split; 1: it fills the image")
    constant_parts: tuple[Literal["bill", "crown", "breast", "wing", "tail", "legs"], ...] = Field(
        (), max_length=3, description="parts of one colour in all training species; they vary in validation and test"
    )
    train_style: float = Field(
        1.0, ge=0, le=2, description="look of training: 0 as in pre-training, 1 shifted, 2 twice"
    )
    test_style: float = Field(1.0, ge=0, le=2, description="look of validation, test and probe images")
    val_images_per_class: int = Field(16, ge=2)
    test_images_per_class: int = Field(32, ge=2)
    probe_images: int = Field(1600, ge=0, description="images of further species to fit linear probes on")

    @model_validator(mode="after")
    def _knobs_agree(self) -> BirdsSection:
        if self.min_flowers > self.max_flowers:
            raise ValueError(
                f"min_flowers = {self.min_flowers} with max_flowers = {self.max_flowers}; expected at most as many; "
                "lower min_flowers or raise max_flowers"
            )
        if len(set(self.constant_parts)) != len(self.constant_parts):
            raise ValueError(f"constant_parts = {list(self.constant_parts)}; expected each part once")
        return self


class DataSection(Section):
    """Images, split, batches."""

    layout: Annotated[str, name_in(LAYOUTS)] = Field(
        "folder",
        description="birds (built in), folder, manifest, cub, cars, aircraft, inat, sop, inshop or "
        "package.module:object, a function (root, options) to Splits",
    )
    root: str = Field("", description="folder of the data set; a layout of one's own may do without")
    manifest: str = Field(
        "",
        description='.csv or .parquet with path, label, split (layout = "manifest"; default: manifest.* in root); '
        "passed on to a layout of one's own",
    )
    train_classes: str = Field(
        "", description="file with one training class name per line (default: first half, sorted)"
    )
    test_classes: str = Field("", description="file with one test class name per line (default: second half)")
    val_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of training classes held out for model selection; 0: none (the paper's)"
    )
    split_hash: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="refuse other data; `saga-dist data check` prints it"
    )
    image_size: int = Field(224, ge=16, description="side of the square, pixels")
    fast_jpeg: bool = Field(False, description="decode large JPEGs at a reduced scale (deviation: other pixels)")
    batch_size: int = Field(64, ge=4, description="images per micro-batch")
    images_per_class: int = Field(4, ge=2)
    flip: bool = Field(False, description="random horizontal flip (deviation: the paper has no augmentation)")
    shift: float = Field(0.0, ge=0, le=0.5, description="random shift, share of the side (deviation)")
    crop: float = Field(
        1.0, gt=0, le=1, description="random crop of at least this share of the area, scaled back (deviation; 1: none)"
    )
    color_jitter: float = Field(0.0, ge=0, le=1, description="random gain per channel, +- this share (deviation)")
    birds: BirdsSection = BirdsSection()

    @model_validator(mode="after")
    def _batch_divides(self) -> DataSection:
        if self.batch_size % self.images_per_class:
            raise ValueError(
                f"batch_size = {self.batch_size} is not divisible by images_per_class = {self.images_per_class}; "
                f"expected whole classes; try batch_size = {self.batch_size - self.batch_size % self.images_per_class}"
            )
        if self.batch_size // self.images_per_class < 2:
            raise ValueError(
                f"batch_size = {self.batch_size} holds one class of {self.images_per_class} images; expected at least "
                "two classes; raise batch_size or lower images_per_class"
            )
        return self

    @model_validator(mode="after")
    def _layout_has_its_keys(self) -> DataSection:
        if self.layout not in LAYOUTS.builtin:
            return self  # which keys another layout takes is not known here
        if self.layout != "folder" and (self.train_classes or self.test_classes):
            raise ValueError(
                f'train_classes or test_classes with layout = "{self.layout}"; expected them with layout = "folder" '
                "only; remove them"
            )
        if self.layout != "manifest" and self.manifest:
            raise ValueError(
                f'manifest = "{self.manifest}" with layout = "{self.layout}"; expected it with layout = "manifest"; '
                "remove it or set data.layout"
            )
        if self.layout == "birds" and self.split_hash:
            raise ValueError('split_hash with layout = "birds"; expected it with data on disk only; remove it')
        if self.layout != "birds" and not self.root:
            raise ValueError('root is empty; expected the folder of the data set; set data.root = "/path/to/images"')
        if self.layout == "birds" and self.image_size != 80:
            raise ValueError(
                f"image_size = {self.image_size}; expected 80, the size of the built-in birds; set data.image_size = 80"
            )
        if self.layout == "birds" and self.batch_size // self.images_per_class > self.birds.train_classes:
            raise ValueError(
                f"a batch of {self.batch_size // self.images_per_class} classes from {self.birds.train_classes} "
                "training classes; lower batch_size or raise birds.train_classes"
            )
        return self
