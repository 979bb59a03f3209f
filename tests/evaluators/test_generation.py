"""Generated answers are those of lm-eval's HFLM, whoever decodes them."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.errors import TaskError
from evomerge.evaluators.scoring import LiveModel
from evomerge.evaluators.tasks import lean
from tests.models import config
from tests.models import tokenizer as bpe

from .toys import make_model, make_t5

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "merge", "experts", "score", "12"]
DECODED_HERE = ("llama", "qwen2", "gpt2", "mistral", "gemma2", "gemma3", "gpt_neox", "qwen3_moe")


def prompts(n: int, seed: int = 0, longest: int = 9, prefix: str = "") -> list[str]:
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(n)]
    return [prefix + text for text in made]


def requests(texts, repeats: int = 1, task: str = "t", **kwargs) -> list[Instance]:
    kwargs = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False} | kwargs
    return [
        Instance("generate_until", {}, (text, dict(kwargs)), 0, (task, i, repeats))
        for i, text in enumerate(texts)
    ]


def ours(model, tokenizer, asked, batch_size="auto", max_length=None):
    """Answers and what was encoded."""
    with lean(), torch.inference_mode():
        live = LiveModel(model, tokenizer, batch_size, max_length)
        encoded = live.encode(asked)
        live.answer(model, encoded)
    return [i.resps for i in asked], encoded.generations


def stock(model, tokenizer, asked, batch_size=1, max_length=None):
    with lean():
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token
            batch_size=batch_size,
            max_length=max_length,
        )
        return [[text] for text in lm.generate_until(asked, disable_tqdm=True)]


def make(arch: str, device, **changes):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = config(arch)
    for name, value in changes.items():
        setattr(settings, name, value)
    model = AutoModelForCausalLM.from_config(settings).float().eval().to(device)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, device=device) * 0.1)
    return model


@pytest.mark.parametrize("arch", DECODED_HERE)
def test_architectures(arch, device):
    model = make(
        arch, device, **({"sliding_window": 8} if "gemma" in arch or arch == "mistral" else {})
    )
    asked = requests(prompts(7), until=["o", "e th", "\n\n"])
    got, encoded = ours(model, bpe(), asked)
    assert encoded.groups
    assert got == stock(model, bpe(), asked)
    assert len({text for (text,) in got}) > 2


@pytest.fixture
def gpt2(device):
    return make("gpt2", device)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_batch_sizes_and_settings(batch_size, gpt2):
    texts = prompts(6)
    asked = [
        *requests(texts, until=["o"], max_gen_toks=9),
        *requests(texts, until=[], max_gen_toks=1, task="u"),
        *requests(texts, until="the", max_gen_toks=15, temperature=0.0, task="v"),
        *requests([*texts, *texts], until=["q", "fox"], task="w"),
    ]
    got, encoded = ours(gpt2, bpe(), asked, batch_size)
    assert [len(group.prompts) for group in encoded.groups] == [6] * 4
    assert got == stock(gpt2, bpe(), asked)
    assert got == stock(gpt2, bpe(), asked, 5)
    assert len({text for (text,) in got}) > 8


def test_a_shared_beginning_is_read_once(device):
    prefix = "merge the experts, score the merge, keep the best of them; " * 3
    for arch in ("llama", "gpt2", "gemma3"):
        model = make(arch, device)
        asked = requests(prompts(9, prefix=prefix), until=["o"])
        got, encoded = ours(model, bpe(), asked)
        (group,) = encoded.groups
        assert group.n_shared > 40
        seen = []
        hook = model.register_forward_pre_hook(
            lambda _, __, kwargs, seen=seen: seen.append(kwargs["input_ids"].shape),
            with_kwargs=True,
        )
        again, _ = ours(model, bpe(), requests(prompts(9, prefix=prefix), until=["o"]), 4)
        hook.remove()
        assert [n for rows, n in seen if n >= group.n_shared] == [group.n_shared]
        assert got == again == stock(model, bpe(), asked)


def test_a_window_narrower_than_the_prompts_shares_nothing(device):
    model = make("gemma3", device, sliding_window=16)
    asked = requests(prompts(5, prefix="score the merge, keep the best of them; " * 2))
    got, encoded = ours(model, bpe(), asked)
    assert encoded.groups[0].n_shared == 0
    assert got == stock(model, bpe(), asked)


def test_long_prompts_lose_their_beginning(gpt2):
    asked = requests(prompts(6, longest=60), max_gen_toks=10)
    got, encoded = ours(gpt2, bpe(), asked, max_length=40)
    assert {len(p) for p in encoded.groups[0].prompts} >= {30}
    assert got == stock(gpt2, bpe(), asked, max_length=40)
    with pytest.raises(TaskError, match="leaves no room"):
        ours(gpt2, bpe(), requests(prompts(1), max_gen_toks=40), max_length=40)


def test_beginning_of_text_is_written_once(device, tokenizer):
    model = make_model(device)
    texts = prompts(5)
    asked = requests([*texts, *("<s>" + text for text in texts)])
    got, encoded = ours(model, tokenizer, asked)
    assert all(p[0] == 0 and p[1] != 0 for p in encoded.groups[0].prompts)
    assert len(encoded.groups[0].prompts) == 5
    assert got == stock(model, tokenizer, asked)
    assert got[:5] == got[5:]


def test_right_padding_tokenizers(gpt2):
    right = copy.deepcopy(bpe())
    right.padding_side = "right"
    asked = requests(prompts(6), until=["o"])
    got, _ = ours(gpt2, right, asked, 3)
    assert got == stock(gpt2, right, asked, 3)
    assert right.padding_side == "right"


def test_a_stop_inside_a_token_or_across_tokens(gpt2):
    probe, _ = ours(gpt2, bpe(), requests(prompts(6), until=[], max_gen_toks=30))
    text = max((text for (text,) in probe), key=len)
    for stop in (text[3], text[4:6], text[5:12], text[-1:]):
        asked = requests(prompts(6), until=[stop], max_gen_toks=30)
        got, _ = ours(gpt2, bpe(), asked)
        assert got == stock(gpt2, bpe(), asked)
        assert any(len(new) < len(old) for (new,), (old,) in zip(got, probe, strict=True))
        assert not any(stop in new for (new,) in got)


def test_rows_end_at_end_of_text_and_generation_goes_on_no_further(gpt2):
    ids = torch.tensor([bpe().encode(prompts(1)[0])], device=gpt2.device)
    first = int(gpt2(ids).logits[0, -1].argmax())
    old = gpt2.generation_config.eos_token_id
    gpt2.generation_config.eos_token_id = [0, first]
    try:
        asked = requests(prompts(6), until=["\n\n"], max_gen_toks=25)
        passes = []
        hook = gpt2.register_forward_pre_hook(lambda *_: passes.append(1))
        got, _ = ours(gpt2, bpe(), asked[:1])
        hook.remove()
        assert len(passes) == 1
        got, _ = ours(gpt2, bpe(), asked)
        assert got == stock(gpt2, bpe(), asked)
        assert got[0] == [bpe().decode([first])]
    finally:
        gpt2.generation_config.eos_token_id = old


def test_without_a_stop_it_ends_at_max_gen_toks(gpt2):
    passes = []
    hook = gpt2.register_forward_pre_hook(lambda *_: passes.append(1))
    got, _ = ours(gpt2, bpe(), requests(prompts(3), until=["never said"], max_gen_toks=40))
    hook.remove()
    assert len(passes) == 40
    assert all(len(bpe().encode(text)) >= 20 for (text,) in got)


def test_equal_prompts_are_generated_once(gpt2):
    texts = prompts(3)
    asked = requests([*texts, *texts], repeats=2)
    got, encoded = ours(gpt2, bpe(), asked)
    assert len(encoded.groups[0].prompts) == 3
    assert [len(resps) for resps in got] == [2] * 6
    assert got[:3] == got[3:]
    assert [resps[:1] for resps in got] == stock(gpt2, bpe(), asked)


def test_a_chat_template(task_folder, device, tokenizer):
    from .test_stock import assert_equals_stock
    from .test_stock import stock as stock_scores
    from .toys import OBJECTIVES, build

    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    settings = {"num_fewshot": 1, "apply_chat_template": True, "gen_kwargs": {"max_gen_toks": 7}}
    evaluator = build(task_folder, OBJECTIVES[-2:], **settings)
    model = make_model(device)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    assert evaluator._built["search"].requests.generations.groups
    results = stock_scores(
        model, tokenizer, task_folder, evaluator, "search", fewshot_as_multiturn=True, **settings
    )
    assert_equals_stock(scores, results, evaluator, "search")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True, "temperature": 0.8},
        {"num_beams": 2},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"max_length": 70},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_more_than_greedy_is_left_to_transformers(kwargs, gpt2):
    asked = requests(prompts(3), **kwargs)
    got, encoded = ours(gpt2, bpe(), asked, 1)
    assert not encoded.groups
    torch.manual_seed(1234)
    assert got == stock(gpt2, bpe(), asked)


def test_a_generation_config_can_forbid_the_loop(gpt2):
    gpt2.generation_config.suppress_tokens = [5]
    try:
        _, encoded = ours(gpt2, bpe(), requests(prompts(1)))
        assert not encoded.groups
    finally:
        gpt2.generation_config.suppress_tokens = None


def test_states_that_are_not_keys_and_values_are_left_to_transformers(device):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    settings = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4,
                           bos_token_id=0, eos_token_id=0, pad_token_id=0)  # fmt: skip
    model = MambaForCausalLM(settings).float().eval().to(device)
    asked = requests(prompts(3), max_gen_toks=4)
    got, encoded = ours(model, bpe(), asked, 1)
    assert not encoded.groups
    assert got == stock(model, bpe(), asked)


def test_an_encoder_decoder_is_left_to_transformers(device, tokenizer):
    model = make_t5(device)
    asked = requests(prompts(3), max_gen_toks=4)
    got, encoded = ours(model, tokenizer, asked, 1)
    assert not encoded.groups
    assert got == stock(model, tokenizer, asked)


@pytest.mark.parametrize("when", [0, 3])
def test_a_row_without_finite_logits(when, device):
    model = make("llama", device)
    passes = []

    def poison(_, __, output):
        passes.append(1)
        if len(passes) > when:
            output.logits[-1, -1, 7] = float("nan")
        return output

    hook = model.register_forward_hook(poison)
    with pytest.raises(FloatingPointError, match="not finite"):
        ours(model, bpe(), requests(prompts(4), until=[], max_gen_toks=8))
    hook.remove()
    assert len(passes) == when + 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_batch_for_good(error, device):
    model = make("llama", device)
    sizes = []

    def at_most_three(_, __, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3:
            raise error

    asked = requests(prompts(11), until=["o"])
    want = stock(model, bpe(), asked)
    hook = model.register_forward_pre_hook(at_most_three, with_kwargs=True)
    with lean(), torch.inference_mode():
        live = LiveModel(model, bpe(), "auto", None)
        encoded = live.encode(asked)
        live.answer(model, encoded)
        assert [i.resps for i in asked] == want
        assert [n for n in sizes if n > 3] == [11, 5, 6]
        sizes.clear()
        live.answer(model, encoded)
        assert max(sizes) == 3
        assert [i.resps for i in asked] == want
    hook.remove()


@pytest.mark.parametrize("kind", ["sampled", "encoder-decoder"])
def test_out_of_memory_in_the_stock_loops_halves_their_batches(kind, device, tokenizer):
    """What only lm-eval's own model can answer; its answers do not depend on the batch size."""
    if kind == "sampled":
        model = make("llama", device)
        asked = requests(prompts(11), do_sample=True, temperature=0.8, top_k=1, max_gen_toks=4)
        tokenizer = bpe()
    else:
        model = make_t5(device)
        texts = prompts(11)
        asked = requests(texts, max_gen_toks=4)
        asked += [
            Instance("loglikelihood", {}, (text, " fox"), 0, ("t", i, 1))
            for i, text in enumerate(texts)
        ]
    sizes = []

    def at_most_three(_, __, kwargs):
        sizes.append(max(len(t) for t in kwargs.values() if isinstance(t, torch.Tensor)))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with lean(), torch.inference_mode():
        live = LiveModel(model, tokenizer, 8, None)
        encoded = live.encode(asked)
        live.answer(model, encoded)
        want = [i.resps for i in asked]
        hook = model.register_forward_pre_hook(at_most_three, with_kwargs=True)
        for most in (8, 2):
            sizes.clear()
            live.answer(model, encoded)
            assert max(sizes) == most
            assert [i.resps for i in asked] == want
    hook.remove()


def test_one_row_that_does_not_fit_is_an_error(gpt2):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = gpt2.register_forward_pre_hook(never)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            ours(gpt2, bpe(), requests(prompts(4)))
    finally:
        hook.remove()
