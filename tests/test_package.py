import subprocess
import sys

import pytest

import contrastive

PUBLIC = [
    "BECLR",
    "BlendedData",
    "CACR",
    "ConvEncoder",
    "CoreTuning",
    "CrossEntropy",
    "FineTune",
    "GroCo",
    "HardInfoNCE",
    "Hydra",
    "ISogCLR",
    "ImageData",
    "InfoNCE",
    "MLPEncoder",
    "TextEncoder",
    "MomentumEncoder",
    "MultiCrop",
    "NNCLR",
    "Objective",
    "PairData",
    "Pretrain",
    "PretrainPairs",
    "ProjectionHead",
    "SimCLRViews",
    "SepCLR",
    "Separate",
    "SogCLR",
    "SupCon",
    "SupervisedSepCLR",
    "TensorData",
    "TimmEncoder",
    "TorchvisionEncoder",
    "__version__",
    "check_data",
    "export_encoder",
    "extract_features",
    "functional",
    "gather",
    "knn_classify",
    "linear_probe",
    "load_classifier",
    "load_encoder",
    "register",
    "save_encoder",
    "stream_rows",
]


def test_public_names_are_these_and_all_are_there():
    assert set(contrastive.__all__) == set(PUBLIC)
    assert all(getattr(contrastive, name) is not None for name in PUBLIC)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"no attribute 'InfoNEC'; public names: .*InfoNCE"):
        _ = contrastive.InfoNEC


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, contrastive; print(*{'torch', 'numpy', 'lightning', 'faiss', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("package", ["objectives", "similarity", "views", "functional"])
def test_what_a_training_loop_needs_does_not_import_lightning(package):
    script = (
        f"import sys, contrastive.{package}; "
        "print(*{'lightning', 'faiss', 'sklearn', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
