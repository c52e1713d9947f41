"""A network as an ONNX file, held against PyTorch's logits before it is handed out."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["check_installed", "write_onnx"]

NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Of the largest logit. Seven networks lay below 5e-6; another operator is far above.
LARGEST = 1e-3


def check_installed() -> None:
    """Refuse `--onnx` before any work where a package is missing.

    Raises:
        ValueError: With the command that installs them.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(NEEDED)}")


def write_onnx(network: nn.Module, images: Tensor, file: Path) -> tuple[float, float]:
    """Write a network as ONNX, and run it with onnxruntime beside PyTorch.

    Args:
        network: In eval mode, on the CPU.
        images: ``(n, 3, height, width)``, normalised, at least two; the file takes any number of
            images of that size.
        file: What to write.

    Returns:
        The largest difference of an output over these images, and the largest output.

    Raises:
        ValueError: If the network cannot be exported, or answers otherwise.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own code
            torch.onnx.export(
                network,
                (images[:2],),
                str(file),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--onnx: torch cannot export this network ({reason})") from None
    finally:
        logger.setLevel(level)
    return _compare(network, images, file)


def _compare(network: nn.Module, images: Tensor, file: Path) -> tuple[float, float]:
    """All at once and the first alone, so that the number of images is shown to be free."""
    from onnxruntime import InferenceSession

    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    differences = []
    with torch.inference_mode():
        for batch in (images, images[:1]):
            expected = network(batch).numpy()
            (found,) = session.run(None, {"images": batch.numpy()})
            differences.append(float(np.abs(found - expected).max()))
            largest = float(np.abs(expected).max())
            if not differences[-1] <= LARGEST * max(largest, 1e-6):
                raise ValueError(
                    f"--onnx: answers differ by {differences[-1]:.2g} where the largest is "
                    f"{largest:.2g}; onnxruntime computes this network otherwise"
                )
    return max(differences), largest
