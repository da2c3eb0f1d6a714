"""Checks of the model: its folder and family, the layer of the alignment, the image size, the context."""

from __future__ import annotations

from pathlib import Path

from saga_dist.config.method import AUTO
from saga_dist.data.prompts import PromptSpec, load_vocabulary, render_prompt
from saga_dist.errors import ConfigError, ModelError
from saga_dist.models.checkpoint_sizes import check_kl_layer
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import supported_family
from saga_dist.models.tower_size import weight_files
from saga_dist.models.train_checks import check_last_blocks, check_peft
from saga_dist.runtime.build import model_path
from saga_dist.runtime.validation.facts import RunFacts, joins_cluster
from saga_dist.utils.registry import is_import_path

PREPROCESSING_NAME = "preprocessor_config.json"
TOKENIZER_NAME = "tokenizer.json"
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def check_model_folder(run: RunFacts) -> str:
    """Checks config.json, family, preprocessing and the presence of the weights of a checkpoint in a folder.

    Raises:
        ModelError: a file is missing, or the family is not supported.
    """
    path = run.config.model.path
    if not run.names_folder:
        return ""
    if run.is_elsewhere(path):
        return f"model.path = {path} is not on this machine; the nodes of the cluster need it"
    files = ModelFiles(path)
    config = files.json("config.json")
    if run.config.model.own_family:
        return ""  # its files are its own
    if run.config.model.family == AUTO:
        supported_family(config, where=path)
    files.file(PREPROCESSING_NAME)
    if run.config.needs_mllm:
        files.file("tokenizer_config.json")
    missing = [file.name for file in weight_files(Path(path).expanduser()) if not file.is_file()]
    if missing:
        raise ModelError(
            f"has no {missing[0]}" + (f" and {len(missing) - 1} more weight files" if len(missing) > 1 else ""),
            where=path,
            expected="all safetensors files of the checkpoint",
            fix="fetch it again",
        )
    return ""


def check_layer(run: RunFacts) -> str:
    """Checks that ``objective.kl_layer`` is a layer of the language model.

    Raises:
        ModelError: it is not.
    """
    if run.config.needs_mllm and run.sizes.num_layers is not None:
        check_kl_layer(run.config.objective.kl_layer, run.sizes.num_layers, where=model_path(run.config))
    return ""


def check_trained_part(run: RunFacts) -> str:
    """Checks that the tower has the blocks that ``model.train`` names, and that peft is installed for low-rank updates.

    Raises:
        ModelError: the tower has fewer blocks.
        ConfigError: peft is not installed.
    """
    model, num_blocks = run.config.model, run.sizes.num_blocks
    if model.last_blocks is not None and num_blocks is not None:
        check_last_blocks(model.last_blocks, num_blocks, where=model_path(run.config))
    if model.train == "lora" and not joins_cluster(run.config):  # there, the learner's node needs it
        check_peft()
    return ""


def check_image_size(run: RunFacts) -> str:
    """Checks that an image has a whole number of tokens along each side.

    Raises:
        ConfigError: it has not.
    """
    side, unit = run.config.data.image_size, run.sizes.pixels_per_token
    if unit and side % unit:
        below, above = side - side % unit, side - side % unit + unit
        raise ConfigError(
            f"data.image_size = {side}",
            where=model_path(run.config),
            expected=f"a multiple of {unit} (patch size x merge size)",
            fix="set data.image_size = " + (f"{below} or {above}" if below else f"{above}"),
        )
    return ""


def check_context(run: RunFacts) -> str:
    """Checks that prompt, two images and the longest completion fit the engine's context, and that one the model's.

    The prompt is counted with the checkpoint's tokenizer where it is on this machine, and images where the sizes of the
    model are known, else as nothing. A family's chat format may add a few tokens.

    Raises:
        ConfigError: they do not fit.
    """
    config, sizes = run.config, run.sizes
    if not config.needs_engine:
        return ""
    rollout, side = config.rollout, sizes.pixels_per_token
    images = 0 if side is None else 2 * (config.data.image_size // side) ** 2
    prompt = _prompt_tokens(run)
    needed = prompt + images + rollout.max_tokens
    if needed > rollout.max_model_len:
        raise ConfigError(
            f"prompt {prompt} + images {images} + rollout.max_tokens {rollout.max_tokens} = {needed} tokens",
            where="rollout",
            expected=f"at most rollout.max_model_len = {rollout.max_model_len}",
            fix=f"set rollout.max_model_len = {needed} or more, or lower rollout.max_tokens or data.image_size",
        )
    if rollout.engine == "vllm" and sizes.context is not None and rollout.max_model_len > sizes.context:
        raise ConfigError(
            f"rollout.max_model_len = {rollout.max_model_len}",
            where=model_path(config),
            expected=f"at most max_position_embeddings = {sizes.context} of its config.json",
            fix=f"set rollout.max_model_len = {sizes.context}",
        )
    return ""


def _prompt_tokens(run: RunFacts) -> int:
    """Returns the text tokens of the prompt; 0 when template or tokenizer are not known here."""
    settings = run.config.prompt
    file = None if run.model_folder is None else run.model_folder / TOKENIZER_NAME
    if file is None or not file.is_file() or is_import_path(settings.variant):
        return 0
    from tokenizers import Tokenizer

    try:
        spec = PromptSpec(load_vocabulary(settings.vocabulary), settings.variant, settings.order)
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - tokenizers raises a plain Exception; vocabularies have a check of their own
        return 0
    text = render_prompt(spec, image_a=_IMAGE, image_b=_IMAGE)
    return len(tokenizer.encode(text, add_special_tokens=False).ids) - 2
