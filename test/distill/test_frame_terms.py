"""Terms on a teacher's CTC distributions: slow references, padding, order, delay."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
from students import model_without_encoder
from torch import nn
from two_stacks import LENS, MODEL, STACKS, VOCAB

from icefall_kd.core.frames import (
    average_frame_pairs,
    pack_path,
    pack_topk,
    unpack_path,
    unpack_topk,
)
from icefall_kd.distill.essence import EssenceConfig, EssenceTerm
from icefall_kd.distill.inter_ctc import InterCtcConfig, InterCtcTerm
from icefall_kd.distill.lfmmi import (
    LfmmiConfig,
    LfmmiTerm,
    dense_log_probs,
    sequence_divergence,
)
from icefall_kd.distill.one_best import OneBestConfig, OneBestTerm
from icefall_kd.distill.term import StudentOutput, teacher_metric
from icefall_kd.transducer.denominator import build_denominator, save_denominator

DIM, K = 6, 4


def ctc_field(seed, k=K, lens=LENS):
    torch.manual_seed(seed)
    x = pack_topk((3 * torch.randn(2, max(lens), VOCAB)).log_softmax(-1), k)
    for n, frames in enumerate(lens):
        x[n, frames:] = 0
    return {"x": x, "lens": torch.tensor(lens), "frame_shift": 0.04}


def path_field(seed):
    """Distributions on a path that emits two or three tokens an utterance."""
    field = ctc_field(seed)
    emitted = torch.zeros(2, max(LENS), dtype=torch.int64)
    emitted[0, [2, 9, 22]] = torch.tensor([3, 1, 4])
    emitted[1, [0, 5]] = torch.tensor([5, 5])
    return {**field, "x": pack_path(emitted, field["x"])}


@pytest.fixture
def batch():
    fields = {"judge": ctc_field(1), "second": ctc_field(2), "walker": path_field(3)}
    return {"tokens": [[3, 1, 4], [5, 5]], "fields": fields}


@pytest.fixture
def infos():
    kinds = {"judge": "ctc", "second": "ctc", "walker": "path"}
    return {
        name: SimpleNamespace(name=name, kind=kind, dim=2 * K + 1 + (kind == "path"))
        for name, kind in kinds.items()
    }


@pytest.fixture
def student():
    torch.manual_seed(0)
    model = model_without_encoder(VOCAB, DIM)
    stacks = tuple(
        torch.randn(2, 2 * max(LENS) - 1, dim, requires_grad=True) for dim in STACKS
    )
    encoder_out = torch.randn(2, max(LENS), DIM, requires_grad=True)
    lens = torch.tensor(LENS)
    return StudentOutput(encoder_out, lens, model, nn.ModuleDict(), 16, stacks)


def make(cls, options, student, infos):
    torch.manual_seed(3)
    term = cls(options)
    head = term.build_heads(MODEL, infos)
    heads = nn.ModuleDict({term.name: head} if head is not None else {}).eval()
    return term, dataclasses.replace(student, heads=heads)


INTER = InterCtcConfig(stacks=(0, -1), teacher="judge", kd_weight=0.3)
ESSENCE = EssenceConfig(teachers=("judge", "second"), size=3, token_weight=2.5)
ONE_BEST = OneBestConfig(teacher="walker")
TERMS = [(InterCtcTerm, INTER), (EssenceTerm, ESSENCE), (OneBestTerm, ONE_BEST)]


def slow_ctc(log_probs, tokens):
    """Sum over all alignments of an utterance, by the forward recursion in floats."""
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
    term, student = make(InterCtcTerm, options, student, infos)
    output = term(student, batch, 0)
    total = 0.0
    heads = {"final": (1.0, student.model.ctc_output, student.encoder_out)}
    for stack in (0, -1):
        head = student.heads["inter_ctc"][str(stack)]
        heads[stack] = (0.5, head, average_frame_pairs(student.stacks[stack]))
    ids, values, _ = unpack_topk(batch["fields"]["judge"]["x"])
    for scale, head, x in heads.values():
        for n, frames in enumerate(LENS):
            log_probs = head(x[n : n + 1, :frames])[0].detach()
            total += scale * slow_ctc(log_probs, batch["tokens"][n])
            for t in range(frames - delay):
                goal = torch.zeros(VOCAB)
                goal[ids[n, t]] = values[n, t].exp()
                distance = ((goal - log_probs[t + delay].exp()) ** 2).sum()
                total += scale * 0.3 * float(distance)
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert set(output.extras) == {
        f"{h}_{kind}" for h in ("final", "stack0", "stack-1") for kind in ("ctc", "kd")
    }


@pytest.mark.parametrize("delay", [0, 2])
def test_essence_equals_the_slow_reference(student, batch, infos, delay):
    options = dataclasses.replace(ESSENCE, delay=delay)
    term, student = make(EssenceTerm, options, student, infos)
    output = term(student, batch, 0)
    total = 0.0
    for n, frames in enumerate(LENS):
        log_probs = student.model.ctc_output(student.encoder_out[n : n + 1, :frames])
        for t in range(frames - delay):
            mean = torch.zeros(VOCAB)
            for name in ("judge", "second"):
                ids, values, tail = unpack_topk(batch["fields"][name]["x"][n, t])
                told = torch.full((VOCAB,), float(tail) / (VOCAB - K))
                told[ids] = values.exp()
                mean += told / 2
            best, where = mean.topk(3)
            loss = -(best / best.sum() * log_probs[0, t + delay, where]).sum()
            total += float(loss) * (2.5 if int(where[0]) != 0 else 1.0)
    assert float(output.sum) == pytest.approx(total, rel=1e-4)
    assert output.count == sum(LENS) - 2 * delay


@pytest.mark.parametrize("shift", [0, 2])
def test_one_best_equals_the_slow_reference(student, batch, infos, shift):
    options = dataclasses.replace(ONE_BEST, shift=shift)
    term, student = make(OneBestTerm, options, student, infos)
    output = term(student, batch, 0)
    model, total = student.model, 0.0
    emitted, frames = unpack_path(batch["fields"]["walker"]["x"])
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


def test_essence_has_all_that_the_fields_of_an_ensemble_hold(student, batch, infos):
    """Two that agree on no token: the mean is of twice as many as each has."""
    for name, ids in (("judge", range(K)), ("second", range(K, 2 * K))):
        probs = torch.full((2, max(LENS), VOCAB), 1e-9)
        probs[..., list(ids)] = 1 / K
        batch["fields"][name]["x"] = pack_topk(probs.log().log_softmax(-1), K)
    options = EssenceConfig(teachers=("judge", "second"), size=2 * K, token_weight=1.0)
    for size in (2 * K, None):
        options = dataclasses.replace(options, size=size)
        term, student = make(EssenceTerm, options, student, infos)
        log_probs = student.model.ctc_output(student.encoder_out)
        expected = sum(
            -log_probs[n, :frames, : 2 * K].sum() / (2 * K)
            for n, frames in enumerate(LENS)
        )
        torch.testing.assert_close(term(student, batch, 0).sum, expected)


def test_one_best_comes_in_over_its_warm_up(student, batch, infos):
    term, student = make(
        OneBestTerm, dataclasses.replace(ONE_BEST, warm_steps=100), student, infos
    )
    full = float(term(student, batch, 100).sum)
    assert float(term(student, batch, 0).sum) == 0.0
    assert float(term(student, batch, 50).sum) == pytest.approx(0.5 * full)


@pytest.mark.parametrize("cls, options", TERMS)
def test_padding_is_ignored(student, batch, infos, cls, options):
    term, student = make(cls, options, student, infos)
    before = term(student, batch, 0)
    before.sum.backward()
    assert student.encoder_out.grad[1, LENS[1] :].abs().sum() == 0
    assert student.encoder_out.grad[1, : LENS[1]].abs().sum() > 0
    with torch.no_grad():
        student.encoder_out[1, LENS[1] :] = 50.0
        for stack in student.stacks:
            stack[1, 2 * LENS[1] :] = 50.0
    for field in batch["fields"].values():
        field["x"][1, LENS[1] :] = 1.0  # token 1 on a path
    assert float(term(student, batch, 0).sum) == pytest.approx(float(before.sum))


@pytest.mark.parametrize("cls, options", TERMS)
def test_the_order_of_the_batch_does_not_matter(student, batch, infos, cls, options):
    term, student = make(cls, options, student, infos)
    before = float(term(student, batch, 0).sum)
    for field in batch["fields"].values():
        field["x"], field["lens"] = field["x"].flip(0), field["lens"].flip(0)
    flipped = dataclasses.replace(
        student,
        encoder_out=student.encoder_out.flip(0),
        lens=student.lens.flip(0),
        stacks=tuple(s.flip(0) for s in student.stacks),
    )
    batch["tokens"] = batch["tokens"][::-1]
    assert float(term(flipped, batch, 0).sum) == pytest.approx(before, rel=1e-5)


@pytest.fixture(scope="module")
def lfmmi(tmp_path_factory):
    """Options of the term with a graph of a few texts."""
    path = tmp_path_factory.mktemp("graph") / "den.pt"
    texts = [[1, 2, 3], [4, 4], [5, 8, 1], [2]]
    save_denominator(build_denominator(texts, VOCAB), VOCAB, path)
    return LfmmiConfig(teacher="judge", graph=str(path), output_beam=100.0)


def slow_divergence(student, teacher):
    """KL over all label sequences of a few frames, one by one."""
    of_student, of_teacher = [], []
    for path in itertools.product(range(VOCAB), repeat=len(student)):
        for log_probs, scores in ((student, of_student), (teacher, of_teacher)):
            scores.append(sum(float(log_probs[t, p]) for t, p in enumerate(path)))
    return torch.tensor(of_student).double(), torch.tensor(of_teacher).double()


def test_lfmmi_is_the_divergence_of_label_sequences(student, batch, infos, lfmmi):
    term, student = make(LfmmiTerm, lfmmi, student, infos)
    lens = [3, 2]
    log_probs = student.model.ctc_output(student.encoder_out[:, :3]).detach()
    teacher = dense_log_probs(batch["fields"]["judge"]["x"][:, :3], VOCAB)
    found = sequence_divergence(log_probs, teacher, torch.tensor(lens), term.graph, 100)
    for n, frames in enumerate(lens):
        paths = list(itertools.product(range(VOCAB), repeat=frames))
        language = torch.tensor([language_score(term.graph, p) for p in paths])
        s, t = slow_divergence(log_probs[n, :frames], teacher[n, :frames])
        p, q = ((x + language).log_softmax(0) for x in (s, t))
        expected = (q.exp() * (q - p)).sum()
        assert float(found[n]) == pytest.approx(float(expected), abs=1e-3)


def language_score(graph, path):
    """The graph's own weight of a way to label the frames, by walking it."""
    arcs = graph.arcs.values()[:, :3].tolist()
    scores = graph.scores.tolist()
    total = {0: 0.0}
    for label in [*path, -1]:
        new = {}
        for (src, dst, given), score in zip(arcs, scores):
            if src in total and given == label:
                new[dst] = float(
                    torch.logaddexp(
                        torch.tensor(new.get(dst, float("-inf"))),
                        torch.tensor(total[src] + score),
                    )
                )
        total = new
    return sum(total.values())


