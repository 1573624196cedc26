"""Why a value is undefined: a value that cannot be given is NaN with one of these codes, never 0.0."""

REASONS: dict[str, str] = {
    "no_rows": "no labelled row was counted",
    "one_class": "only one class is present",
    "no_between_class_scatter": "all class means are equal",
    "class_mean_at_centre": "a class mean lies on the centre of the class means: it has no direction",
    "between_scatter_not_above_noise": "between-class scatter is not above noise: so few rows of a class have class means that "
    "differ as much",
    "no_within_class_scatter": "no row differs from its class's mean",
    "too_few_rows": "no class has rows enough to tell how much they vary",
    "reference": "this is a theory's optimum, in which there is no noise",
    "two_classes_trivial": "with two classes this is the same whatever the features (two centred vectors are "
    "opposite each other, and one pair has no spread): read nc2_of_error or nc3_cosine instead",
    "within_scatter_rank_deficient": "class means differ along directions in which no class varies (too few rows, "
    "or exact collapse): there the index is 0 whatever the data",
    "classes_of_one_size": "all classes have as many rows: nothing depends on their size",
    "class_means_of_one_norm": "all class means are as far from the centre: there is no correlation",
    "too_many_classes_for_seli": "a reference for classes of unequal size is made for 1,024 classes at most",
    "coincident_class_means": "two class means are equal",
    "coincident_directions": "two class means point in the same direction from the centre",
    "zero_class_mean": "a class mean is the zero vector: it has no direction",
    "rank_deficient_means": "the class means are linearly dependent: the smallest singular value is zero",
    "no_scatter": "only traces were kept for this layer: ask for scatter='pooled' to have a d x d scatter",
    "only_a_sketch": "the layer is too wide for a scatter, and its sketch gives quadratic forms only: ask "
    "for scatter='pooled' to have a d x d scatter, or for a narrower reduction",
    "needs_class_scatter": "classes differ in size and only the scatter of all rows (or its sketch) was kept: "
    "ask for scatter='class' to weight each class alike",
    "no_head": "no classifier head belongs to this layer",
    "sharded_head": "the head's weight is spread over processes, and was not gathered: compute() on every rank with "
    "sync=True gathers it",
    "no_single_head": "several maps make the scores together: there is no one weight to compare with",
    "scores_are_not_the_heads": "the scores are not what one map gives: they are adjusted, masked or normalised "
    "after it, or no map makes them",
    "no_logits": "the network's own decisions were not seen for these rows",
    "not_resubstitution": "the rows decided on are none of those that made the class means, or it was not recorded",
    "no_groups": "no groups of rows were kept: groups=0 was passed, memory= or so many classes and features do not "
    "afford them, or the state was written by an older version",
    "too_many_classes": "there are so many classes that pairs of them are not estimated",
    "too_many_classes_for_groups": "there are so many classes and features that groups of rows are not kept or compared",
    "too_few_rows_for_intervals": "fewer than fifteen rows beside one a class, fewer than four groups of them, or few rows in the classes whose means "
    "are noisiest, do not tell how much they spread",
    "classes_not_alike": "classes differ in size, and the estimate is of scatters that weight them alike about their mean: "
    "choose convention='papyan2020'",
    "estimate_not_above_noise": "the estimate is so near zero that noise alone may make it so",
    "few_components": "so few classes deviate in few ways: with so few rows the error of the square is as large as the square of random means, "
    "and its root would be several per cent off",
    "few_rows_and_features": "with so few rows a class and features noise may put two class means at one point: a mean of reciprocal distances "
    "would be several per cent off",
    "pairs_not_above_noise": "some class means are as near to each other, or to their centre, as noise alone puts them",
    "divides_by_noisy_directions": "it divides by the smallest directions of the class means, of which noise is a part "
    "that no correction takes out: read separation or nc1_vci_shrunk beside it",
    "no_defensible_estimate": "no correction of it is known whose error and interval hold",
    "share_of_rows": "it is a share of rows, of which there is an interval alone",
    "all_rows": "all rows were decided on: it is exact for them",
    "no_decisions": "no rows were kept to decide on",
    "no_incoming": "the weight matrices into and out of this layer were not given",
    "zero_weights": "the weight matrices into and out of this layer are zero",
    "zero_head": "the head's weight is zero, or once centred",
    "head_orthogonal_to_means": "the head's weight is orthogonal to every class mean",
    "nonfinite_head": "the head or weight matrix holds NaN, Inf or values beyond 1e75",
    "head_row_without_direction": "a row of the head's weight is zero: it has no direction",
    "nonfinite_statistics": "the statistics hold NaN or Inf (a non-finite row was propagated, or a sum overflowed)",
    "out_of_range": "values beyond 1e75, or below 1e-75 in all (1e19 and 1e-14 in sums of float32): their squares leave "
    "the range of floats",
    "float32_sums_displaced": "sums in float32 may have lost every digit of this, because the first rows of a class "
    "lie far from the rest or the scatter is nearly singular: call reset() after such rows, or use observe(), which "
    "sums in float64",
    "mixed_labels": "most labels name several classes or parts of them",
    "unpaired_rows": "no rule pairs the layer's output with the labels",
    "degraded": "the measurement of this layer failed during training",
    "never_fired": "the layer never ran on a labelled batch",
    "rows_missing": "the layer saw fewer label rows than were given",
    "rows_counted_twice": "the layer saw more label rows than were given",
}

FLAGS: dict[str, str] = {
    "etf_infeasible": "there are more classes than features + 1: no simplex ETF exists here",
    "at_dtype_floor": "rounding of the activations' own dtype makes up half of NC1 or more",
    "resubstitution": "the rows decided on made the class means, to which they are nearer than fresh rows would be: read "
    "ncc_accuracy_loo",
    "etf_is_generic": "the class means are no nearer to a simplex ETF than random ones of this width are",
    "absent_classes": "classes without a row are left out of every mean over classes",
    "single_sample_classes": "some classes have one row: their variance counts as zero",
    "nonfinite_rows": "rows that hold NaN or Inf were left out, or propagated if that was asked for",
    "float32_sums_displaced": "the first rows of a class lie far from the rest, so that rounding of sums in float32 "
    "may be more than 1% of a value: provenance float32_error has the bounds; observe() sums in float64",
    "unequal_classes": "classes differ in size, so that a simplex ETF is not the optimum of a network trained on them: with "
    "cross-entropy, vanishing weight decay and no ReLU on the features it is SELI, and nc2_seli_error is the distance to it",
    "unlabelled_rows": "rows whose one-hot label is all zeros were left out",
    "mixed_rows": "rows whose label names several classes, or parts of them, were left out",
}
"""The caution behind each flag of a layer; codes of `REASONS` are flags, too."""

LACKS_WEIGHT = ("no_head", "no_single_head", "scores_are_not_the_heads", "no_incoming")
"""Reasons that stay: the layer has no such weight, so the metric never comes."""


class Undefined(ArithmeticError):
    """A metric has no value here; ``code`` is a key of `REASONS`."""

    def __init__(self, code: str) -> None:
        super().__init__(REASONS[code])
        self.code = code


def require(condition: bool, code: str) -> None:
    """Raise `Undefined` with a code unless a condition holds."""
    if not condition:
        raise Undefined(code)
