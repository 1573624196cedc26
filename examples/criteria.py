"""Why nc1_pinv is no share of variance: class means at a simplex ETF, with noise in every direction."""

import numpy as np

import collapsemeter as cm

classes, width = 10, 512
rng = np.random.default_rng(0)
labels = np.arange(200 * classes) % classes
etf = cm.simplex_etf(classes, width)

print("noise  nc1_pinv  NC1")
for noise in (0.001, 0.005, 0.02, 0.07):
    rows = etf[labels] + noise * rng.standard_normal((len(labels), width))
    layer = cm.measure(cm.ClassMoments.from_batch(rows, labels, num_classes=classes))
    nc1 = cm.Criteria().judge(layer)["NC1"]
    print(f"{noise:5.3f}  {layer['nc1_pinv']:8.2g}  {nc1.band}: {nc1.words}")
