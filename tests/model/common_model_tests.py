"""transformers' own common model tests, run on this package's models and on transformers' ViT side by side.

The tests are `ModelTesterMixin` and `ConfigTester` of the source distribution of the installed transformers, which is
not part of the installed package. A plain `pytest` does not collect this file, it is run as

    pip download --no-deps --no-binary :all: transformers==VERSION && tar xzf transformers-VERSION.tar.gz
    pip install parameterized
    python tests/common_model_tests.py transformers-VERSION [-k PART_OF_A_TEST_NAME]

and prints how many tests pass, fail and are skipped, each test whose outcome differs, each failure, and each skip with
its reason. A skip is not a pass. Exits with 1 where ours fails a test, or does not pass one that ViT passes, but for
those of `NOT_OURS`.

What transformers' own test of its ViT changes in the mixin, and what of it holds for ours for the same reason:

- sizes and inputs (its `ViTModelTester`): the same numbers for all, see `SIZES`.
- `test_resize_embeddings = False`: for all, there is no vocabulary.
- `test_model_get_set_embeddings`: for all; the mixin wants an `nn.Embedding`, and an image has a convolution there.
- `test_inputs_embeds` is skipped for ViT; not here: the mixin looks at the signature and skips by itself.
- `test_multi_gpu_data_parallel_forward`: no longer in the mixin.
- `ViTForMaskedImageModeling`: ViT's alone, and stays in its list.

What is changed here beyond that, for all alike:

- Importing the mixin needs two others that are not shipped, of the exporters and of generation: they are empty. So is
  `PipelineTesterMixin` left out: it downloads its tiny models from the Hub.
- The mixin finds out by name, in the tables of the Auto classes, which model takes labels: ours are added to them.
- `test_can_init_all_missing_weights` runs although no file is dated 2023 or later.
"""

import argparse
import sys
import types
import unittest
import unittest.mock
import warnings
from pathlib import Path

import torch
import transformers
import transformers.testing_utils
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from transformers.models.auto import modeling_auto

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification, ViTScratchModel

SIZES = {
    "image_size": 30,
    "patch_size": 2,
    "num_channels": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
# Fields that ViT does not have, all away from their defaults.
OPTIONS = {
    "position_embedding": "sincos2d",
    "pooling": "mean",
    "stem": "conv",
    "drop_path_rate": 0.1,
    "initializer_range": 0.0,
}
# Passed by ViT and skipped by ours: the tests of transformers' table that renames the weights of old checkpoints. ViT
# is in it, since its parameters had other names once; ours have not.
NOT_OURS = {"test_can_load_from_already_mapped_keys", "test_reverse_loading_mapping"}
# Stands in for the table of the same name in transformers' tests/utils/test_configuration_utils.py, not shipped.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "zero", 1: "one", 2: "two"},
    "label2id": {"zero": 0, "one": 1, "two": 2},
    "problem_type": "regression",
}


def import_transformers_tests(source: Path) -> tuple[type, type]:
    """`ModelTesterMixin` and `ConfigTester` of an unpacked source distribution; what it lacks is replaced by stubs."""
    package = "transformers_tests"  # not "tests", which is this folder too
    stubs = {
        package: {"__path__": [str(source / "tests")]},
        f"{package}.exporters": {"__path__": []},
        f"{package}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{package}.generation": {"__path__": []},
        f"{package}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        f"{package}.utils": {"__path__": []},
        f"{package}.utils.test_configuration_utils": {"config_common_kwargs": CONFIG_COMMON_KWARGS},
    }
    for name, attributes in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    # It imports tests/__init__.py, not shipped either, for a name that it never uses.
    with unittest.mock.patch("transformers.utils.direct_transformers_import"):
        from transformers_tests.test_configuration_common import ConfigTester
    from transformers_tests.test_modeling_common import ModelTesterMixin

    return ModelTesterMixin, ConfigTester


class ModelTester:
    """What the mixin asks for: a small config, inputs, and their sizes."""

    is_training = True
    batch_size = 13

    def __init__(self, config_class: type, **fields):
        self.config_class = config_class
        self.fields = {**SIZES, **fields}
        vars(self).update(self.fields)
        patches = (self.image_size // self.patch_size) ** 2
        self.seq_length = patches + (self.fields.get("pooling", "cls") == "cls")
        self.num_masks, self.mask_length = self.seq_length // 2, patches  # for ViTForMaskedImageModeling

    def get_config(self):
        return self.config_class(**self.fields, attn_implementation="eager")

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.rand(shape, device=transformers.testing_utils.torch_device)}


def make_test_case(mixin: type, config_tester: type, name: str, classes: tuple, config_class: type, **fields) -> type:
    """A test case of the common tests for `classes` with a config of `SIZES` and `fields`."""

    class TestCase(mixin, unittest.TestCase):
        all_model_classes = classes
        test_resize_embeddings = False
        test_can_init_all_missing_weights_before_2023 = True

        def setUp(self):
            self.model_tester = ModelTester(config_class, **fields)

        def test_config(self):
            # Transformers' own test has hidden_size 37 here; that fits no number of heads, and ours refuses it.
            config_tester(
                self, config_class=config_class, has_text_modality=False, hidden_size=36, num_attention_heads=3
            ).run_common_tests()

        def test_model_get_set_embeddings(self):
            for model_class in self.all_model_classes:
                model = model_class(self.model_tester.get_config())
                self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
                head = model.get_output_embeddings()
                self.assertTrue(head is None or isinstance(head, torch.nn.Linear))

    TestCase.__name__ = TestCase.__qualname__ = name
    return TestCase


