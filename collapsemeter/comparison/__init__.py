"""A measured network beside a reference: another network, or an optimum that theory predicts.

compare    measure both sides alike and compare them layer by layer
sides      the two sides, and which layer stands for which
distances  what of two layers is compared
matching   the order of the classes that brings two Gram matrices together
verdict    one sentence for a layer
result     what a comparison says: gaps, distances, tables, JSON
"""
