"""The teacher Whisper tiny.en in CTranslate2, on real prompts."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from icefall_kd.teachers import build_teacher


def embed(teacher, waves):
    lens = torch.tensor([len(w) for w in waves])
    output = run(teacher, pad_sequence(waves, batch_first=True), lens)
    return [x[:n] for x, n in zip(output.x, output.lens.tolist())]


def run(teacher, waves, lens):
    (output,) = teacher.forward(waves, lens).values()
    return output


def fingerprint(teacher):
    (output,) = teacher.outputs.values()
    return output.fingerprint


def mean_cosine(a, b):
    pairs = zip(a, b)
    return torch.cat([torch.cosine_similarity(x, y) for x, y in pairs]).mean().item()


def test_an_utterance_alone_and_in_a_batch_gives_the_same_embeddings(tiny, prompts):
    for wave, expected in zip(prompts, embed(tiny, prompts)):
        torch.testing.assert_close(
            embed(tiny, [wave])[0], expected, atol=1e-3, rtol=1e-3
        )


def test_audio_after_the_end_of_an_utterance_has_no_influence(tiny, prompts):
    wave = prompts[0][:20000]
    noisy = torch.cat([wave, torch.randn(20000)])
    found = run(tiny, noisy[None], torch.tensor([20000]))
    torch.testing.assert_close(found.x[0], embed(tiny, [wave])[0])


@pytest.mark.parametrize("samples", [1, 320, 321, 15999, 16000, 16001, 560000])
def test_frames_are_the_samples_over_320_rounded_up(tiny, samples):
    output = run(tiny, torch.randn(1, samples) * 0.1, torch.tensor([samples]))
    expected = -(-samples // 320)
    assert output.lens.tolist() == [expected]
    assert output.lens.dtype == torch.int64
    assert output.x.shape == (1, expected, 384)
    assert output.x.dtype == torch.float32
    described = tiny.outputs["whisper_tiny_en"]
    assert (described.kind, described.dim) == ("embedding", 384)
    assert described.frame_shift == 0.02


def test_frames_beyond_the_valid_ones_are_zero(tiny, prompts):
    waves = [prompts[0][:16000], prompts[1][:17000]]
    lens = torch.tensor([16000, 17000])
    output = run(tiny, pad_sequence(waves, batch_first=True), lens)
    assert output.lens.tolist() == [50, 54]
    assert output.x[0, 50:].abs().sum() == 0


def test_embeddings_are_close_to_those_of_the_padded_30_s(tiny, tiny_dir, prompts):
    padded = build_teacher("whisper_tiny_en", tiny_dir, context=30.0, num_threads=1)
    assert mean_cosine(embed(padded, prompts[:4]), embed(tiny, prompts[:4])) > 0.975


def test_int8_is_close_to_float32(tiny, tiny_dir, prompts):
    int8 = build_teacher(
        "whisper_tiny_en", tiny_dir, compute_type="int8", num_threads=1
    )
    assert mean_cosine(embed(int8, prompts), embed(tiny, prompts)) > 0.99
    assert fingerprint(int8) != fingerprint(tiny)


def test_parallel_calls_equal_sequential_calls(tiny_dir, prompts):
    options = {"compute_type": "int8", "max_batch": 5.0}
    one = build_teacher("whisper_tiny_en", tiny_dir, num_threads=1, **options)
    three = build_teacher("whisper_tiny_en", tiny_dir, num_threads=3, **options)
    assert (one.num_workers, three.num_workers) == (1, 3)
    for alone, together in zip(embed(one, prompts), embed(three, prompts)):
        assert torch.equal(alone, together)


def test_frames_follow_the_audio_in_time(tiny, prompts):
    """After a delay of 0.4 s, the embeddings are most similar 20 frames later."""
    late = [torch.cat([torch.zeros(6400), w]) for w in prompts]
    now, then = embed(tiny, prompts), embed(tiny, late)
    cosine = {
        shift: mean_cosine(
            [x[10:-10] for x in now],
            [y[10 + shift : shift + len(x) - 10] for x, y in zip(now, then)],
        )
        for shift in (18, 19, 20, 21, 22)
    }
    assert max(cosine, key=cosine.get) == 20, cosine


def test_windows_of_a_long_utterance_are_joined_without_a_seam(tiny, prompts):
    speech = torch.cat(prompts * 2)[: 40 * 16000]
    assert len(speech) == 40 * 16000
    joined = embed(tiny, [speech])[0]
    assert joined.shape == (2000, 384)
    head, tail = embed(tiny, [speech[: 30 * 16000], speech[28 * 16000 :]])
    torch.testing.assert_close(joined[:1450], head[:1450], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(joined[1450:], tail[50:], atol=1e-3, rtol=1e-3)


def test_a_wrong_shape_is_refused_with_the_shapes(tiny):
    with pytest.raises(ValueError, match=r"\(2, 100\).*\(3,\)"):
        tiny.forward(torch.zeros(2, 100), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"\[1, 100\]"):
        tiny.forward(torch.zeros(1, 100), torch.tensor([101]))


def test_a_folder_without_a_model_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.bin is missing.*fetch_teacher"):
        build_teacher("whisper_base", tmp_path)


def test_an_unknown_teacher_is_refused_with_the_available_ones(tmp_path):
    with pytest.raises(ValueError, match="whisper_huge.*Available: .*tiny_en"):
        build_teacher("whisper_huge", tmp_path)


def test_the_fingerprint_contains_model_layer_precision_and_context(tiny):
    found = fingerprint(tiny)
    assert found["model_sha256"].startswith("1a5afae06a4d")
    assert found["layer"] == "last" and found["compute_type"] == "float32"
    assert found["context"] == 1.0
