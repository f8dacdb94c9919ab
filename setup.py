"""vljax: Video-LLaMA in JAX/Flax."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
REPOSITORY = "https://github.com/vljax/vljax"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vljax/__init__.py").read_text()).group(1)

BASE = [
    "jax>=0.10",
    "flax>=0.12.7",  # the first for jax 0.10
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "ml_dtypes>=0.5",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "av>=18",
    "pillow>=11",
]
DATA = [
    "tensorflow-cpu>=2.21",
    "tensorflow-datasets>=4.9.10",
    "matplotlib>=3.10",
    "tensorboardX>=2.6",
]
BEAM = ["apache-beam>=2.77"]  # to prepare data sets on an engine
SERVE = [
    "starlette>=1.0",
    "uvicorn>=0.40",
    "python-multipart>=0.0.20",
    "prometheus_client>=0.23",
]
# tokenizer.json files, GGUF files, and where all such files are
CONVERT = ["tokenizers>=0.22", "gguf>=0.17", "huggingface_hub>=1.0"]
CPU = ["numba>=0.68"]  # compiles products in bfloat16
PARITY = ["torch==2.13.0", "transformers>=5"]  # what the tests compare with, if it is there
# What `vljax bench data` compares with.
BENCH = ["torch==2.13.0", "torchaudio>=2.11", "decord==0.6.0"]
DEV = [
    "pytest>=9",
    "pytest-xdist>=3.8",
    "ruff>=0.14",
    "mypy>=1.18",
    "chex>=0.1.92",
    "librosa>=0.11",
    "httpx>=0.28",  # asks the server
    "build>=1.2",
    "setuptools>=77",  # what the wheel is built with
    "openai>=2",  # its client, which the server is tested with
    "selenium>=4.30",  # drives a browser on its page, where there is one
    "nbclient>=0.10",  # runs the notebooks of colab/
    "nbformat>=5.10",
    "ipykernel>=7",
]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings-python>=1.18"]
SCHEMAS = ["kubernetes-validate>=1.33", "kubeflow-trainer-api>=2"]  # of launch/gke's manifests


def description() -> str:
    """The README, with links that work where its files are not."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", text)


setup(
    name="vljax",
    version=VERSION,
    description="Video-LLaMA in JAX/Flax: exact, sharded, and trained end to end at tiny size",
    long_description=description(),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    license="Apache-2.0",
    keywords="Video-LLaMA video audio multimodal language-model JAX Flax TPU sharding",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["vljax", "vljax.*"]), "vljax.configs"],
    package_dir={"vljax.configs": "configs"},
    package_data={"vljax": ["py.typed", "weights/tiny/**/*", "samples/*", "serve/page/*"]},
    install_requires=BASE,
    extras_require={
        "data": DATA,
        "beam": DATA + BEAM,
        "convert": CONVERT,
        "serve": SERVE,
        "parity": PARITY,
        "bench": BENCH,
        "docs": DOCS,
        "cpu": CPU,
        "dev": DATA + CONVERT + SERVE + CPU + DOCS + DEV + SCHEMAS,
        # Compilers for machines that are not here, and matplotlib for the report.
        "plan-tpu": ["libtpu>=0.0.42", "matplotlib>=3.10"],
        "plan-gpu": ["jax-cuda12-plugin>=0.10", "matplotlib>=3.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],
    },
    entry_points={
        "console_scripts": ["vljax=vljax.cli.main:main"],
        "lmms_eval.models": ["vljax=vljax.evaluate.lmms_eval:manifest"],
    },
)
