"""Sections of the data: images, splits, batches, augmentation, and the settings of the built-in birds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from saga_dist.config.registries import LAYOUTS, name_in
from saga_dist.config.section import Section


class BirdsSection(Section):
    """Settings of the built-in birds, used with data.layout = "birds" (not in the paper)."""

    seed: int = Field(11, ge=0, description="random seed of all images and of the choice of probe species")
    train_classes: int = Field(16, ge=2, description="training species, at most 32")
    train_images_per_class: int = Field(16, ge=2, description="images of each training species")
    flower_correlation: float = Field(
        1.0,
        ge=0,
        le=1,
        description="probability that the flowers of a training image are of the type that identifies its class; "
        "otherwise the type is random, as in all other splits",
    )
    min_flowers: int = Field(4, ge=0, le=8, description="smallest number of flowers in an image, in every split")
    max_flowers: int = Field(
        7, ge=0, le=8, description="largest number of flowers in an image, in every split; 0: no flowers"
    )
    clutter: int = Field(
        0, ge=0, le=60, description="shapes of random colours behind bird and flowers in an image, in every split"
    )
    bird_scale: float = Field(
        1.0, ge=0.25, le=1, description="factor on the size of the bird, in every split; 1: it fills most of the image"
    )
    constant_parts: tuple[Literal["bill", "crown", "breast", "wing", "tail", "legs"], ...] = Field(
        (),
        max_length=3,
        description="parts with one colour in all training species, which vary in validation and test; at most 3",
    )
    train_style: float = Field(
        1.0,
        ge=0,
        le=2,
        description="appearance of the training images: 0 as in pre-training, 1 shifted, up to 2 (twice the shift)",
    )
    test_style: float = Field(
        1.0, ge=0, le=2, description="appearance of validation, test and probe images, on the scale of train_style"
    )
    val_images_per_class: int = Field(16, ge=2, description="images of each of the 32 validation species")
    test_images_per_class: int = Field(32, ge=2, description="images of each of the 50 test species")
    probe_images: int = Field(
        1600,
        ge=0,
        description="images on which linear probes of the attributes are fitted, each of another species of "
        "pre-training; 0: no probes",
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> BirdsSection:
        if self.min_flowers > self.max_flowers:
            raise ValueError(
                f"min_flowers = {self.min_flowers} with max_flowers = {self.max_flowers}; expected at most as many; "
                "lower min_flowers or raise max_flowers"
            )
        if len(set(self.constant_parts)) != len(self.constant_parts):
            raise ValueError(f"constant_parts = {list(self.constant_parts)}; expected each part once")
        return self


class DataSection(Section):
    """The data set, its division into splits, micro-batches and augmentation (the paper has no augmentation).

    ``manifest``, ``train_classes``, ``test_classes``, ``image_field`` and ``label_field`` are also passed to a layout
    that is not built in.
    """

    layout: Annotated[str, name_in(LAYOUTS)] = Field(
        "folder",
        description="layout of the data set: birds (built in), folder, manifest, webdataset (tar shards), hf_dataset "
        "(a data set saved by Hugging Face datasets), cub, cars, aircraft, inat, sop, inshop or package.module:object, "
        "a function from root and options to Splits",
    )
    root: str = Field(
        "",
        description="folder of the data set; required by the built-in layouts other than birds; for layout = "
        '"folder" it holds <class>/<image>, or the same below train, test and perhaps val',
    )
    manifest: str = Field(
        "",
        description='.csv or .parquet file with the columns path, label and split, for layout = "manifest" (empty: '
        "manifest.* in root)",
    )
    train_classes: str = Field(
        "",
        description='file with one training class name per line, for layout = "folder" (empty: the first half of the '
        "sorted classes)",
    )
    test_classes: str = Field(
        "",
        description='file with one test class name per line, for layout = "folder" (empty: the second half of the '
        "sorted classes)",
    )
    image_field: str = Field(
        "",
        description="column of the images for the layout hf_dataset (empty: image), or ending of their members for the "
        "layout webdataset (empty: that of any image format)",
    )
    label_field: str = Field(
        "",
        description="column of the classes for the layout hf_dataset (empty: label); for the layout webdataset the "
        "ending of the members with the class, json:KEY for a value in JSON (empty: cls)",
    )
    val_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the training classes that is held out for model selection, in [0, 1) (deviation: the "
        "paper holds out none, which is 0); the built-in birds have validation classes of their own",
    )
    split_hash: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="sha256 that the splits must have, as `saga-dist data check` prints it; empty: no check",
    )
    image_size: int = Field(
        224, ge=16, description="side of the square that the whole image is scaled to, pixels (paper: 224)"
    )
    fast_jpeg: bool = Field(
        False, description="True: decode large JPEGs at a reduced scale; faster, with slightly other pixels (deviation)"
    )
    decode_threads: int = Field(
        2,
        ge=0,
        le=64,
        description="threads of each learner process that read and augment the images of the next micro-batches while "
        "the step runs; the images are the same to the bit; 0: they are read when they are encoded",
    )
    batch_size: int = Field(64, ge=4, description="images per micro-batch, a multiple of images_per_class (paper: 64)")
    images_per_class: int = Field(4, ge=2, description="images of each class in a micro-batch (not published)")
    flip: bool = Field(False, description="True: mirror training images horizontally with probability 1/2 (deviation)")
    shift: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="largest random shift of training images in each direction, as a share of the side; 0: none "
        "(deviation)",
    )
    crop: float = Field(
        1.0,
        gt=0,
        le=1,
        description="smallest share of the area that a random crop of a training image keeps before it is scaled back; "
        "1: no crop (deviation)",
    )
    color_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="largest relative change c of the gain of each colour channel of training images, which is uniform "
        "in [1 - c, 1 + c]; 0: none (deviation)",
    )
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
            return self  # it is not known here which keys another layout takes
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
        if self.layout not in ("webdataset", "hf_dataset") and (self.image_field or self.label_field):
            raise ValueError(
                f'image_field or label_field with layout = "{self.layout}"; expected them with layout = "webdataset" '
                'or "hf_dataset"; remove them or set data.layout'
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
