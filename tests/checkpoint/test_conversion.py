"""Checkpoints of transformers against transformers itself, on small random models of every layout."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import Tensor

from memtok.checkpoint import LEFT_OUT, read_checkpoint
from memtok.errors import MemtokError
from tests.checkpoint.tiny_models import (
    CASES,
    DINOV3,
    IMAGE_SIZE,
    images,
    randomise,
    rewrite,
    save_transformers,
    tiny_timm,
    tiny_transformers,
    transformers_settings,
)

transformers = pytest.importorskip("transformers")

SIZES = [(IMAGE_SIZE, IMAGE_SIZE), (32, 32), (64, 64), (24, 72)]  # the last: as many patches, another grid


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case, saved by transformers."""
    root = tmp_path_factory.mktemp("transformers")
    return {case: save_transformers(tiny_transformers(case), root / case) for case in CASES}


@torch.no_grad()
def theirs(case: str, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens after the final norm (for CLIP the class token only) and the base answer, by transformers."""
    resize = {} if case.startswith(("dinov2", "registers", "dinov3")) else {"interpolate_pos_encoding": True}
    if case.startswith("siglip"):
        tower = model if hasattr(model, "encoder") else model.vision_model
        out = tower(pixels, **resize)
        return out.last_hidden_state, out.last_hidden_state.mean(1) if out.pooler_output is None else out.pooler_output
    if case.startswith("clip"):
        tower = model if case == "clip-vision" else model.vision_model
        pooled = tower(pixels, **resize).pooler_output
        projection = getattr(model, "visual_projection", None)
        return pooled[:, None], None if projection is None else projection(pooled)
    names = ("vit", "deit", "dinov2", "dinov2_with_registers", "beit")
    body = next((getattr(model, name) for name in names if hasattr(model, name)), model)
    if case.startswith("beit"):
        resize = {}  # it always resizes its tables
    tokens = body(pixels, **resize).last_hidden_state
    if case == "beit-masked":  # its norm stands outside
        tokens = model.layernorm(tokens)
    with_head = ("vit-classifier", "deit-classifier", "deit-teacher", "beit-classifier", "beit-everything")
    logits = model(pixels, **resize).logits if case in with_head else None
    return tokens, logits


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case: str, size: tuple[int, int], folders: dict[str, Path]) -> None:
    read = read_checkpoint(folders[case], image_size=size)
    pixels = images(*size)
    tokens, logits = theirs(case, tiny_transformers(case), pixels)
    with torch.no_grad():
        ours = read.vit.forward_features(pixels)
        answer = read.vit(pixels)
    torch.testing.assert_close(ours[:, : tokens.shape[1]], tokens, rtol=0, atol=1e-5)
    if logits is None or case.startswith("siglip"):
        assert isinstance(read.vit.head, torch.nn.Identity)
    if logits is not None:
        torch.testing.assert_close(answer, logits, rtol=0, atol=1e-5)


def test_the_way_of_resizing_shows(folders: dict[str, Path]) -> None:
    """Guards the test above: at a smaller size, antialiasing is far from transformers' own answer."""
    read = read_checkpoint(folders["vit"], image_size=32)
    other = read_checkpoint(folders["vit"])
    other.vit.set_input_size(img_size=(32, 32))  # timm's way
    with torch.no_grad():
        difference = read.vit.forward_features(images(32)) - other.vit.forward_features(images(32))
    assert difference.abs().max() > 1e-3


def state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def change_config(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_object_reads_like_its_folder_and_is_not_touched(
    case: str, folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_transformers(case).train()
    before, config = state(model), model.config.to_dict()
    capfd.readouterr()
    read, saved = read_checkpoint(model), read_checkpoint(folders[case])
    assert read.fingerprint == saved.fingerprint
    assert_same(state(read.vit), state(saved.vit))
    assert capfd.readouterr() == ("", "")  # transformers draws a progress bar when it saves
    assert read.source == f"object:{type(model).__name__}"
    assert (read.classes, read.left_out) == (saved.classes, saved.left_out)
    assert_same(state(model), before)
    assert model.config.to_dict() == config
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_module_names_of_transformers_5_are_read(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """`save_original_format=False` writes the names of the modules instead of those that files have always had."""
    model = tiny_transformers(case)
    model.save_pretrained(tmp_path)
    written = rewrite(tmp_path, lambda _: model.state_dict())
    assert read_checkpoint(written).fingerprint == read_checkpoint(folders[case]).fingerprint


@pytest.mark.parametrize("case", CASES)
def test_half_precision_and_prefix_do_not_change_the_fingerprint(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    expected = read_checkpoint(folders[case])
    prefixes = ("vit.", "deit.", "beit.", "dinov2.", "dinov2_with_registers.", "vision_model.")
    prefix = f"{json.loads((folders[case] / 'config.json').read_text())['model_type']}."
    prefix = "vision_model." if prefix.startswith(("clip", "siglip")) else prefix

    def halve(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.half() for name, tensor in tensors.items()}

    def toggle_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes the prefix away from all names, or puts it before those of the trunk."""
        if any(name.startswith(prefixes) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return {(name if name.startswith("pooler") else prefix + name): tensor for name, tensor in tensors.items()}

    # Without the prefix its two norms would have one name.
    for number, change in enumerate((halve,) if case == "beit-masked-token" else (halve, toggle_prefix)):
        folder = save_transformers(tiny_transformers(case), tmp_path / str(number))
        read = read_checkpoint(rewrite(folder, change))
        assert read.fingerprint == expected.fingerprint
        assert_same(state(read.vit), state(expected.vit))


def test_one_trunk_has_one_fingerprint_whatever_stands_on_it(tmp_path: Path) -> None:
    """The same weights, bare and under every head, in both libraries' layouts."""
    groups = (
        ("vit", "vit-classifier", "vit-masked"),
        ("deit", "deit-classifier", "deit-teacher"),
        ("dinov2", "dinov2-classifier"),
        ("registers", "registers-classifier"),
        ("clip-vision", "clip-projection", "clip", "clip-classifier"),
        ("siglip-vision", "siglip", "siglip-classifier"),
    )
    for cases in groups:
        models = [tiny_transformers(case, seed=number) for number, case in enumerate(cases)]
        trunk = models[0].base_model.state_dict()
        for model in models[1:]:
            names = ("vit", "deit", "dinov2", "dinov2_with_registers", "vision_model")
            body = next(getattr(model, name) for name in names if hasattr(model, name))
            missing, _ = body.load_state_dict(trunk, strict=False)
            assert set(missing) <= {"embeddings.mask_token"}
        read = [read_checkpoint(model) for model in models]
        assert len({checkpoint.fingerprint for checkpoint in read}) == 1, cases


def test_fingerprint_is_that_of_timms_own_file_of_the_weights() -> None:
    """timm's names for the same trunks: distilled DeiT, registers folded into the class token, gated MLP, CLIP."""
    twins = {
        "deit": tiny_timm(kind=VisionTransformerDistilled, mlp_ratio=1.5),
        "registers": tiny_timm(mlp_ratio=2, reg_tokens=3, no_embed_class=True, init_values=1e-5),
    }
    for case, twin in twins.items():
        config = {"deit": dict(layer_norm_eps=1e-6), "registers": {}}[case]
        read = read_checkpoint(tiny_transformers(case, seed=3, **config))
        tensors = read.vit.state_dict()
        if case == "deit":
            tensors["dist_token"] = tensors.pop("reg_token")
        twin.load_state_dict({**twin.state_dict(), **tensors})
        assert read_checkpoint(twin).fingerprint == read.fingerprint


def test_dinov3_without_and_with_biases_of_zero_is_one_trunk(tmp_path: Path) -> None:
    """transformers' files of the distilled DINOv3 have these biases, timm's files come with and without them."""
    model = tiny_transformers("dinov3")
    biased = read_checkpoint(model)
    with torch.no_grad():
        for layer in model.model.layer:
            layer.attention.q_proj.bias.zero_()
            layer.attention.v_proj.bias.zero_()
    read = read_checkpoint(model)
    settings = dict(kind=Eva, mlp_ratio=1.5, norm_layer=partial(LayerNorm, eps=1e-5), num_reg_tokens=2)
    for qkv_bias in (False, True):
        twin = tiny_timm(**{**DINOV3, **settings, "qkv_bias": qkv_bias, "dynamic_img_size": True})
        tensors = read.vit.state_dict()
        twin.load_state_dict({name: tensors.get(name, tensor) for name, tensor in twin.state_dict().items()})
        assert read_checkpoint(twin).fingerprint == read.fingerprint != biased.fingerprint
        with torch.no_grad():
            torch.testing.assert_close(twin.forward_features(images()), read.vit.forward_features(images()))


@pytest.mark.parametrize("settings", [dict(query_bias=False), dict(proj_bias=False), dict(mlp_bias=False)])
def test_dinov3_with_biases_that_timm_does_not_have(settings: dict[str, Any]) -> None:
    with pytest.raises(MemtokError, match="bias"):
        read_checkpoint(tiny_transformers("dinov3", **settings))


def test_registers_fold_the_class_position(folders: dict[str, Path]) -> None:
    model, vit = tiny_transformers("registers"), read_checkpoint(folders["registers"]).vit
    embeddings = model.embeddings
    assert torch.equal(vit.cls_token, embeddings.cls_token + embeddings.position_embeddings[:, :1])
    assert vit.pos_embed.shape == (1, 36, 32)
    assert vit.no_embed_class


@pytest.mark.parametrize(
    ("case", "left_out"),
    [
        ("vit", {"pooler.dense.bias", "pooler.dense.weight"}),
        ("vit-classifier", set()),
        ("vit-masked", {"decoder.0.bias", "decoder.0.weight", "vit.embeddings.mask_token"}),
        ("deit", {"pooler.dense.bias", "pooler.dense.weight"}),
        ("deit-teacher", set()),
        ("dinov2", {"embeddings.mask_token"}),
        ("dinov2-classifier", {"classifier.bias", "classifier.weight", "dinov2.embeddings.mask_token"}),
        ("clip-projection", set()),
        ("clip-classifier", {"classifier.bias", "classifier.weight"}),
    ],
)
def test_left_out_tensors_are_named(case: str, left_out: set[str], folders: dict[str, Path]) -> None:
    assert set(read_checkpoint(folders[case]).left_out) == left_out


def test_text_tower_is_left_out_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    left_out = read_checkpoint(folders["clip"]).left_out
    assert {name.split(".")[0] for name in left_out} == {"text_model", "text_projection", "logit_scale"}
    siglip = read_checkpoint(folders["siglip"]).left_out
    assert {name.split(".")[0] for name in siglip} == {"text_model", "logit_scale", "logit_bias"}
    counted = {"vision_model.embeddings.position_ids": torch.arange(37)[None]}  # older versions wrote it
    folder = save_transformers(tiny_transformers("clip"), tmp_path)
    read = read_checkpoint(rewrite(folder, lambda tensors: {**tensors, **counted}))
    assert set(read.left_out) == {*left_out, *counted}


def test_class_names(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "elk"]
    labels = dict(id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)})
    model = tiny_transformers("vit-classifier", **labels)
    folder = save_transformers(model, tmp_path)
    assert read_checkpoint(folder).classes == tuple(names)
    assert read_checkpoint(change_config(folder, id2label={"0": "ant"})).classes == ()
    assert read_checkpoint(tiny_transformers("dinov2-classifier", **labels)).classes == ()  # its head is left out


@pytest.mark.parametrize(
    "activation",
    [
        "gelu",
        "gelu_python",
        "gelu_new",
        "gelu_fast",
        "gelu_accurate",
        "gelu_pytorch_tanh",
        "quick_gelu",
        "relu",
        "silu",
    ],
)
def test_activations(activation: str) -> None:
    model = tiny_transformers("vit", hidden_act=activation)
    with torch.no_grad():
        ours = read_checkpoint(model).vit.forward_features(images())
        torch.testing.assert_close(ours, model(images()).last_hidden_state, rtol=0, atol=1e-5)


def test_image_that_is_not_square(tmp_path: Path) -> None:
    settings = dict(image_size=[24, 72], intermediate_size=48)
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**transformers_settings(**settings))))
    folder = save_transformers(model, tmp_path / "vit")
    with torch.no_grad():
        ours = read_checkpoint(folder).vit.forward_features(images(24, 72))
        torch.testing.assert_close(ours, model(images(24, 72)).last_hidden_state, rtol=0, atol=1e-5)
    with pytest.raises(MemtokError, match="square grid"):  # transformers itself would mix rows and columns up
        read_checkpoint(folder, image_size=48)
    with pytest.raises(MemtokError, match="square image_size"):
        read_checkpoint(
            change_config(save_transformers(tiny_transformers("dinov2"), tmp_path / "d"), image_size=[24, 96])
        )


