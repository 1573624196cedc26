"""A measured network beside a reference: another network, or an optimum that theory predicts.

compare    what of two layers is compared: metrics, Gram matrices, spectra, scale, ranks
sides      both sides, measured alike, and which layer stands for which
matching   the order of the classes that brings two Gram matrices together
verdict    one sentence for a layer
result     what a comparison says: gaps, distances, JSON
layer_comparison   one layer beside the reference, as plain data
comparison_table   the same as text
"""
