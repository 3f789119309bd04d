# SPDX-License-Identifier: Apache-2.0
"""J9: averages of checkpoints equal averages of their tensors."""

import numpy as np
import pytest

import tiny_colbert
from weft import encoders
from weft.errors import IndexExistsError, InvalidArgumentError, NotFoundError


@pytest.fixture
def folders(tmp_path):
    return [tiny_colbert.write_stanford(tmp_path / f"m{i}", seed=i) for i in range(3)]


def tensors(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("weights", [None, [1, 2, 5], [0.5, -0.25, 1.0]])
def test_weighted_means(tmp_path, folders, weights):
    out = encoders.average_checkpoints(folders, tmp_path / "out", weights=weights)
    shares = [1, 1, 1] if weights is None else weights
    found, parts = tensors(out), [tensors(folder) for folder in folders]
    assert found.keys() == parts[0].keys()
    for name, value in found.items():
        expected = np.zeros(value.shape)
        for share, part in zip(shares, parts, strict=True):
            expected += share * part[name].astype(np.float64)
        np.testing.assert_allclose(value, expected / sum(shares), rtol=1e-6, atol=1e-7)
        assert value.dtype == parts[0][name].dtype
    assert not np.allclose(found["linear.weight"], parts[0]["linear.weight"])
    assert encoders.load(out, device="cpu").info.recipe == "stanford"
    assert (out / "vocab.txt").read_text() == (folders[0] / "vocab.txt").read_text()


def test_half_precision_stays(tmp_path, folders):
    import torch
    from safetensors.torch import load_file, save_file

    for folder in folders:
        path = folder / "model.safetensors"
        held = {name: value.bfloat16() for name, value in load_file(path).items()}
        save_file({**held, "position_ids": torch.arange(4)}, path, metadata={"format": "pt"})
    out = encoders.average_checkpoints(folders, tmp_path / "out")
    found = load_file(out / "model.safetensors")
    parts = [load_file(folder / "model.safetensors") for folder in folders]
    expected = sum(part["linear.weight"].double() for part in parts) / 3
    assert found["linear.weight"].dtype == torch.bfloat16
    assert torch.equal(found["linear.weight"], expected.bfloat16())
    assert found["position_ids"].tolist() == [0, 1, 2, 3]
    save_file({**parts[1], "position_ids": torch.ones(4, dtype=torch.long)},
              folders[1] / "model.safetensors")  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="position_ids holds whole numbers"):
        encoders.average_checkpoints(folders, tmp_path / "other")


def test_layers_in_folders_of_their_own(tmp_path):
    one = tiny_colbert.write_pylate(tmp_path / "one", dims=(16, 8))
    encoders.average_checkpoints([one, one], tmp_path / "out")
    query = ["the key"]
    rows = [
        encoders.load(f, device="cpu").encode_queries(query)[0] for f in (one, tmp_path / "out")
    ]
    np.testing.assert_array_equal(rows[0].values, rows[1].values)


def test_other_checkpoints_are_refused(tmp_path, folders):
    from safetensors.numpy import save_file

    wider = tiny_colbert.write_stanford(tmp_path / "wider", dim=24)
    with pytest.raises(InvalidArgumentError, match=r"linear\.weight is \(24, 32\), expected \(16"):
        encoders.average_checkpoints([folders[0], wider], tmp_path / "out")
    held = tensors(folders[1])
    held.pop("linear.weight")
    save_file(held, folders[1] / "model.safetensors")
    for order in ((0, 1), (1, 0)):
        with pytest.raises(InvalidArgumentError, match=r"m1: no tensor linear\.weight, which .*m0"):
            encoders.average_checkpoints([folders[i] for i in order], tmp_path / "out")
    with pytest.raises(InvalidArgumentError, match="expected 2 numbers"):
        encoders.average_checkpoints(folders[::2], tmp_path / "out", weights=[1])
    with pytest.raises(InvalidArgumentError, match="with a sum that is not 0"):
        encoders.average_checkpoints(folders[::2], tmp_path / "out", weights=[1, -1])
    with pytest.raises(IndexExistsError, match="m2: exists already"):
        encoders.average_checkpoints(folders[::2], folders[2])
    with pytest.raises(NotFoundError, match=r"no \.safetensors file"):
        encoders.average_checkpoints([tmp_path / "nothing"], tmp_path / "out")
    (folders[2] / "pytorch_model.bin").touch()
    with pytest.raises(InvalidArgumentError, match=r"\.bin: cannot be averaged"):
        encoders.average_checkpoints(folders[::2], tmp_path / "out")
    assert not (tmp_path / "out").exists()
