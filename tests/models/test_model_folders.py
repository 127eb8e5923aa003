"""Model folders: written and read back bit for bit, on one device or a mesh, and refused with everything that is wrong."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tunix_lab.errors import UserError
from tunix_lab.models.catalog import load_model, save_model
from tunix_lab.models.config import LinearRope
from tunix_lab.models.gemma3.params_safetensors import create_model_from_safe_tensors
from tunix_lab.models.sharding import make_mesh, place_model
from tunix_lab.sft.train_state import digest, flat_params


@pytest.fixture(scope="module")
def model(tiny_decoder):
    return tiny_decoder(seed=3, rope_scaling=LinearRope(8.0))


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    save_model(flat_params(nnx.state(model)), model.config, folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def digest_of(model):
    return digest(flat_params(nnx.state(model)))


def test_roundtrip_is_bit_exact(model, folder, tmp_path):
    loaded = load_model(folder)
    assert loaded.config == model.config
    assert digest_of(loaded) == digest_of(model)
    save_model(flat_params(nnx.state(loaded)), loaded.config, tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_roundtrip_of_bfloat16(tiny_decoder, tmp_path):
    model = tiny_decoder(dtype="bfloat16", param_dtype="bfloat16")
    save_model(flat_params(nnx.state(model)), model.config, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config and digest_of(loaded) == digest_of(model)


def test_layout_of_the_hub(folder, model):
    tensors = load_file(folder / "model.safetensors")
    attention = "model.layers.2.self_attn"
    assert len(tensors) == 2 + 3 * 13
    assert tensors[f"{attention}.q_proj.weight"].shape == (4 * 8, 16)
    assert tensors[f"{attention}.v_proj.weight"].shape == (2 * 8, 16)
    assert tensors[f"{attention}.o_proj.weight"].shape == (16, 4 * 8)
    assert tensors["model.layers.2.mlp.down_proj.weight"].shape == (16, 24)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_dtypes_asked_for(folder, model):
    assert create_model_from_safe_tensors(folder, model.config, dtype="bfloat16").head().dtype == jnp.bfloat16
    loaded = load_model(folder, dtype="bfloat16", param_dtype="float32")
    assert loaded.head().dtype == jnp.bfloat16 and loaded.embedder.input_embedding.get_value().dtype == jnp.float32


def test_several_files_are_one_model(folder, model):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[:20]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[20:]}, folder / "model-00002-of-00002.safetensors")
    assert digest_of(load_model(folder)) == digest_of(model)


@pytest.mark.parametrize(("fsdp", "tp"), [(2, 4), (4, 2)])
def test_loading_onto_a_mesh(folder, model, fsdp, tp):
    mesh = make_mesh(fsdp, tp)
    loaded = load_model(folder, mesh)
    assert digest_of(loaded) == digest_of(model)
    gate = loaded.layers[0].mlp.gate_proj.w.get_value()  # [embed 16, hidden 24] over fsdp × tp
    assert gate.sharding.mesh == mesh and gate.addressable_shards[0].data.shape == (16 // fsdp, 24 // tp)
    key_value = loaded.layers[0].attn.kv_einsum.w.get_value()  # 2 key heads: whole on 4 devices, split on 2
    assert key_value.addressable_shards[0].data.shape == (2, 2 if tp == 4 else 1, 16 // fsdp, 8)
    placed = load_model(folder)
    place_model(placed, mesh)
    assert placed.layers[0].mlp.gate_proj.w.get_value().sharding == gate.sharding


def test_missing_and_unexpected_tensors_are_named_together(folder):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.extra.weight"] = np.zeros(3, np.float32)

    change_tensors(folder, change)
    with pytest.raises(UserError) as error:
        load_model(folder)
    lines = str(error.value).splitlines()
    assert str(folder) in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        "missing model.layers.1.mlp.up_proj.weight",
        "missing model.norm.weight",
        "unexpected model.layers.0.extra.weight",
    ]


def test_misshapen_tensors_are_named_together(folder):
    def change(tensors):
        for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
            tensors[name] = tensors[name][..., :-1]

    change_tensors(folder, change)
    with pytest.raises(UserError) as error:
        load_model(folder)
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert name in str(error.value)
    assert "shape (15,), expected (16,)" in str(error.value)


def test_key_and_value_of_different_shapes_are_named(folder):
    def change(tensors):
        name = "model.layers.0.self_attn.v_proj.weight"
        tensors[name] = tensors[name][:8]

    change_tensors(folder, change)
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.v_proj\.weight: shape \(8, 16\), expected \(16, 16\)"):
        load_model(folder)


def test_unreadable_folders(folder, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        load_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_model(folder)


def test_config_without_a_field_is_named(folder):
    stored = json.loads((folder / "config.json").read_text())
    del stored["hidden_size"]
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="config.json: field 'hidden_size' is missing"):
        load_model(folder)
