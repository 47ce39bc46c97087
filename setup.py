"""What pyproject.toml cannot say: C kernels in wheels for a platform, and links that work on PyPI.

`bdist_wheel --plat-name manylinux_2_28_x86_64` compiles the kernels for that platform; `make wheel`
does so. Without it the wheel has only their sources, and the first start compiles them.
`TGI_ASYNC_REPOSITORY` is the address of the repository for the links of the page.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from release import kernels, readme  # noqa: E402
from workers import prebuilt  # noqa: E402

REPOSITORY = os.environ.get("TGI_ASYNC_REPOSITORY", "").rstrip("/")


class Wheel(bdist_wheel):
    """A wheel, for one platform if it is asked for."""

    def finalize_options(self) -> None:
        if self.plat_name:
            # So that packages lie where those of a platform do.
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def run(self) -> None:
        self.run_command("build_py")
        folder = Path(
            self.get_finalized_command("build_py").build_lib, "workers", prebuilt.FOLDER.name
        )
        shutil.rmtree(folder, ignore_errors=True)  # of another build in this folder
        if self.plat_name_supplied:
            kernels.build(self.plat_name, folder)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        # The kernels are loaded through ctypes: any Python will do.
        return ("py3", "none", self.plat_name if self.plat_name_supplied else "any")


setup(
    cmdclass={"bdist_wheel": Wheel},
    long_description=readme.page((HERE / "README.md").read_text(encoding="utf-8"), REPOSITORY),
    long_description_content_type="text/markdown",
    project_urls={
        "Source": REPOSITORY,
        "Documentation": f"{REPOSITORY}/blob/main/docs/README.md",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    }
    if REPOSITORY
    else {},
)