def test_lfmmi_of_a_student_like_its_teacher_is_nothing(student, batch, infos, lfmmi):
    term, _ = make(LfmmiTerm, lfmmi, student, infos)
    teacher = dense_log_probs(batch["fields"]["judge"]["x"], VOCAB)
    same = teacher.clone().requires_grad_()
    found = sequence_divergence(same, teacher, torch.tensor(LENS), term.graph, 100)
    torch.testing.assert_close(found, torch.zeros(2).double(), atol=1e-3, rtol=0)
    found.sum().backward()
    assert same.grad.abs().max() < 1e-3


@pytest.mark.parametrize("delay", [0, 2])
def test_lfmmi_ignores_padding_and_order(student, batch, infos, lfmmi, delay):
    options = dataclasses.replace(lfmmi, delay=delay)
    term, student = make(LfmmiTerm, options, student, infos)
    before = term(student, batch, 0)
    before.sum.backward()
    assert student.encoder_out.grad[1, LENS[1] :].abs().sum() == 0
    assert before.count == sum(LENS) - 2 * delay and float(before.sum) > 0
    field = batch["fields"]["judge"]
    field["x"][1, LENS[1] :] = 1.0
    field["x"], field["lens"] = field["x"].flip(0), field["lens"].flip(0)
    out = student.encoder_out.detach().clone()
    out[1, LENS[1] :] = 50.0
    flipped = dataclasses.replace(
        student, encoder_out=out.flip(0), lens=student.lens.flip(0)
    )
    after = float(term(flipped, batch, 0).sum)
    assert after == pytest.approx(float(before.sum), rel=1e-4)


