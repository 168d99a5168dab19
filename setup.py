"""Metadata is in setup.cfg. Here: the kernels' library is compiled where a C compiler is there, and left out
elsewhere."""

import importlib.util
import logging
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path(__file__).resolve().parent / "hf_stages" / "packing" / "kernels"
# By its path: importing the package would import torch, which is not there yet.
spec = importlib.util.spec_from_file_location("kernels_build", KERNELS / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


class Library(build_ext):
    """Not an extension module: a plain library, the same for all Pythons and all versions of torch."""

    def get_ext_filename(self, name):
        return str(Path(*name.split(".")[:-1], build.NAME))

    def build_extension(self, extension):
        try:
            build.compile_library(Path(self.get_ext_fullpath(extension.name)))
        except RuntimeError as error:
            logging.warning("hf_stages: installed without its fast kernels, which fall back on torch: %s", error)

    def get_outputs(self):
        return [path for path in super().get_outputs() if Path(path).exists()]


class Wheel(bdist_wheel):
    """For one platform and any Python where the library was built, else for all platforms."""

    def get_tag(self):
        built = [*Path(self.bdist_dir).rglob(build.NAME), *Path("build").rglob(build.NAME)]
        return ("py3", "none", build.wheel_platform(super().get_tag()[2], built[0]) if built else "any")


setup(
    ext_modules=[Extension("hf_stages.packing.kernels._lowbit", sources=[], optional=True)],
    cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
)
