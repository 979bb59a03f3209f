"""Shared rows give what plain ones give, on every architecture, whatever fits into memory."""

from __future__ import annotations

import dataclasses
import logging
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.evaluators.batches import Packing
from evomerge.evaluators.likelihoods import Likelihoods
from evomerge.evaluators.packing import check_encoded, pack
from tests.models import ARCHS, VOCAB, config

CPU = torch.device("cpu")
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=8)
REQUESTS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=20)


def scored_inputs(batches):
    """(slot, the tokens that predict it, target) of every scored token, read off the masks."""
    found = []
    for b in batches:
        mask = b.mask()
        if mask is None:
            n = b.tokens.shape[1]
            mask = torch.ones(n, n, dtype=torch.bool).tril().expand(len(b.tokens), 1, n, n)
        for place, target, slot in zip(b.places, b.targets, b.slots, strict=True):
            row, column = b.rows[place], b.columns[place]
            seen = mask[row, 0, column]
            if b.reach is not None:
                assert b.depths[row, seen].tolist() == list(range(int(seen.sum())))
            found.append((int(slot), tuple(b.tokens[row, seen].tolist()), int(target)))
    return sorted(found)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.sampled_from([1, 3, "auto"]), st.integers(8, 12), st.sampled_from([0, 1, 64]))
def test_every_token_is_predicted_from_its_own_request(requests, batch_size, window, pairs):
    encoded = [(slot, *request) for slot, request in enumerate(requests)]
    batches = pack(encoded, Packing(window, batch_size, CPU, 3, pairs))
    want = []
    for slot, context, continuation in encoded:
        tokens = (context + continuation)[-(window + 1) :]
        first = len(tokens) - len(continuation)
        want += [(slot, tuple(tokens[:i]), tokens[i]) for i in range(first, len(tokens))]
    assert scored_inputs(batches) == sorted(want)
    for batch in batches:
        if len(batch.tokens) > 1:
            assert scored_inputs(batch.halves()) == scored_inputs([batch])


def test_beginnings_are_shared_and_padding_is_filled():
    shots = list(range(40))
    questions = [[*shots, 100 + i, 101 + i] for i in range(6)]
    encoded = [
        (i, q, [200 + i % 4, 7, 8]) for i, q in enumerate(q for q in questions for _ in "abcd")
    ]
    (batch,) = pack(encoded, Packing(64, "auto", CPU, 300, 256))
    assert batch.tokens.numel() == 40 + 6 * 2 + 6 * 4 * 2
    different = [(i, [i] * n, [1]) for i, n in enumerate((9, 5, 4, 3, 3, 3))]
    (batch,) = pack(different, Packing(64, "auto", CPU, 300, 256))
    assert batch.tokens.shape == (3, 9)
    assert batch.halves()[0].tokens.shape == (1, 9)


def test_what_cannot_be_scored_is_refused():
    for context, continuation in (([], [1]), ([1], []), ([1], [2] * 5)):
        with pytest.raises(TaskError, match="context"):
            check_encoded([(0, context, continuation)], max_length=4)


def make(arch, **changes):
    from transformers import AutoModelForCausalLM

    settings = config(arch)
    for key, value in changes.items():
        setattr(settings, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(settings).float().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape) * 0.1)
    return model


def ask(n_questions=5, n=24):
    random = np.random.default_rng(0)
    shots = random.integers(0, VOCAB, n).tolist()
    questions = [shots + random.integers(0, VOCAB, 4 + i).tolist() for i in range(n_questions)]
    return [
        (4 * i + j, question, random.integers(0, VOCAB, 1 + j).tolist())
        for i, question in enumerate(questions)
        for j in range(4)
    ]