def test_a_graph_of_another_vocabulary_is_refused(student, infos, lfmmi, tmp_path):
    save_denominator(build_denominator([[1]], 5), 5, tmp_path / "den.pt")
    options = dataclasses.replace(lfmmi, graph=str(tmp_path / "den.pt"))
    with pytest.raises(ValueError, match="is of 5 tokens, the student has 9"):
        make(LfmmiTerm, options, student, infos)
    for options in (LfmmiConfig(), LfmmiConfig(teacher="judge")):
        with pytest.raises(ValueError, match="terms.lfmmi.(teacher|graph) is empty"):
            LfmmiTerm(options)


def test_inter_ctc_without_a_teacher_is_intermediate_ctc(student, batch, infos):
    options = InterCtcConfig(stacks=(1,), final=False)
    term, student = make(InterCtcTerm, options, student, infos)
    assert term.fields == () and term.trains == ()
    assert set(term(student, batch, 0).extras) == {"stack1_ctc"}


def test_utterances_without_text_still_hear_the_teacher(student, batch, infos):
    term, student = make(InterCtcTerm, INTER, student, infos)
    batch["tokens"] = [[], []]
    output = term(student, batch, 0)
    assert output.skipped == {} and float(output.sum) > 0
    assert set(output.extras) == {"final_kd", "stack0_kd", "stack-1_kd"}
    batch["fields"]["judge"]["lens"] = torch.tensor([LENS[0], 0])
    assert term(student, batch, 0).skipped == {"no_text": [1]}


