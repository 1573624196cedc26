"""A measured network beside a reference: another network, or an optimum that theory predicts.

compare   measure both sides alike and compare them layer by layer
sides     the two sides, and which layer stands for which
matching  the order of the classes that brings two Gram matrices together
result    what a comparison says: gaps, distances, tables, JSON
verdict   one sentence for a layer
"""
