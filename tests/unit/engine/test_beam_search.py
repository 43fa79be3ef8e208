"""Beam search beside transformers' own, on a model whose logits come from a table."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from app.engine.beam_search import Beam, BeamSearch, Candidates
from app.engine.generation import resolve_sampling
from softserve.schema.controls import Sampling

VOCABULARY = 100
ENDS = (1, 7)
PROMPT = (0, 42)


class Table(GenerationMixin, PreTrainedModel):  # type: ignore[misc]
    """The next token depends on the last two, and on how many there are."""

    config_class = PretrainedConfig

    def __init__(self, seed: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=VOCABULARY))
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(3, VOCABULARY, VOCABULARY, generator=generator) * 2
        # So that some completions end early, and some do not.
        self.table[..., list(ENDS)] += 1.5
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **given: Any) -> CausalLMOutput:
        last = self.table[input_ids.shape[1] % 3, input_ids[:, -1]]
        before = self.table[0, input_ids[:, -2]]
        return CausalLMOutput(logits=(last + before)[:, None])


@dataclass(frozen=True)
class Case:
    sampling: Sampling
    num_ends: int
    forces_end: bool

    @property
    def ends(self) -> tuple[int, ...]:
        return () if self.sampling.ignore_eos else ENDS[: self.num_ends]

    @property
    def forced_last(self) -> tuple[int, ...]:
        return self.ends if self.forces_end else ()


def cases(number: int) -> list[Case]:
    """Any controls that beams take, each value often."""
    choose = random.Random(0)  # noqa: S311
    found = []
    for _ in range(number):
        num_beams, max_new_tokens = choose.randint(2, 5), choose.choice((1, 2, 6, 20))
        sampling = resolve_sampling(
            num_beams=num_beams,
            n=choose.randint(1, num_beams),
            length_penalty=choose.choice((-1.0, 0.0, 0.6, 1.0, 2.0)),
            early_stopping=choose.choice((True, False, "never")),
            max_new_tokens=max_new_tokens,
            min_new_tokens=choose.choice((0, 0, max_new_tokens // 2)),
            repetition_penalty=choose.choice((1.0, 1.0, 1.7)),
            ignore_eos=choose.random() < 0.1,
        )
        # Where that is all, transformers has one completion several times.
        forces_end = max_new_tokens > 1 and choose.random() < 0.3
        found.append(Case(sampling, choose.choice((1, 1, 2)), forces_end))
    return found


def by_transformers(model: Table, case: Case) -> list[tuple[tuple[int, ...], float]]:
    """The tokens of each completion, and its score."""
    sampling = case.sampling
    found = model.generate(
        torch.tensor([PROMPT]),
        generation_config=GenerationConfig(
            num_beams=sampling.num_beams,
            num_return_sequences=sampling.n,
            length_penalty=sampling.length_penalty,
            early_stopping=sampling.early_stopping,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens or None,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=list(case.ends) or None,
            forced_eos_token_id=list(case.forced_last) or None,
            pad_token_id=0,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
        ),
    )
    lengths = (found.beam_indices >= 0).sum(dim=1).tolist()
    sequences = found.sequences[:, len(PROMPT) :].tolist()
    scores = found.sequences_scores.tolist()
    return [
        (tuple(token_ids[:length]), score)
        for token_ids, length, score in zip(sequences, lengths, scores, strict=True)
    ]


def run(model: Table, case: Case) -> BeamSearch:
    search = BeamSearch(case.sampling, frozenset(case.ends), PROMPT, forced_last=case.forced_last)
    while not search.is_done:
        search.step([next_tokens(model, beam, search.num_candidates) for beam in search.beams])
    return search


def next_tokens(model: Table, beam: Beam, number: int) -> Candidates:
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPT, *beam.token_ids]])).logits[:, -1]
    logprobs, token_ids = logits.log_softmax(dim=-1)[0].topk(min(number, VOCABULARY))
    return Candidates(token_ids.numpy(), logprobs.numpy())


@pytest.mark.parametrize("seed", range(2))
def test_completions_are_those_of_transformers(seed: int) -> None:
    model = Table(seed)
    lengths, ended = set(), 0
    for case in cases(80):
        search = run(model, case)
        got = [(each.beam.token_ids, each.score) for each in search.ended[: case.sampling.n]]
        assert got == by_transformers(model, case), case
        assert [beam.token_ids for beam in search.best(case.sampling.n)] == [
            token_ids for token_ids, _ in got
        ]
        lengths |= {len(token_ids) for token_ids, _ in got}
        ended += sum(token_ids[-1] in case.ends for token_ids, _ in got)
    assert len(lengths) > 5
    assert ended > 20


def test_a_path_says_where_each_token_came_from() -> None:
    model = Table(0)
    sampling = resolve_sampling(num_beams=4, max_new_tokens=12)
    search, steps = BeamSearch(sampling, frozenset()), []
    while not search.is_done:
        steps.append(search.beams)
        search.step([next_tokens(model, beam, search.num_candidates) for beam in search.beams])

    found = search.best(4)
    assert len({place for beam in found for place in beam.path}) == 4
    for beam in found:
        for length, place in enumerate(beam.path):
            assert steps[length][place].token_ids == beam.token_ids[:length]


def test_what_is_stopped_has_what_there_is() -> None:
    model = Table(0)
    search = BeamSearch(resolve_sampling(num_beams=4, max_new_tokens=50), frozenset())
    for _ in range(5):
        search.step([next_tokens(model, beam, search.num_candidates) for beam in search.beams])
    expected = [beam.token_ids for beam in search.beams]
    assert not search.is_done

    search.stop()
    assert search.is_done
    assert [beam.token_ids for beam in search.best(4)] == expected


def test_a_search_that_is_stopped_at_once() -> None:
    search = BeamSearch(resolve_sampling(num_beams=4), frozenset())
    search.stop()
    assert [beam.token_ids for beam in search.best(4)] == [()]


def test_equal_candidates_keep_the_order_of_beams_and_ids() -> None:
    equal = Candidates(np.array([9, 3, 5, 4]), np.full(4, -1.0, dtype=np.float32))
    search = BeamSearch(resolve_sampling(num_beams=2), frozenset())
    search.step([equal])
    assert [beam.token_ids for beam in search.beams] == [(3,), (4,)]

    search.step([equal, equal])
    assert [beam.token_ids for beam in search.beams] == [(3, 3), (3, 4)]
