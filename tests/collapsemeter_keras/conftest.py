"""One backend a run, asked for by name: a missing one fails here and is never skipped."""

from __future__ import annotations

import importlib
import os

import pytest

BACKENDS = ("tensorflow", "jax", "torch")
# Nearly all of the time goes into compiling. An XLA_FLAGS from outside replaces this: nightly compiles as users do.
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
NOISE = (
    # Where counting breaks a compiled graph, PyTorch looks at `.grad` of the tensors that cross.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    # Keras' variables answer NumPy's `copy=` the old way; nothing of ours.
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",
)

# What no backend has a part in: which layers are chosen, what errors say, where reports go. It runs by default
# on PyTorch, which compiles nothing; nightly runs it on all three.
ONE_BACKEND = {
    "batch": [
        "test_frozen_weights_give_the_moments_of_the_data",
        "test_blocks_that_are_not_one_forward",
        "test_a_block_needs_a_model_and_a_stream_that_there_is",
    ],
    "conformance": [
        "test_conformance[head_declared_first]",
        "test_conformance[layers_declared_in_reverse]",
        "test_conformance[two_heads]",
        "test_conformance[functional_tail]",
        "test_conformance[a_repeated_layer]",
    ],
    "faults": [
        "test_layers_inside_a_loop_or_a_wrapper_are_refused",
        "test_several_outputs_of_which_none_is_the_classifier",
        "test_labels_that_are_mostly_mixtures_have_no_number",
        "test_targets_that_do_not_fit_the_scores",
        "test_what_the_user_put_on_an_instance_stays",
        "test_what_evaluate_returns_stays",
    ],
    "jobs": ["test_the_example_runs"],
    "life": [
        "test_copies_are_not_watched",
        "test_checkpoints_and_backups",
        "test_states_of_something_else_are_refused",
        "test_moments_merge_to_the_whole",
    ],
    "meter": [
        "test_networks_of_many_kinds",
        "test_layers_by_pattern_predicate_and_reasons",
        "test_choices_that_do_not_fit_the_model",
        "test_choices_that_do_not_exist",
        "test_a_head_that_has_no_weight_for_each_class",
        "test_logs_reach_history_csv_and_early_stopping",
        "test_sinks_keep_the_streams_apart",
        "test_sinks_by_stream",
        "test_a_sink_that_fails_leaves_training_alone",
        "test_data_that_is_none",
    ],
    "mixed_labels": [
        "test_rows_have_the_class_of_their_largest_part",
        "test_they_are_left_out_otherwise",
    ],
    "mistakes": [
        "test_options_that_do_not_fit_repeat_what_was_passed",
        "test_names_of_metrics_and_layers_that_are_close_to_one_are_asked_about",
        "test_a_model_in_the_place_of_the_layers_is_told_where_it_belongs",
        "test_the_state_of_another_meter_names_both_sides_and_loads_nothing",
        "test_what_is_no_state_is_named",
    ],
    "callback_order": [
        "test_early_stopping_before_the_meter",
        "test_a_lower_learning_rate_and_a_checkpoint_before_the_meter",
        "test_a_csv_file_before_the_meter_has_its_columns",
        "test_others_keep_their_places_and_are_all_told",
        "test_weights_that_are_swapped_between_are_the_users_to_order",
    ],
    "observe": [
        "test_a_model_that_changed_is_studied_again",
        "test_a_pass_leaves_compiled_steps_and_another_models_fit_alone",
    ],
    "study": [
        "test_the_head_is_the_layer_that_makes_the_scores",
        "test_the_order_of_init_changes_no_digit",
        "test_sums_by_operators_are_points_and_branches_are_not",
        "test_cells_that_read_the_two_before_them_are_layers",
        "test_wrappers_and_attention_are_one_layer",
        "test_many_points_are_spread_over_the_depth",
        "test_a_head_with_a_callable_that_takes_its_weight",
        "test_the_last_layer_has_a_name_in_the_logs_that_stays",
        "test_memory_is_a_budget_that_hidden_layers_keep",
        "test_the_operations_of_a_forward_are_two_for_each_product_of_a_weight",
        "test_the_operations_of_attention_are_those_of_its_four_maps",
        "test_the_operations_of_sequences_of_any_length_are_not_known",
    ],
}
# One of a kind that runs everywhere all the same.
EVERYWHERE = {
    "test_networks_of_many_kinds[residual]",
    "test_rows_have_the_class_of_their_largest_part[mixup]",
}


def pytest_configure(config: pytest.Config) -> None:
    backend = os.environ.get("KERAS_BACKEND")
    if backend not in BACKENDS:
        raise pytest.UsageError(
            f"KERAS_BACKEND={backend!r}: tests/keras runs once for each backend; set it to one of "
            f"{', '.join(BACKENDS)}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        importlib.import_module(backend)
        importlib.import_module("keras")
    except ImportError as error:
        raise pytest.UsageError(f"KERAS_BACKEND={backend} is not installed: {error}") from error
    for line in NOISE:
        config.addinivalue_line("filterwarnings", line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ["KERAS_BACKEND"] == "torch":
        return
    for item in items:
        part = item.path.stem.removeprefix("test_")
        names = {item.name, getattr(item, "originalname", item.name)}
        if names & {*ONE_BACKEND.get(part, ())} and not names & EVERYWHERE:
            item.add_marker(pytest.mark.nightly)


@pytest.fixture(autouse=True)
def _fresh_keras():
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)  # collecting garbage takes as long as a test


@pytest.fixture(scope="session")
def backend() -> str:
    return os.environ["KERAS_BACKEND"]