def test_utterances_without_a_target_are_counted_and_add_nothing(
    student, batch, infos, lfmmi
):
    for cls, options in [*TERMS, (LfmmiTerm, lfmmi)]:
        term, student = make(cls, options, student, infos)
        fields = {n: dict(f) for n, f in batch["fields"].items()}
        for field in fields.values():
            field["lens"] = torch.tensor([0, LENS[1]])
            field["x"] = field["x"][:, : LENS[1]]
        one = term(student, {**batch, "fields": fields}, 0)
        assert torch.isfinite(one.sum)
        assert one.skipped == ({} if cls is InterCtcTerm else {"no_target": [0]})
        empty = {"x": torch.zeros(2, 0, 0), "lens": torch.tensor([0, 0])}
        none = {n: {**empty, "frame_shift": 0.0} for n in fields}
        output = term(student, {**batch, "fields": none}, 0)
        if cls is InterCtcTerm:
            assert set(output.extras) == {"final_ctc", "stack0_ctc", "stack-1_ctc"}
        else:
            assert float(output.sum) == 0.0 and output.skipped == {"no_target": [0, 1]}


def test_a_delay_applies_in_chunks_and_not_with_full_context(
    student, batch, infos, lfmmi
):
    for cls, options in [*TERMS, (LfmmiTerm, lfmmi)]:
        option = "shift" if cls is OneBestTerm else "delay"
        late = dataclasses.replace(options, **{option: 2})
        for chunk_size, applies in ((16, True), (64, True), (-1, False)):
            drawn = dataclasses.replace(student, chunk_size=chunk_size)
            at_once = make(cls, options, drawn, infos)
            lagging = make(cls, late, drawn, infos)
            values = [float(t(s, batch, 0).sum) for t, s in (at_once, lagging)]
            assert (values[0] != values[1]) == applies, (cls, chunk_size)
        everything = dataclasses.replace(options, **{option: 40})
        if cls is not InterCtcTerm:
            term, drawn = make(cls, everything, student, infos)
            assert term(drawn, batch, 0).skipped == {"too_short": [0, 1]}


def test_a_teacher_of_another_rate_or_length_is_refused(student, batch, infos):
    term, student = make(EssenceTerm, ESSENCE, student, infos)
    batch["fields"]["judge"]["frame_shift"] = 0.02
    with pytest.raises(ValueError, match="every 0.02 s cannot be compared"):
        term(student, batch, 0)
    batch["fields"]["judge"] = ctc_field(1, lens=[19, 13])
    with pytest.raises(ValueError, match="the teacher has .19, 13. frames"):
        term(student, batch, 0)


@pytest.mark.parametrize(
    "cls, options, match",
    [
        (InterCtcTerm, InterCtcConfig(final=False), "has no head"),
        (InterCtcTerm, InterCtcConfig(distance="l9"), "distance is 'l9'"),
        (InterCtcTerm, InterCtcConfig(stacks=(2,)), "no stack 2, there are 2"),
        (InterCtcTerm, InterCtcConfig(delay=-1), "must not be negative"),
        (OneBestTerm, OneBestConfig(), "teacher is empty"),
        (OneBestTerm, OneBestConfig(teacher="walker", shift=-1), "not be negative"),
        (EssenceTerm, EssenceConfig(), "teachers is empty"),
        (EssenceTerm, EssenceConfig(teachers=("judge",), size=-1), "size is -1"),
        (EssenceTerm, EssenceConfig(teachers=("judge",)), "size is 10.*keep 4 tokens"),
        (EssenceTerm, EssenceConfig(teachers=("judge",), mass=2.0), "mass is 2"),
    ],
)
def test_impossible_options_are_refused(student, infos, cls, options, match):
    with pytest.raises(ValueError, match=match):
        make(cls, options, student, infos)


@pytest.mark.parametrize("cls, options", TERMS)
def test_the_figure_of_a_term_s_teacher_is_one_that_is_logged(
    student, batch, infos, cls, options
):
    term, student = make(cls, options, student, infos)
    output = term(student, batch, 0)
    logged = {term.name, *(f"{term.name}.{extra}" for extra in output.extras)}
    assert teacher_metric(term) in logged
    alone = dataclasses.replace(INTER, final=False)
    assert teacher_metric(InterCtcTerm(alone)) == "inter_ctc.stack0_kd"


@pytest.mark.parametrize("cls, options", TERMS)
def test_a_field_of_another_kind_is_refused(student, infos, cls, options):
    infos["judge"].kind = infos["walker"].kind = "embedding"
    with pytest.raises(ValueError, match="is of kind 'embedding', not '(ctc|path)'"):
        make(cls, options, student, infos)
