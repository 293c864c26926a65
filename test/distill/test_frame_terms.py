"""Terms on token distributions: slow references, padding, order, delay, options.

``lfmmi`` is in test_lfmmi.py, except for the tests that all these terms share.
"""

import dataclasses

import pytest
import torch
from term_inputs import (
    LENS,
    VOCAB,
    K,
    build,
    ctc_field,
    distribution_batch,
    distribution_infos,
    reverse_batch,
    without_targets,
)

from icefall_kd.core.frames import (
    average_frame_pairs,
    pack_topk,
    unpack_path,
    unpack_topk,
)
from icefall_kd.distill.essence import EssenceConfig, EssenceTerm
from icefall_kd.distill.inter_ctc import InterCtcConfig, InterCtcTerm
from icefall_kd.distill.lfmmi import LfmmiTerm
from icefall_kd.distill.one_best import OneBestConfig, OneBestTerm


@pytest.fixture
def batch():
    return distribution_batch()


@pytest.fixture
def infos():
    return distribution_infos()


INTER = InterCtcConfig(stacks=(0, -1), teacher="first", kd_weight=0.3)
ESSENCE = EssenceConfig(teachers=("first", "second"), size=3, token_weight=2.5)
ONE_BEST = OneBestConfig(teacher="path")
TERMS = [(InterCtcTerm, INTER), (EssenceTerm, ESSENCE), (OneBestTerm, ONE_BEST)]


def slow_ctc(log_probs, tokens):
    """Return the CTC loss of an utterance, by the forward recursion."""
    states = [0]
    for token in tokens:
        states += [token, 0]
    alpha = [float("-inf")] * len(states)
    alpha[0], alpha[1] = float(log_probs[0, 0]), float(log_probs[0, states[1]])
    for frame in log_probs[1:]:
        new = []
        for s, token in enumerate(states):
            ways = [alpha[s]] + ([alpha[s - 1]] if s else [])
            if s > 1 and token != 0 and token != states[s - 2]:
                ways.append(alpha[s - 2])
            new.append(float(torch.tensor(ways).logsumexp(0)) + float(frame[token]))
        alpha = new
    return -float(torch.tensor(alpha[-2:]).logsumexp(0))


@pytest.mark.parametrize("delay", [0, 2])
def test_inter_ctc_equals_the_slow_reference(student, batch, infos, delay):
    options = dataclasses.replace(INTER, delay=delay)
    term, student = build(InterCtcTerm(options), student, infos)
    output = term(student, batch, 0)
    total = 0.0
    heads = {"final": (1.0, student.model.ctc_output, student.encoder_out)}
    for stack in (0, -1):
        head = student.heads["inter_ctc"][str(stack)]
        heads[stack] = (0.5, head, average_frame_pairs(student.stacks[stack]))
    ids, values, _ = unpack_topk(batch["fields"]["first"]["x"])
    for scale, head, x in heads.values():
        for n, frames in enumerate(LENS):
            log_probs = head(x[n : n + 1, :frames])[0].detach()
            total += scale * slow_ctc(log_probs, batch["tokens"][n])
            for t in range(frames - delay):
                target = torch.zeros(VOCAB)
                target[ids[n, t]] = values[n, t].exp()
                distance = ((target - log_probs[t + delay].exp()) ** 2).sum()
                total += scale * 0.3 * float(distance)
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert set(output.extras) == {
        f"{h}_{kind}" for h in ("final", "stack0", "stack-1") for kind in ("ctc", "kd")
    }


@pytest.mark.parametrize("delay", [0, 2])
def test_essence_equals_the_slow_reference(student, batch, infos, delay):
    options = dataclasses.replace(ESSENCE, delay=delay)
    term, student = build(EssenceTerm(options), student, infos)
    output = term(student, batch, 0)
    total = 0.0
    for n, frames in enumerate(LENS):
        log_probs = student.model.ctc_output(student.encoder_out[n : n + 1, :frames])
        for t in range(frames - delay):
            mean = torch.zeros(VOCAB)
            for name in ("first", "second"):
                ids, values, tail = unpack_topk(batch["fields"][name]["x"][n, t])
                probs = torch.full((VOCAB,), float(tail) / (VOCAB - K))
                probs[ids] = values.exp()
                mean += probs / 2
            best, where = mean.topk(3)
            loss = -(best / best.sum() * log_probs[0, t + delay, where]).sum()
            total += float(loss) * (2.5 if int(where[0]) != 0 else 1.0)
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert output.count == sum(LENS) - 2 * delay