def test_clip_settings_may_be_repeated_or_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    """Old files of openai/clip hold the vision settings twice, and leave out what is as usual."""
    folder = save_transformers(tiny_transformers("clip"), tmp_path)
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    usual = ("hidden_act", "layer_norm_eps", "num_channels")
    vision = {key: value for key, value in vision.items() if key not in usual}
    change_config(folder, vision_config={**vision, "patch_size": 4}, vision_config_dict=vision)
    assert read_checkpoint(folder).fingerprint == read_checkpoint(folders["clip"]).fingerprint


def drop(name: str) -> Any:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def put(name: str, *shape: int) -> Any:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("vit", drop("embeddings.cls_token"), "embeddings.cls_token, found none"),
        (
            "vit",
            drop("encoder.layer.1.attention.attention.key.bias"),
            "layer.1.attention.attention.key.bias, found none",
        ),
        ("vit", put("encoder.layer.2.output.dense.bias", 32), "found encoder.layer.2.output.dense.bias"),
        ("vit", put("adapter.weight", 3), "found adapter.weight"),
        ("vit", put("classifier.weight", 3, 32), "classifier.bias, found none"),
        ("vit", put("layernorm.weight", 31), r"layernorm.weight of shape \(32,\), found \(31,\)"),
        ("vit", put("embeddings.position_embeddings", 1, 17, 32), r"shape \(1, 37, 32\), found \(1, 17, 32\)"),
        ("vit", put("encoder.layer.0.attention.attention.query.weight", 31, 32), r"query.weight \(31, 32\)"),
        ("vit", lambda tensors: {**tensors, "layernorm.weight": torch.zeros(32, dtype=torch.int8)}, "torch.int8"),
        ("vit", put("vit.layernorm.weight", 32), "twice"),
        ("registers", put("embeddings.position_embeddings", 37, 32), "found .37, 32."),
        ("registers", put("embeddings.register_tokens", 1, 2, 32), r"found \(1, 2, 32\)"),
        ("deit-teacher", drop("distillation_classifier.bias"), "distillation_classifier.bias, found none"),
        ("clip", drop("vision_model.pre_layrnorm.weight"), "pre_layrnorm.weight, found none"),
        ("siglip", drop("vision_model.head.probe"), "head.probe, found none"),
        ("siglip", drop("vision_model.head.attention.in_proj_bias"), "head.attention.in_proj_bias, found none"),
        ("siglip", put("vision_model.head.attention.in_proj_weight", 33, 32), r"head.attention.* of shape"),
        ("clip", drop("visual_projection.weight"), None),
    ],
)
def test_every_tensor_counts(case: str, change: Any, message: str | None, tmp_path: Path) -> None:
    folder = rewrite(save_transformers(tiny_transformers(case), tmp_path), change)
    if message is None:  # a CLIP without projection is a bare tower
        assert isinstance(read_checkpoint(folder).vit.head, torch.nn.Identity)
        return
    with pytest.raises(MemtokError, match=message) as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "swin"}, "'swin'"),
        ({"model_type": None}, "'architecture' .timm. or 'model_type'"),
        ({"hidden_act": "gelu_10"}, "'gelu_10'"),
        ({"num_channels": 1}, "num_channels = 1"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 5}, "share evenly"),
        ({"patch_size": 0}, "patch_size"),
        ({"intermediate_size": []}, "settings of a vit model"),
        ({"num_hidden_layers": 3}, "encoder.layer.2"),
        ({"num_hidden_layers": 1}, "unknown tensors: 16"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = change_config(save_transformers(tiny_transformers("vit"), tmp_path), **settings)
    with pytest.raises(MemtokError, match=message) as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_unknown_transformers_object_is_refused_by_name() -> None:
    config = transformers.ViTMSNConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(MemtokError, match="'vit_msn'"):
        read_checkpoint(transformers.ViTMSNModel(config))


def test_every_rule_of_left_out_is_needed(folders: dict[str, Path]) -> None:
    """Each reason to leave something out is met by a checkpoint of these tests."""
    left_out = {name for folder in folders.values() for name in read_checkpoint(folder).left_out}
    elsewhere = {
        r"(vision_model\.)?embeddings\.position_ids",
        r"(.*\.)?relative_position_index",
        "mask_token",
        r"pre_logits\..*",
    }
    for rule in LEFT_OUT:
        assert rule.pattern in elsewhere or any(re.fullmatch(rule.pattern, name) for name in left_out), rule


@pytest.mark.parametrize("size", [224, 56])
def test_dinov2_small(size: int, shared: Path) -> None:
    """Real weights in half precision, at two sizes that are not their own."""
    folder = shared / "models" / "dinov2-small"
    if not folder.is_dir():
        pytest.skip("needs shared/models/dinov2-small")
    read = read_checkpoint(folder, image_size=size)
    model = transformers.Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(images(size)).last_hidden_state
        ours = read.vit.forward_features(images(size))
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert read.preprocessing.image_size == (size, size)
    assert read.left_out == ("embeddings.mask_token",)
    assert read_checkpoint(folder).preprocessing.image_size == (224, 224)  # as the processor file says, not 518


def test_files_of_transformers_4(shared: Path) -> None:
    folder = shared / "fixtures" / "legacy" / "base"
    if not folder.is_dir():
        pytest.skip("needs shared/fixtures/legacy")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    read = read_checkpoint(folder)
    with torch.no_grad():
        torch.testing.assert_close(read.vit(images(32)), model(images(32)).logits, rtol=0, atol=1e-5)
    assert read.preprocessing_origin.startswith("usual for vit")
    assert len(read.classes) == 7
