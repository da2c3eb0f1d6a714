"""The comparison prompt: what it says, in which order, and what a user may get wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from saga_dist.data.prompts import QWEN_CHAT, ChatFormat, PromptSpec, render_prompt
from saga_dist.data.vocabularies import AIRCRAFT, BIRDS, CARS, STANDIN_BIRDS, VOCABULARIES, load_vocabulary
from saga_dist.errors import ConfigError

STANDIN_PROMPT = """\
<|im_start|>user
Bird 1: <A>
Bird 2: <B>
You are an ornithologist: you identify bird species from photographs.
Specialists look at: bill; crown; breast; wing; tail; legs.
You are given two bird photographs. Do four things:
1. Describe bird 1 along each of these attributes, a few words for each.
2. Describe bird 2 in the same way.
3. Sum up the key differences.
4. Decide whether both are of the same species.
Answer with one JSON object and nothing else, its keys in this order:
{"bird_1": {"bill": "...", "crown": "...", "breast": "...", "wing": "...", "tail": "...", "legs": "..."}, \
"bird_2": {"bill": "...", "crown": "...", "breast": "...", "wing": "...", "tail": "...", "legs": "..."}, \
"differences": "...", "confidence": "high|medium|low", "reasoning": "one sentence", "same_species": "yes|no"}<|im_end|>
<|im_start|>assistant
"""

GENERIC_TEXT_FIRST = """\
<u>You are given two car photographs. Sum up how they differ and decide whether both are of the same make and model.
Answer with one JSON object and nothing else, its keys in this order:
{"differences": "...", "reasoning": "one sentence", "same_model": "yes|no"}
Car 1: <A>
Car 2: <B></u>"""


def render(spec: PromptSpec, chat: ChatFormat = QWEN_CHAT) -> str:
    return render_prompt(spec, image_a="<A>", image_b="<B>", chat=chat)


def shape_asked_for(prompt: str) -> dict[str, object]:
    line = next(line for line in prompt.split("\n") if line.startswith("{"))
    return json.loads(line.removesuffix(QWEN_CHAT.after_user.split("\n")[0]))


def test_structured_prompt_word_for_word() -> None:
    assert render(PromptSpec(STANDIN_BIRDS)) == STANDIN_PROMPT


def test_generic_text_first_prompt_in_another_chat_format() -> None:
    spec = PromptSpec(CARS, variant="generic", order="text_first")
    assert render(spec, ChatFormat("<u>", "</u>")) == GENERIC_TEXT_FIRST


@pytest.mark.parametrize("order", ["images_first", "text_first"])
@pytest.mark.parametrize("variant", ["structured", "generic"])
@pytest.mark.parametrize("name", ["birds", "cars", "aircraft"])
def test_the_papers_prompts_are_their_snapshots(name: str, variant: str, order: str) -> None:
    """A change of wording is a change of the method: it must be seen, and the snapshot changed with it."""
    snapshot = Path(__file__).with_name("prompts") / f"{name}_{variant}_{order}.txt"
    assert render(PromptSpec(VOCABULARIES[name], variant=variant, order=order)) == snapshot.read_text("utf-8")


def test_orders_hold_the_same_text_and_put_the_images_at_either_end() -> None:
    images_first, text_first = (render(PromptSpec(BIRDS, order=order)) for order in ("images_first", "text_first"))
    assert sorted(images_first.replace("<|im_end|>", "\n").split()) == sorted(
        text_first.replace("<|im_end|>", "\n").split()
    )
    assert images_first.index("<B>") < images_first.index("You are")
    assert text_first.index("<A>") > text_first.index("yes|no")
    assert all(prompt.index("<A>") < prompt.index("<B>") for prompt in (images_first, text_first))


@pytest.mark.parametrize(
    ("vocabulary", "keys"),
    [
        (BIRDS, ["bird_1", "bird_2", "differences", "confidence", "reasoning", "same_species"]),
        (CARS, ["car_1", "car_2", "differences", "confidence", "reasoning", "same_model"]),
        (AIRCRAFT, ["aircraft_1", "aircraft_2", "differences", "confidence", "reasoning", "same_variant"]),
    ],
)
def test_json_keys_are_the_papers_in_order(vocabulary: object, keys: list[str]) -> None:
    spec = PromptSpec(vocabulary)  # type: ignore[arg-type]
    shape = shape_asked_for(render(spec))
    assert list(shape) == keys == list(spec.keys)
    assert list(shape[spec.key_a]) == list(shape[spec.key_b]) == list(spec.vocabulary.attribute_keys)  # type: ignore[call-overload]


def test_built_in_vocabularies_have_the_papers_number_of_attributes() -> None:
    assert {name: len(words.attributes) for name, words in VOCABULARIES.items()} == {
        "birds": 28,
        "cars": 17,
        "aircraft": 17,
        "standin_birds": 6,
    }


def test_every_attribute_and_parameter_is_said() -> None:
    for words in VOCABULARIES.values():
        prompt = render(PromptSpec(words))
        said = (*words.attributes, words.expert, words.identifies, words.verdict_question, words.verdict_key)
        assert [text for text in said if text not in prompt] == []


def test_generic_prompt_has_no_role_and_no_attribute() -> None:
    spec = PromptSpec(BIRDS, variant="generic")
    prompt = render(spec)
    assert not spec.describes_images
    assert spec.keys == ("differences", "reasoning", "same_species")
    assert "ornithologist" not in prompt
    assert "bill" not in prompt
    assert list(shape_asked_for(prompt)) == list(spec.keys)


def test_hints_in_parentheses_are_shown_but_not_in_the_keys() -> None:
    assert "engine type (turbofan / turboprop / piston / jet)" in render(PromptSpec(AIRCRAFT))
    assert AIRCRAFT.attribute_keys[1] == "engine_type"


def test_vocabulary_from_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "orchids.toml"
    file.write_text(
        'item = "orchid"\nplural = "orchids"\nexpert = "botanist"\nidentifies = "orchid species"\n'
        'verdict_question = "same species"\nverdict_key = "same"\nattributes = ["lip color", "sepal shape"]\n',
        "utf-8",
    )
    spec = PromptSpec(load_vocabulary(str(file)))
    assert spec.keys[:2] == ("orchid_1", "orchid_2")
    assert spec.vocabulary.attribute_keys == ("lip_color", "sepal_shape")
    assert "You are a botanist" in render(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item = 'x'", "attributes is missing"),
        ("colour = 'x'", "unknown key 'colour'"),
        ("item = ", "not valid TOML"),
    ],
)
def test_wrong_vocabulary_files_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "words.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_vocabulary(str(file))
    assert str(file) in str(caught.value)


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(ConfigError, match="birds, cars, aircraft, standin_birds"):
        load_vocabulary("bird")
    with pytest.raises(ConfigError, match="structured, generic"):
        PromptSpec(BIRDS, variant="plain")


def test_attributes_with_one_key_are_refused() -> None:
    with pytest.raises(ConfigError, match="wing_shape"):
        replace(BIRDS, attributes=("wing shape", "wing shape (round / pointed)"))