class Outcomes(unittest.TestResult):
    """For each test its worst outcome, of "passed", "skipped" and "failed", and the reason or traceback."""

    def __init__(self, verbose: bool):
        super().__init__()
        self.verbose = verbose
        self.outcomes: dict[str, tuple[str, str]] = {}

    def record(self, test: unittest.TestCase, outcome: str, reason: str = ""):
        name = getattr(test, "test_case", test)._testMethodName  # the test that a subtest belongs to
        order = ("passed", "skipped", "failed")
        if name not in self.outcomes or order.index(outcome) > order.index(self.outcomes[name][0]):
            self.outcomes[name] = (outcome, reason)

    def stopTest(self, test):
        super().stopTest(test)
        if self.verbose:
            print(
                f"{type(test).__name__} {test._testMethodName}: {self.outcomes[test._testMethodName][0]}", flush=True
            )

    def addSuccess(self, test):
        self.record(test, "passed")

    def addSkip(self, test, reason):
        self.record(test, "skipped", reason)

    def addFailure(self, test, error):
        self.record(test, "failed", self._exc_info_to_string(error, getattr(test, "test_case", test)))

    addError = addFailure

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.addFailure(test, error)


def report(results: dict[str, dict[str, tuple[str, str]]]) -> bool:
    """Print the tables; True where each of ours passes all that ViT passes, and fails nothing."""
    columns = list(results)
    names = sorted({name for outcomes in results.values() for name in outcomes})
    print(f"\n{'':24}" + "".join(f"{outcome:>10}" for outcome in ("passed", "failed", "skipped")))
    for column in columns:
        kinds = [outcome for outcome, _ in results[column].values()]
        print(f"{column:24}" + "".join(f"{kinds.count(kind):10}" for kind in ("passed", "failed", "skipped")))

    differing = [name for name in names if len({results[column][name][0] for column in columns}) > 1]
    print(f"\ntests whose outcome differs: {len(differing) or 'none'}")
    for name in differing:
        print(f"  {name}: " + ", ".join(f"{column} {results[column][name][0]}" for column in columns))
        for column in columns:
            outcome, reason = results[column][name]
            if outcome == "skipped":
                print(f"    {column}: {reason}")

    for column in columns:
        failed = {name: reason for name, (outcome, reason) in results[column].items() if outcome == "failed"}
        print(f"\n{column}: failed {len(failed) or 'none'}")
        for name, reason in failed.items():
            print(f"  {name}\n    " + reason.strip().replace("\n", "\n    "))

    for column in columns:
        by_reason: dict[str, list[str]] = {}
        for name, (outcome, reason) in results[column].items():
            if outcome == "skipped":
                by_reason.setdefault(" ".join(reason.split()), []).append(name)
        print(f"\n{column}: skipped {sum(map(len, by_reason.values())) or 'none'}")
        for reason, skipped in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            print(f"  {reason}\n    " + "\n    ".join(sorted(skipped)))

    reference, *ours = columns
    return all(
        results[column][name][0] == "passed"
        or (results[column][name][0] == "skipped" and (results[reference][name][0] != "passed" or name in NOT_OURS))
        for column in ours
        for name in names
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the unpacked source distribution of transformers")
    parser.add_argument("-k", dest="part", default="", help="run only the tests with this in their name")
    parser.add_argument("-v", dest="verbose", action="store_true", help="print each test as it ends")
    arguments = parser.parse_args()
    init_file = arguments.source / "src" / "transformers" / "__init__.py"
    if not init_file.exists() or f'__version__ = "{transformers.__version__}"' not in init_file.read_text():
        parser.error(f"{arguments.source} is not the source distribution of transformers {transformers.__version__}")

    warnings.simplefilter("ignore")
    mixin, config_tester = import_transformers_tests(arguments.source)
    modeling_auto.MODEL_MAPPING_NAMES[ViTScratchConfig.model_type] = ViTScratchModel.__name__
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[ViTScratchConfig.model_type] = (
        ViTScratchForImageClassification.__name__
    )
    ours = (ViTScratchModel, ViTScratchForImageClassification)
    theirs = (ViTModel, ViTForImageClassification, ViTForMaskedImageModeling)
    cases = {
        "ViT": make_test_case(mixin, config_tester, "ViT", theirs, ViTConfig, encoder_stride=2),
        "ViTScratch": make_test_case(mixin, config_tester, "ViTScratch", ours, ViTScratchConfig),
        "ViTScratch, options": make_test_case(
            mixin, config_tester, "ViTScratchOptions", ours, ViTScratchConfig, **OPTIONS
        ),
    }
    results = {}
    for column, case in cases.items():
        names = [name for name in unittest.TestLoader().getTestCaseNames(case) if arguments.part in name]
        outcomes = Outcomes(arguments.verbose)
        unittest.TestSuite(map(case, names)).run(outcomes)
        results[column] = outcomes.outcomes
    sys.exit(0 if report(results) else 1)


if __name__ == "__main__":
    main()
