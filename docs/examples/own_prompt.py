"""Example of a prompt template: both descriptions and the verdict, without differences, confidence and reasoning.

    cd docs/examples
    saga-dist train ../../configs/birds.toml prompt.variant=own_prompt:DESCRIBE_AND_JUDGE --dry-run

On a cluster, `ray job submit --working-dir docs/examples -- saga-dist train …` sends the module along.
"""

from __future__ import annotations

import json

from saga_dist.data.prompt_templates import AnswerKeys
from saga_dist.data.vocabularies import Vocabulary


class DescribeAndJudge:
    """Template of a prompt that requests a description of each image and the verdict."""

    def answer_keys(self, vocabulary: Vocabulary) -> AnswerKeys:
        """Returns the keys of the two descriptions, which give attention targets, and of the verdict."""
        key_a, key_b, verdict_key = f"{vocabulary.item}_1", f"{vocabulary.item}_2", vocabulary.verdict_key
        return AnswerKeys((key_a, key_b, verdict_key), verdict_key, key_a, key_b)

    def render(self, vocabulary: Vocabulary) -> str:
        """Returns the instruction, with an example of the answer's form."""
        answer = self.answer_keys(vocabulary)
        described = dict.fromkeys(vocabulary.attribute_keys, "...")
        shape = json.dumps({answer.key_a: described, answer.key_b: described, answer.verdict_key: "yes|no"})
        return "\n".join(
            (
                f"Describe each {vocabulary.item}: {'; '.join(vocabulary.attributes)}.",
                f"Then say whether both are of the {vocabulary.verdict_question}.",
                "Answer with one JSON object and nothing else, its keys in this order:",
                shape,
            )
        )


DESCRIBE_AND_JUDGE = DescribeAndJudge()
"""Object that ``prompt.variant`` names."""