@pytest.mark.parametrize("arch", [a for a in ARCHS if a != "t5"])
def test_sharing_changes_nothing(arch, caplog):
    model, encoded = make(arch), ask()
    packing = Packing(256, "auto", CPU, VOCAB)
    scorer = Likelihoods(model, packing)
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        shared, _ = scorer.pack(model, encoded)
        plain = pack(encoded, packing)
        got, greedy = scorer.score(model, shared, len(encoded))
        want, alike = scorer.score(model, plain, len(encoded))
    assert "cannot share" not in caplog.text
    assert shared[0].reach is not None
    assert sum(b.tokens.numel() for b in shared) < sum(b.tokens.numel() for b in plain) / 3
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert (greedy == alike).all()
    one = model(torch.tensor([encoded[7][1] + encoded[7][2]]), use_cache=False).logits[0]
    target = encoded[7][2]
    lp = one.log_softmax(-1)[-len(target) - 1 : -1].gather(1, torch.tensor(target)[:, None])
    assert want[7] == pytest.approx(float(lp.sum().detach()), abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_log_softmax_and_ties_those_of_argmax(dtype):
    model, encoded = make("llama").to(dtype), ask()
    scorer = Likelihoods(model, Packing(256, "auto", CPU, VOCAB))
    with torch.inference_mode():
        model.lm_head.weight[VOCAB // 2 :] = model.lm_head.weight[: VOCAB - VOCAB // 2]
        (batch, *_) = pack(encoded, Packing(256, "auto", CPU, VOCAB))
        logits = model(batch.tokens, use_cache=False).logits[batch.rows, batch.columns]
        most_likely = logits.argmax(-1)[batch.places]
        assert len(most_likely.unique()) > 1
        for shift in (0, VOCAB // 2):  # the first of equal logits, and the second
            asked = dataclasses.replace(batch, targets=(most_likely + shift) % VOCAB)
            want = logits.log_softmax(-1, dtype=torch.float32)[batch.places, asked.targets]
            n = int(batch.slots.max()) + 1
            got, greedy = scorer.score(model, [asked], n)
            np.testing.assert_allclose(got, np.bincount(batch.slots, want.double()), rtol=1e-6)
            assert greedy[batch.slots].all() == (not shift)
            again, _ = scorer.score(model, [asked], n, greedy=False)
            np.testing.assert_array_equal(again, got)


@pytest.mark.parametrize("kind", ["mistral", "mamba"])
def test_a_model_that_cannot_share_is_noticed(kind, caplog):
    from transformers import MambaConfig, MambaForCausalLM

    encoded = ask()
    if kind == "mamba":
        torch.manual_seed(0)
        small = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
        model = MambaForCausalLM(small).eval()
    else:
        model = make("mistral", sliding_window=8)
    packing = Packing(256, "auto", CPU, VOCAB)
    scorer = Likelihoods(model, packing)
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        batches, _ = scorer.pack(model, encoded)
        got, _ = scorer.score(model, batches, len(encoded))
        want, _ = scorer.score(model, pack(encoded, packing), len(encoded))
    assert "cannot share" in caplog.text
    assert all(b.reach is None for b in batches)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_model_without_an_output_module_is_scored_too():
    model, encoded = make("llama"), ask()
    scorer = Likelihoods(model, Packing(256, "auto", CPU, VOCAB))
    with torch.inference_mode():
        batches, _ = scorer.pack(model, encoded)
        want, _ = scorer.score(model, batches, len(encoded))
        model.get_output_embeddings = lambda: None
        got, _ = scorer.score(model, batches, len(encoded))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, caplog):
    model, encoded = make("llama"), ask(n_questions=40, n=2)
    scorer = Likelihoods(model, Packing(256, "auto", CPU, VOCAB))
    forward, rows = model.forward, []

    def small(self, input_ids, **given):
        rows.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(input_ids=input_ids, **given)

    with torch.inference_mode():
        batches, _ = scorer.pack(model, encoded)
        assert max(len(b.tokens) for b in batches) > 2
        want, greedy = scorer.score(model, batches, len(encoded))
        monkeypatch.setattr(model, "forward", types.MethodType(small, model))
        got, alike = scorer.score(model, batches, len(encoded))
        assert max(rows) > 2
        rows.clear()
        again, _ = scorer.score(model, batches, len(encoded))
    assert max(rows) <= 2
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_array_equal(got, again)
    assert (greedy == alike).all()
    monkeypatch.setattr("evomerge.evaluators.memory.is_out_of_memory", lambda err: False)
    rows.clear()
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        scorer.score(model, scorer.pack(model, encoded)[0], len(encoded))


def test_weights_that_give_nan_settle_nothing():
    model, encoded = make("llama"), ask()
    scorer = Likelihoods(model, Packing(256, "auto", CPU, VOCAB))
    with torch.inference_mode():
        kept = model.lm_head.weight.clone()
        model.lm_head.weight.fill_(float("nan"))
        batches, settled = scorer.pack(model, encoded)
        assert not settled
        assert np.isnan(scorer.score(model, batches, len(encoded))[0]).all()
        model.lm_head.weight.copy_(kept)
        batches, settled = scorer.pack(model, encoded)
    assert settled
    assert batches[0].reach is not None