@pytest.mark.parametrize("shift", [0, 2])
def test_one_best_equals_the_slow_reference(student, batch, infos, shift):
    options = dataclasses.replace(ONE_BEST, shift=shift)
    term, student = build(OneBestTerm(options), student, infos)
    output = term(student, batch, 0)
    model, total = student.model, 0.0
    emitted, frames = unpack_path(batch["fields"]["path"]["x"])
    for n, length in enumerate(LENS):
        history = [-1, 0]
        for t in range(length - shift):
            dec = model.decoder(torch.tensor([history[-2:]]), need_pad=False)[:, 0]
            logits = model.joiner(student.encoder_out[n, t + shift][None], dec)[0]
            p = logits.softmax(-1).detach()
            ids, values, tail = unpack_topk(frames[n, t])
            rest = 1 - p[ids].sum()
            total += float((values.exp() * (values - p[ids].log())).sum())
            total += float(tail * (tail / rest).log())
            if emitted[n, t]:
                history.append(int(emitted[n, t]))
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert output.count == sum(LENS) - 2 * shift


def test_essence_uses_all_tokens_of_an_ensemble(student, batch, infos):
    """If two teachers have no token in common, their mean has twice as many tokens."""
    for name, ids in (("first", range(K)), ("second", range(K, 2 * K))):
        probs = torch.full((2, max(LENS), VOCAB), 1e-9)
        probs[..., list(ids)] = 1 / K
        batch["fields"][name]["x"] = pack_topk(probs.log().log_softmax(-1), K)
    options = EssenceConfig(teachers=("first", "second"), size=2 * K, token_weight=1.0)
    for size in (2 * K, None):
        options = dataclasses.replace(options, size=size)
        term, student = build(EssenceTerm(options), student, infos)
        log_probs = student.model.ctc_output(student.encoder_out)
        expected = sum(
            -log_probs[n, :frames, : 2 * K].sum() / (2 * K)
            for n, frames in enumerate(LENS)
        )
        torch.testing.assert_close(term(student, batch, 0).sum, expected)


def test_the_weight_of_one_best_rises_in_the_warm_up(student, batch, infos):
    options = dataclasses.replace(ONE_BEST, warm_steps=100)
    term, student = build(OneBestTerm(options), student, infos)
    full = float(term(student, batch, 100).sum)
    assert float(term(student, batch, 0).sum) == 0.0
    assert float(term(student, batch, 50).sum) == pytest.approx(0.5 * full)


@pytest.mark.parametrize("cls, options", TERMS)
def test_padding_is_ignored(student, batch, infos, cls, options):
    term, student = build(cls(options), student, infos)
    before = term(student, batch, 0)
    before.sum.backward()
    assert student.encoder_out.grad[1, LENS[1] :].abs().sum() == 0
    assert student.encoder_out.grad[1, : LENS[1]].abs().sum() > 0
    with torch.no_grad():
        student.encoder_out[1, LENS[1] :] = 50.0
        for stack in student.stacks:
            stack[1, 2 * LENS[1] :] = 50.0
    for field in batch["fields"].values():
        field["x"][1, LENS[1] :] = 1.0  # as if a path emitted token 1
    assert float(term(student, batch, 0).sum) == pytest.approx(float(before.sum))


@pytest.mark.parametrize("cls, options", TERMS)
def test_the_order_of_the_batch_does_not_matter(student, batch, infos, cls, options):
    term, student = build(cls(options), student, infos)
    before = float(term(student, batch, 0).sum)
    after = float(term(*reverse_batch(student, batch), 0).sum)
    assert after == pytest.approx(before, rel=1e-5)


def test_inter_ctc_without_a_teacher_is_intermediate_ctc(student, batch, infos):
    options = InterCtcConfig(stacks=(1,), final=False)
    term, student = build(InterCtcTerm(options), student, infos)
    assert term.fields == () and term.trains == ()
    assert set(term(student, batch, 0).extras) == {"stack1_ctc"}


def test_inter_ctc_needs_no_text_where_there_is_a_target(student, batch, infos):
    term, student = build(InterCtcTerm(INTER), student, infos)
    batch["tokens"] = [[], []]
    output = term(student, batch, 0)
    assert output.skipped == {} and float(output.sum) > 0
    assert set(output.extras) == {"final_kd", "stack0_kd", "stack-1_kd"}
    batch["fields"]["first"]["lens"] = torch.tensor([LENS[0], 0])
    assert term(student, batch, 0).skipped == {"no_text": [1]}


