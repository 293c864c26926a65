"""Loading of speech encoders from folders and from the hub."""

import json
import logging
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from small_encoders import small_extractor, small_model, write_small

from icefall_kd.teachers import build_teacher, build_teachers

NOISE = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def folder(tmp_path):
    """A small WavLM that a test may damage."""
    return write_small(tmp_path / "model", "wavlm_base")


def build(folder, **options):
    return build_teacher("hugging_face", folder, "t", **options)


def embed(teacher):
    return teacher.forward(NOISE, torch.tensor([8000]))["t"].x


def fingerprint(teacher):
    (output,) = teacher.outputs.values()
    return output.fingerprint


def save_bin(folder, state):
    """Replace the weights by a pytorch_model.bin."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["wav2vec2_base", "hubert_large", "whisper"])
def test_a_checkpoint_with_a_head_equals_the_base_model(kind, tmp_path):
    import transformers

    heads = {
        "wav2vec2_base": transformers.Wav2Vec2ForCTC,
        "hubert_large": transformers.HubertForCTC,
        "whisper": transformers.WhisperForConditionalGeneration,
    }
    bare = small_model(kind)
    bare.save_pretrained(tmp_path / "bare")
    full = heads[kind](bare.config)
    setattr(full, full.base_model_prefix, bare)
    full.save_pretrained(tmp_path / "full")
    for name in ("bare", "full"):
        small_extractor(kind).save_pretrained(tmp_path / name)
    expected = embed(build(tmp_path / "bare"))
    torch.testing.assert_close(embed(build(tmp_path / "full")), expected)


@pytest.mark.parametrize("kind", ["wav2vec2_large", "data2vec", "whisper"])
def test_sharded_and_bin_weights_equal_one_safetensors_file(kind, tmp_path):
    single = write_small(tmp_path / "single", kind)
    sharded = Path(shutil.copytree(single, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    small_model(kind).save_pretrained(sharded, max_shard_size="50KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    pickled = Path(shutil.copytree(single, tmp_path / "bin"))
    save_bin(pickled, small_model(kind).state_dict())
    expected = embed(build(single))
    for other in (sharded, pickled):
        torch.testing.assert_close(embed(build(other)), expected)


def test_both_namings_of_the_positional_convolution_load(folder):
    """torch 1.13 and torch 2 name its normalised weight differently."""
    expected = embed(build(folder))
    old = ("weight_g", "weight_v")
    new = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    state = small_model("wavlm_base").state_dict()
    for source, target in ((old, new), (new, old)):
        renamed = {}
        for key, value in state.items():
            for a, b in zip(source, target):
                key = key.replace(a, b)
            renamed[key] = value
        assert any(target[0] in key for key in renamed)
        save_bin(folder, renamed)
        torch.testing.assert_close(embed(build(folder)), expected)


def test_loading_logs_and_prints_nothing(folder, caplog, capfd):
    caplog.set_level(logging.INFO)
    state = small_model("wavlm_base").state_dict()
    save_bin(folder, {**state, "lm_head.weight": torch.zeros(3, 3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(folder)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_missing_encoder_weights_are_named(folder):
    state = small_model("wavlm_base").state_dict()
    lost = [k for k in state if k.startswith("encoder.layers.1.attention.q_proj")]
    save_bin(folder, {k: v for k, v in state.items() if k not in lost})
    with pytest.raises(ValueError, match=f"2 weights .* missing .*{lost[0]}"):
        build(folder)
    save_bin(folder, {f"w2v_model.{k}": v for k, v in state.items()})
    with pytest.raises(ValueError, match="weights .* missing"):
        build(folder)


def test_weights_of_pre_training_and_of_the_decoder_may_be_missing(tmp_path):
    folder = write_small(tmp_path / "wavlm", "wavlm_base")
    expected = embed(build(folder))
    state = small_model("wavlm_base").state_dict()
    del state["masked_spec_embed"]
    save_bin(folder, state)
    torch.testing.assert_close(embed(build(folder)), expected)
    folder = write_small(tmp_path / "whisper", "whisper")
    expected = embed(build(folder))
    state = small_model("whisper").state_dict()
    save_bin(folder, {k: v for k, v in state.items() if k.startswith("encoder.")})
    torch.testing.assert_close(embed(build(folder)), expected)


def test_weights_of_another_shape_and_damaged_files_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="model: cannot load the weights"):
        build(folder)
    state = small_model("wavlm_base").state_dict()
    state["encoder.layer_norm.weight"] = torch.ones(7)
    save_bin(folder, state)
    with pytest.raises(ValueError, match=r"(?s)cannot load.*encoder.layer_norm"):
        build(folder)


class FolderMaker:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


def test_a_bin_that_would_run_code_is_refused(folder, tmp_path):
    save_bin(folder, {"x": FolderMaker(tmp_path / "made")})
    with pytest.raises(ValueError, match="cannot load"):
        build(folder)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(FolderMaker(tmp_path / "made")))
    assert (tmp_path / "made").exists(), "the file would have run code"


@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "model.safetensors"]
)
def test_a_missing_file_is_named_with_a_remedy(folder, file):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}.*save_pretrained"):
        build(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_small(tmp_path / "m", "wavlm_base")
    (folder / "model.safetensors").unlink()
    small_model("wavlm_base").save_pretrained(folder, max_shard_size="50KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"{lost.name} is missing"):
        build(folder)


def test_another_type_of_model_is_refused(tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json is missing"):
        build(tmp_path)
    small_extractor("wavlm_base").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'bert' .*Available: .*wavlm"):
        build(tmp_path)


def test_a_teacher_of_another_sampling_rate_is_refused(folder):
    note = json.loads((folder / "preprocessor_config.json").read_text())
    note["sampling_rate"] = 8000
    (folder / "preprocessor_config.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match="preprocessor_config.json.*8000.*16000"):
        build(folder)


def test_an_unknown_layer_is_refused_with_the_available_ones(folder):
    with pytest.raises(ValueError, match="no layer 4.*0 to 3"):
        build(folder, layers=[1, 4])


def test_without_transformers_the_error_names_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers .*4.48.3"):
        build(folder)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Make the hub unreachable; return the folder of its cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["someone/a-model", "someone/a:model?"])
def test_a_name_that_the_hub_does_not_provide_is_refused(name, no_network):
    with pytest.raises(FileNotFoundError, match="(?s)someone/a.*network"):
        build(name)


def test_a_path_is_not_downloaded_from_the_hub(tmp_path):
    for name in (tmp_path / "absent", "./absent", "a/b/absent", "absent"):
        with pytest.raises(FileNotFoundError, match="absent is not a.*--model-dir"):
            build(name)


def write_to_cache(hub, name, commit, branch="main", **options):
    """Write a small model into the cache of huggingface_hub."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    return write_small(repository / "snapshots" / commit, "hubert_base", **options)


