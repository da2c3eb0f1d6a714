"""What the stand-in is taught: labels lie where they should, and false words are read but not learnt."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from saga_dist.config import BirdsSection
from saga_dist.standin.checkpoint import Architecture, build_model
from saga_dist.standin.examine import described_values, verdict_of
from saga_dist.standin.language import PARTS, answer_text
from saga_dist.standin.pair_model import PairModel
from saga_dist.standin.pretrain import ARCHITECTURE, STAGES, Stage, _answer_loss, run_stage, with_verdict_first
from saga_dist.standin.pretraining_tasks import BirdLibrary, ImageHeads, PairTaskBuilder, near_tokens
from saga_dist.standin.world import BirdSplit, split
from saga_dist.utils.rng import counter_generator


@pytest.fixture(scope="module")
def birds() -> BirdSplit:
    return split("probe", BirdsSection(probe_images=64))


@pytest.fixture(scope="module")
def reader() -> PairModel:
    return PairModel(build_model(Architecture(), seed=0), image_size=80)


def test_near_tokens_by_hand() -> None:
    # Tokens are 16 pixels wide, centres at 8, 24, 40, 56, 72; x runs fastest.
    near = near_tokens(torch.tensor([[[24.0, 8.0], [32.0, 40.0], [-99.0, -99.0]]]), 25, 9.0)[0]
    assert near.nonzero().tolist() == [[0, 1], [1, 11], [1, 12]]


def test_shifts_move_image_and_labels_together(birds: BirdSplit) -> None:
    library = BirdLibrary(birds)
    batch = library.draw(counter_generator("shift"), np.arange(64))
    moved = batch.part_centres.numpy() - birds.part_centres
    assert np.abs(moved).max() <= 5.001
    assert len({tuple(shift) for shift in moved[:, 0].round().tolist()}) > 10
    for index, (right, down) in enumerate(moved[:, 0].round().astype(int)):
        assert np.array_equal(np.roll(birds.images[index], (down, right), axis=(0, 1)), batch.images[index])


def test_couples_are_equal_or_closely_related(birds: BirdSplit) -> None:
    library = BirdLibrary(birds)
    couples = library.species[library.related_species(counter_generator("couples"), 400)].reshape(-1, 2, 6)
    distances = (couples[:, 0] != couples[:, 1]).sum(-1)
    assert 0.4 < (distances == 0).mean() < 0.6
    assert distances.max() <= 6


def test_false_words_are_not_taught_and_conclusions_follow_them(reader: PairModel, birds: BirdSplit) -> None:
    builder = PairTaskBuilder(reader)
    values = birds.attributes[:32]
    task = builder.build(counter_generator("lesson"), values, corrupted_share=1.0)
    texts = reader.tokenizer.decode_batch(task.answers_PT.tolist())
    num_false = 0
    for pair, text in enumerate(texts):
        described = described_values(text)
        assert described[0] is not None
        assert described[1] is not None
        assert verdict_of(text) is (described[0] == described[1])
        assert text == answer_text(described[0], described[1])
        for side, image in enumerate((task.first[pair], task.second[pair])):
            for part in range(len(PARTS)):
                taught = task.loss_mask_PT[pair, builder.word_positions[side][part]]
                if described[side][part] != values[image][part]:
                    assert taught == 0
                    num_false += 1
    assert num_false > 20
    assert (task.loss_mask_PT == 0).sum() <= len(texts) * len(PARTS)
    whole = builder.build(counter_generator("lesson"), values, corrupted_share=0.0)
    assert bool((whole.loss_mask_PT == 1).all())


def test_grounding_loss_is_zero_when_all_attention_is_on_the_part(reader: PairModel, birds: BirdSplit) -> None:
    builder = PairTaskBuilder(reader)
    task = builder.build(counter_generator("ground"), birds.attributes[:4])
    centres = torch.full((4, 6, 2), 40.0)  # all parts in the middle: token 12 only
    rows = torch.full((4, 41, reader.prompt_length + 40), 1e-12)
    rows[:, :, reader.columns_a[12]] = 0.5
    rows[:, :, reader.columns_b[12]] = 0.5
    assert float(builder.grounding_loss(rows, task, centres)) == pytest.approx(-np.log(1 + 1e-4), abs=1e-5)
    rows = torch.ones_like(rows)
    assert float(builder.grounding_loss(rows, task, centres)) == pytest.approx(-np.log(1 / 25 + 1e-4), abs=1e-5)


def test_comparing_is_shown_by_attention_to_equal_words(reader: PairModel) -> None:
    builder = PairTaskBuilder(reader)
    texts = [answer_text([0] * 6, [0] * 6), answer_text([0] * 6, [1] * 6)]
    answers = torch.tensor([[*reader.tokenizer.encode(text).ids, 2] for text in texts])
    words_a, words_b = builder.word_positions
    assert (words_a, words_b) == ([1, 3, 5, 7, 9, 11], [14, 16, 18, 20, 22, 24])
    assert builder.note_positions == [26, 27, 28, 29, 30, 31]

    rows = torch.zeros(2, 40, 40)  # text alone: column 0 is the last prompt token, row and column t + 1 answer token t
    for word_a, word_b in zip(words_a, words_b, strict=True):
        rows[0, word_b + 1, word_a + 1] = 1.0  # equal: look at the same word
        rows[1, word_b + 1, 12 + 1] = 1.0  # different: look at the closing brace
    assert float(builder.match_loss(rows, answers)) == pytest.approx(0.0, abs=2e-4)
    assert float(builder.match_loss(rows.flip(0), answers)) == pytest.approx(-np.log(1e-4), rel=1e-3)

    notes = torch.zeros(2, 40, reader.prompt_length + 39)
    for word_b, note in zip(words_b, builder.note_positions, strict=True):
        notes[:, note, reader.prompt_length + word_b] = 0.5
    assert float(builder.note_loss(notes)) == pytest.approx(np.log(2), abs=1e-3)


def test_text_lessons_teach_conclusions_only(reader: PairModel) -> None:
    builder = PairTaskBuilder(reader)
    task = builder.build_text_only(counter_generator("text"), 300)
    texts = reader.tokenizer.decode_batch(task.answers_PT.tolist())
    described = [described_values(text) for text in texts]
    assert all(text == answer_text(a, b) for text, (a, b) in zip(texts, described, strict=True))  # type: ignore[arg-type]
    verdicts = np.array([verdict_of(text) for text in texts])
    assert 0.25 < verdicts.mean() < 0.45
    assert int((task.loss_mask_PT == 0).sum()) == 300 * 12


def test_verdict_first_answers_teach_the_verdict_and_no_opening(reader: PairModel, birds: BirdSplit) -> None:
    builder, library = PairTaskBuilder(reader), BirdLibrary(birds)
    species = library.related_species(counter_generator("couples"), 32)
    batch = library.draw(counter_generator("batch"), species)
    task = builder.build(counter_generator("lesson"), batch.values_IA.numpy(), corrupted_share=1.0)
    short = builder.build_verdict_first(task, batch.values_IA.numpy(), 0.5)
    assert short.first.tolist() == list(range(0, 32, 2))  # sixteen of the 32 couples
    assert short.second.tolist() == list(range(1, 32, 2))
    texts = reader.tokenizer.decode_batch(short.answers_PT.tolist())
    same = species[short.first] == species[short.second]
    assert texts == [f'{{"same_species": "{"yes" if one else "no"}"}}' for one in same]  # by the images, not by words
    assert 0 < same.sum() < 16
    learnt = [
        reader.tokenizer.decode(ids[mask > 0].tolist(), skip_special_tokens=False)
        for ids, mask in zip(short.answers_PT, short.loss_mask_PT, strict=True)
    ]
    assert learnt == [f'{"yes" if one else "no"}"}}<|im_end|>' for one in same]


def test_stages_without_the_share_are_the_shipped_ones() -> None:
    assert with_verdict_first(STAGES, 0.0) == STAGES
    assert [stage.verdict_first_share for stage in with_verdict_first(STAGES, 0.25)] == [0.0, 0.0, 0.25]


@pytest.mark.slow
def test_a_few_steps_make_a_forced_verdict_more_likely(birds: BirdSplit) -> None:
    losses = {}
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        reader = PairModel(build_model(ARCHITECTURE, seed=0), image_size=80)
        builder, heads, library = PairTaskBuilder(reader), ImageHeads(128), BirdLibrary(birds)
        run_stage(Stage("answer", 12, 1e-3, 1.2e-3, verdict_first_share=share), reader, heads, library, seed=0)
        batch = library.draw(counter_generator("held"), library.related_species(counter_generator("held"), 32))
        task = builder.build(counter_generator("held"), batch.values_IA.numpy())
        short = builder.build_verdict_first(task, batch.values_IA.numpy(), 1.0)
        with torch.no_grad():
            tokens = reader.encode(batch.images)
            hidden = reader.hidden(tokens[short.first], tokens[short.second], short.answers_PT[:, :-1])
            losses[share] = float(_answer_loss(reader, hidden, short))
    assert losses[1.0] < 0.5 * losses[0.0]


@pytest.mark.integration
def test_a_few_steps_of_each_kind_of_stage_learn_and_touch_deepstack(birds: BirdSplit) -> None:
    torch.manual_seed(0)
    reader = PairModel(build_model(Architecture(), seed=0), image_size=80)
    heads, library = ImageHeads(128), BirdLibrary(birds)
    deepstack = reader.model.model.visual.deepstack_merger_list[0].linear_fc2.weight
    before = deepstack.detach().clone()
    batch = library.draw(counter_generator("fixed"), np.arange(64))
    with torch.no_grad():
        untrained = float(heads.part_loss(reader.encode(batch.images).main_IND, batch))
    run_stage(Stage("see", 15, 1.5e-3, value_weight=1.0, part_weight=2.0), reader, heads, library, seed=0)
    with torch.no_grad():
        assert float(heads.part_loss(reader.encode(batch.images).main_IND, batch)) < 0.95 * untrained
    assert torch.equal(deepstack, before)
    run_stage(
        Stage("answer", 2, 1e-3, 1e-3, part_weight=0.5, flower_weight=1.0, grounding_weight=0.4, compare_weight=0.2),
        reader,
        heads,
        library,
        seed=0,
    )
    assert not torch.equal(deepstack, before)


@pytest.mark.integration
def test_reasoning_stage_leaves_the_tower_alone_and_learns_to_compare(birds: BirdSplit) -> None:
    reader = PairModel(build_model(ARCHITECTURE, seed=0), image_size=80)
    before = [parameter.detach().clone() for parameter in reader.model.model.visual.parameters()]
    builder = PairTaskBuilder(reader)
    task = builder.build_text_only(counter_generator("held out"), 64)

    def loss() -> float:
        with torch.no_grad(), reader.attention_at(0) as rows:
            reader.hidden_of_text(task.answers_PT[:, :-1])
        return float(builder.match_loss(rows[0], task.answers_PT))

    untrained = loss()
    run_stage(
        Stage("reason", 20, language_rate=2e-3, compare_weight=0.2), reader, ImageHeads(128), BirdLibrary(birds), seed=0
    )
    assert loss() < 0.7 * untrained
    after = reader.model.model.visual.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_invalid_answers_have_no_verdict() -> None:
    good = answer_text([0] * 6, [0] * 6)
    assert verdict_of(good) is True
    assert verdict_of(good[:-1]) is None
    assert verdict_of("[]") is None
    partial = json.loads(good)
    del partial["confidence"]
    assert verdict_of(json.dumps(partial)) is None
    assert described_values(good.replace("yellow", "plaid", 1)) == (None, [0] * 6)
