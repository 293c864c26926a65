"""Hugging Face teachers: small speech encoders with random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_encoders import KINDS, POSITIONS, WAVE_KINDS, write_small
from torch.nn.utils.rnn import pad_sequence

from icefall_kd.core.frames import ENCODER_FIRST_CENTRE, align_frames
from icefall_kd.teachers import build_teacher
from icefall_kd.teachers.base import choose_layers
from icefall_kd.teachers.hugging_face_load import load_encoder
from icefall_kd.teachers.wave_encoder import WaveEncoder

DURATIONS = (12.0, 0.03, 0.4, 1.0, 2.71828, 5.3, 5.3, 4.6, 10.1, 1.2, 0.032)  # s
EVERY = [0, 1, 2, 3]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Kind -> folder of a small random model."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_small(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def waves(prompts):
    """Real speech of 0.03 to 12 s: list of (S,) float32."""
    speech = torch.cat(prompts)
    starts = range(0, 16000 * len(DURATIONS), 16000)
    return [speech[s : s + int(16000 * d)] for s, d in zip(starts, DURATIONS)]


def build(folder, **options):
    return build_teacher("hugging_face", folder, "t", **options)


def run(teacher, waves):
    lens = torch.tensor([len(w) for w in waves])
    return teacher.forward(pad_sequence(waves, batch_first=True), lens)


def embed(teacher, waves):
    """Return field -> list of (T, D), valid frames only."""
    return {
        field: [x[:n] for x, n in zip(output.x, output.lens.tolist())]
        for field, output in run(teacher, waves).items()
    }


def reference(folder, wave):
    """Return all hidden states (T, D) that transformers computes for one wave."""
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if model.config.model_type == "whisper":
        model = model.get_encoder()
    (values,) = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")[
        extractor.model_input_names[0]
    ]
    with torch.no_grad():
        output = model(values[None], output_hidden_states=True)
    # Since transformers 5 the last of hidden_states is not normalised.
    return [x[0] for x in (*output.hidden_states[:-1], output.last_hidden_state)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_equals_that_of_transformers(kind, folders, waves):
    whisper = {"context": 6.0} if kind == "whisper" else {}  # fills all positions
    teacher = build(folders[kind], layers=EVERY, **whisper)
    for wave in (waves[2], waves[5]):
        found = embed(teacher, [wave])
        for k, expected in enumerate(reference(folders[kind], wave)):
            (x,) = found[f"t_layer{k}"]
            torch.testing.assert_close(x, expected[: len(x)], atol=1e-4, rtol=1e-4)
            assert len(x) == len(expected) or kind == "whisper"


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_alone_and_in_a_batch_gives_the_same(kind, folders, waves):
    teacher = build(folders[kind], layers=EVERY)
    together = embed(teacher, waves)
    for i, wave in enumerate(waves):
        for field, found in embed(teacher, [wave]).items():
            torch.testing.assert_close(found[0], together[field][i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_audio_after_the_end_has_no_influence_and_padding_is_zero(kind, folders, waves):
    teacher = build(folders[kind])
    lens = torch.tensor([17000, 20000])
    batch = torch.randn(2, 20000)
    batch[0, :17000] = waves[4][:17000]
    output = teacher.forward(batch, lens)["t"]
    alone = embed(teacher, [waves[4][:17000]])["t"][0]
    n = int(output.lens[0])
    torch.testing.assert_close(output.x[0, :n], alone, atol=1e-4, rtol=0)
    assert output.x[0, n:].abs().sum() == 0


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 16000, 160000])
@pytest.mark.parametrize("kind", ["wav2vec2_base", "data2vec", "whisper"])
def test_the_number_of_frames_follows_from_the_strides(kind, folders, samples):
    teacher = build(folders[kind])
    output = run(teacher, [torch.randn(samples)])["t"]
    rounded_up = -(-samples // 320)
    complete = max(1, (samples - 400) // 320 + 1)
    expected = rounded_up if kind == "whisper" else complete
    assert output.lens.tolist() == [expected] and output.lens.dtype == torch.int64
    assert output.x.shape == (1, expected, 32) and output.x.dtype == torch.float32
    assert output.x.isfinite().all()
    described = teacher.outputs["t"]
    assert (described.kind, described.dim) == ("embedding", 32)
    assert described.frame_shift == 0.02


@pytest.mark.parametrize("kind", WAVE_KINDS)
def test_waves_are_normalised_as_by_the_feature_extractor(kind, folders, waves):
    import transformers

    loaded = load_encoder(folders[kind])
    choice = choose_layers("last", None, 3)
    encoder = WaveEncoder(loaded.model, loaded.config, loaded.normalise, choice)
    lens = torch.tensor([len(w) for w in waves])
    found = encoder.prepare(pad_sequence(waves, batch_first=True), lens)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folders[kind])
    expected = extractor(
        [w.numpy() for w in waves],
        sampling_rate=16000,
        padding=True,
        return_attention_mask=True,
        return_tensors="pt",
    ).input_values
    assert loaded.normalise is WAVE_KINDS[kind][2]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["wav2vec2_large", "hubert_base", "wavlm_large"])
@pytest.mark.parametrize("layers", [0, 2, 3])
def test_a_lower_layer_is_the_same_without_the_higher_blocks(
    kind, layers, folders, waves
):
    teacher = build(folders[kind], layers=layers)
    assert len(teacher._encoder._model.encoder.layers) == layers
    (found,) = embed(teacher, waves[5:6])["t"]
    expected = reference(folders[kind], waves[5])[layers]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["wav2vec2_large", "whisper"])
def test_weights_sum_the_layers_and_negative_ones_count_from_the_end(
    kind, folders, waves
):
    each = embed(build(folders[kind], layers=[1, 3]), waves)
    assert list(each) == ["t_layer1", "t_layer3"]
    summed = embed(build(folders[kind], layers=[1, -1], layer_weights=[0.25, 2]), waves)
    assert list(summed) == ["t"]
    for x, y, total in zip(each["t_layer1"], each["t_layer3"], summed["t"]):
        torch.testing.assert_close(total, 0.25 * x + 2 * y, atol=1e-4, rtol=1e-4)
    last = embed(build(folders[kind]), waves)["t"]
    for x, y in zip(each["t_layer3"], last):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("kind", ["hubert_base", "wavlm_base", "whisper"])
def test_windows_of_a_long_utterance_are_joined_without_a_seam(kind, folders, waves):
    """Windows of 6 s that overlap by 2 s: 0 to 6, 4 to 10, 8 to 12 s."""
    teacher = build(folders[kind], max_window=6.0, layers=[1, 3])
    spans = [(0, 96000), (64000, 160000), (128000, 192000)]
    pieces = embed(teacher, [waves[0][start:end] for start, end in spans])
    for field, (joined,) in embed(teacher, waves[:1]).items():
        first, second, third = pieces[field]
        expected = torch.cat([first[:250], second[50:250], third[50:]])
        assert len(joined) == (600 if kind == "whisper" else 599)
        torch.testing.assert_close(joined, expected, atol=1e-4, rtol=0)


def test_an_utterance_is_normalised_before_it_is_split(folders, waves, tmp_path):
    plain = Path(shutil.copytree(folders["wavlm_large"], tmp_path / "plain"))
    note = json.loads((plain / "preprocessor_config.json").read_text())
    note["do_normalize"] = False
    (plain / "preprocessor_config.json").write_text(json.dumps(note))
    wave = waves[0] * torch.linspace(0.2, 2.0, len(waves[0]))
    normal = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()
    (found,) = embed(build(folders["wavlm_large"], max_window=6), [wave])["t"]
    (expected,) = embed(build(plain, max_window=6), [normal])["t"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_invalid_windows_and_options_are_refused(folders):
    with pytest.raises(ValueError, match="max_window: 4 s is too short"):
        build(folders["wavlm_base"], max_window=4)
    with pytest.raises(ValueError, match="max_window: 7 s .* at most 6.0 s"):
        build(folders["whisper"], max_window=7)
    with pytest.raises(ValueError, match="context: only Whisper.* wavlm"):
        build(folders["wavlm_base"], context=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_click_is_aligned_within_one_frame_of_the_student(kind, folders):
    """Both waves have a click, so that their statistics over time are equal."""
    teacher = build(folders[kind], layers=0)  # convolutions only

    def aligned(time):
        wave = 0.01 * torch.randn(80000, generator=torch.Generator().manual_seed(0))
        wave[int(time * 16000) - 16 :][:32] += 0.5
        output = run(teacher, [wave])["t"]
        return align_frames(output.x, output.lens, 0.02, torch.tensor([123]))[0]

    late = aligned(4.7)
    for time in (0.3, 1.0, 2.013, 3.387):
        change = (aligned(time) - late).norm(dim=1)[:100]  # before the late click
        found = ENCODER_FIRST_CENTRE + 0.04 * int(change.argmax())
        assert abs(found - time) <= 0.04


def test_bf16_is_close_and_fp16_is_refused_on_a_cpu(folders, waves):
    exact = embed(build(folders["hubert_large"]), waves)["t"]
    close = embed(build(folders["hubert_large"], dtype="bf16"), waves)["t"]
    cosine = torch.cosine_similarity(torch.cat(exact), torch.cat(close))
    assert cosine.mean() > 0.99
    with pytest.raises(ValueError, match="fp16 needs device cuda"):
        build(folders["hubert_large"], dtype="fp16")
    with pytest.raises(ValueError, match="dtype: .*'half'.*float32, fp16"):
        build(folders["hubert_large"], dtype="half")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "fp16", "bf16"])
def test_cuda_equals_the_cpu(kind, dtype, folders, waves):
    expected = embed(build(folders[kind], layers=EVERY), waves)
    found = embed(build(folders[kind], layers=EVERY, device="cuda", dtype=dtype), waves)
    for field, rows in expected.items():
        a, b = torch.cat(rows), torch.cat(found[field])
        if dtype == "float32":
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
        assert torch.cosine_similarity(a, b).mean() > 0.99


def test_the_window_of_a_whisper_is_its_number_of_positions(folders):
    assert build(folders["whisper"])._encoder.window == POSITIONS * 320