def test_utterances_without_a_target_are_listed_and_add_nothing(
    student, batch, infos, lfmmi
):
    for cls, options in [*TERMS, (LfmmiTerm, lfmmi)]:
        term, student = build(cls(options), student, infos)
        fields = {n: dict(f) for n, f in batch["fields"].items()}
        for field in fields.values():
            field["lens"] = torch.tensor([0, LENS[1]])
            field["x"] = field["x"][:, : LENS[1]]
        one = term(student, {**batch, "fields": fields}, 0)
        assert torch.isfinite(one.sum)
        assert one.skipped == ({} if cls is InterCtcTerm else {"no_target": [0]})
        none = {**batch, "fields": without_targets(fields)}
        output = term(student, none, 0)
        if cls is InterCtcTerm:
            assert set(output.extras) == {"final_ctc", "stack0_ctc", "stack-1_ctc"}
        else:
            assert float(output.sum) == 0.0 and output.skipped == {"no_target": [0, 1]}


@pytest.mark.parametrize("cls, options", TERMS)
def test_utterances_that_are_not_finite_are_listed(student, batch, infos, cls, options):
    """Also utterances without transcript, which have a target."""
    with torch.no_grad():
        student.encoder_out[1, 2] = float("nan")
    batch["tokens"] = [[], []]
    term, student = build(cls(options), student, infos)
    assert term(student, batch, 0).suspects == (1,)


def test_a_delay_applies_in_chunks_and_not_with_full_context(
    student, batch, infos, lfmmi
):
    for cls, options in [*TERMS, (LfmmiTerm, lfmmi)]:
        option = "shift" if cls is OneBestTerm else "delay"
        late = dataclasses.replace(options, **{option: 2})
        for chunk_size, applies in ((16, True), (64, True), (-1, False)):
            drawn = dataclasses.replace(student, chunk_size=chunk_size)
            plain = build(cls(options), drawn, infos)
            lagging = build(cls(late), drawn, infos)
            values = [float(t(s, batch, 0).sum) for t, s in (plain, lagging)]
            assert (values[0] != values[1]) == applies, (cls, chunk_size)
        longer = dataclasses.replace(options, **{option: 40})  # than the audio
        if cls is not InterCtcTerm:
            term, drawn = build(cls(longer), student, infos)
            assert term(drawn, batch, 0).skipped == {"too_short": [0, 1]}


def test_a_teacher_of_another_rate_or_length_is_refused(student, batch, infos):
    term, student = build(EssenceTerm(ESSENCE), student, infos)
    batch["fields"]["first"]["frame_shift"] = 0.02
    with pytest.raises(ValueError, match="every 0.02 s, the student every 0.04 s"):
        term(student, batch, 0)
    batch["fields"]["first"] = ctc_field(1, lens=[19, 13])
    with pytest.raises(ValueError, match="field 'first' has .19, 13. frames"):
        term(student, batch, 0)


@pytest.mark.parametrize(
    "cls, options, match",
    [
        (InterCtcTerm, InterCtcConfig(final=False), "terms.inter_ctc .*stacks.*final"),
        (InterCtcTerm, InterCtcConfig(stacks=(2,)), "no stack 2. Available: -2 to 1"),
        (InterCtcTerm, InterCtcConfig(delay=-1), "terms.inter_ctc.delay: -1"),
        (OneBestTerm, OneBestConfig(), "terms.one_best.teacher is empty"),
        (
            OneBestTerm,
            OneBestConfig(teacher="path", shift=-1),
            "terms.one_best.shift: -1",
        ),
        (EssenceTerm, EssenceConfig(), "terms.essence.teachers is empty"),
        (
            EssenceTerm,
            EssenceConfig(teachers=("first",), size=-1),
            "terms.essence.size: -1",
        ),
        (EssenceTerm, EssenceConfig(teachers=("first",)), "size is 10.*4 tokens"),
        (
            EssenceTerm,
            EssenceConfig(teachers=("first",), mass=2.0),
            "terms.essence.mass: 2.0",
        ),
    ],
)
def test_invalid_options_are_refused(student, infos, cls, options, match):
    with pytest.raises(ValueError, match=match):
        build(cls(options), student, infos)


@pytest.mark.parametrize("cls, options", TERMS)
def test_the_teacher_metric_of_a_term_is_logged(student, batch, infos, cls, options):
    term, student = build(cls(options), student, infos)
    output = term(student, batch, 0)
    logged = {term.name, *(f"{term.name}.{extra}" for extra in output.extras)}
    assert term.teacher_metric in logged
    stacks_only = dataclasses.replace(INTER, final=False)
    assert InterCtcTerm(stacks_only).teacher_metric == "inter_ctc.stack0_kd"


@pytest.mark.parametrize("cls, options", TERMS)
def test_a_field_of_another_kind_is_refused(student, infos, cls, options):
    infos["first"].kind = infos["path"].kind = "embedding"
    with pytest.raises(ValueError, match="is of kind 'embedding', not '(ctc|path)'"):
        build(cls(options), student, infos)
