"""Package metadata; requirements live in requirements*.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (HERE / name).read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))]


setup(
    name="evoid_jax",
    version="0.1.0",
    description="Reinforced evolution of identity-preserving video diffusion models, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The presets stand at the top of the repository, for people to read and copy, and are installed
    # inside the package, where `--config=configs/evoid.py:tiny` finds them from any folder.
    packages=[*find_packages(include=["evoid_jax", "evoid_jax.*"]), "evoid_jax.configs"],
    package_dir={"evoid_jax.configs": "configs"},
    package_data={"evoid_jax": ["assets/**/*"]},
    install_requires=requirements("requirements.txt"),
    extras_require={
        "sidecars": requirements("requirements-sidecars.txt"),
        "paper": requirements("requirements-sidecars.txt") + requirements("requirements-paper.txt"),
        "test": requirements("requirements-test.txt"),
        "log": ["tensorboardX", "wandb"],
    },
)