def test_the_fingerprint_of_a_hub_model_has_its_name_and_commit(no_network):
    first, second = "1" * 40, "2" * 40
    folder = write_to_cache(no_network, "someone/a-model", first)
    write_to_cache(no_network, "someone/a-model", second, branch="fixed", seed=1)
    teacher = build("someone/a-model")
    assert fingerprint(teacher)["hub_name"] == "someone/a-model"
    assert fingerprint(teacher)["commit"] == first
    torch.testing.assert_close(embed(teacher), embed(build(folder)))
    other = build("someone/a-model", revision="fixed")
    assert fingerprint(other)["commit"] == second
    assert not torch.allclose(embed(other), embed(teacher))
    with pytest.raises(ValueError, match="revision: "):
        build(folder, revision="main")


def test_the_path_does_not_change_the_fingerprint(folder, tmp_path):
    before = fingerprint(build(folder))
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert fingerprint(build(moved)) == before
    assert str(tmp_path) not in json.dumps(before)


def test_options_and_weights_change_the_fingerprint(folder, tmp_path):
    config = small_model("wavlm_base").config
    eps = write_small(
        tmp_path / "eps", "wavlm_base", layer_norm_eps=2 * config.layer_norm_eps
    )
    prints = [
        fingerprint(build(folder)),
        fingerprint(build(folder, layers=2)),
        fingerprint(build(folder, layers=[2, 3], layer_weights=[1, 1])),
        fingerprint(build(folder, layers=[2, 3], layer_weights=[1, 2])),
        fingerprint(build(folder, dtype="bf16")),
        fingerprint(build(folder, max_window=20)),
        fingerprint(build(eps)),
        fingerprint(build(write_small(tmp_path / "seed", "wavlm_base", seed=1))),
    ]
    texts = [json.dumps(p, sort_keys=True) for p in prints]
    assert len(set(texts)) == len(texts)
    assert prints[0] == fingerprint(build(folder, layers=3, max_window=40))
    assert prints[0]["layers"] == [3] and prints[0]["dtype"] == "float32"


def test_the_fingerprint_of_a_layer_does_not_depend_on_other_layers(folder):
    few, many = build(folder, layers=[1, 2]), build(folder, layers=[2, 0, 3])
    assert few.outputs["t_layer2"].fingerprint == many.outputs["t_layer2"].fingerprint


def test_context_and_bucket_change_the_fingerprint_of_a_whisper(tmp_path):
    folder = write_small(tmp_path, "whisper")
    prints = [
        json.dumps(fingerprint(build(folder, **options)), sort_keys=True)
        for options in ({}, {"context": 2.0}, {"bucket": 1.0}, {"max_window": 5.0})
    ]
    assert len(set(prints)) == 4


def test_several_teachers_are_built_from_descriptions(folder):
    described = {
        "a": {"family": "hugging_face", "model_dir": folder, "num_threads": 1},
        "b": {"family": "hugging_face", "model_dir": folder, "layers": [0, -1]},
    }
    teachers = build_teachers(described)
    assert [list(t.outputs) for t in teachers] == [["a"], ["b_layer0", "b_layer3"]]
    with pytest.raises(ValueError, match="teacher 'a': layers: 'x'"):
        build_teachers({"a": {**described["a"], "layers": "x"}})
