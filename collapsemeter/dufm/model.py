"""The deep unconstrained features model as people state it: a problem that knows its closed forms."""

from .optimum import Optimum
from .problem import Problem
from .registry import survey


class DUFM(Problem):
    r"""A deep network on free features: the last layers of a network, idealised.

    .. math:: \frac{1}{N}\sum_i \mathrm{loss}(z_i, y_i) + \frac{\lambda_H}{2}\|H_1\|_F^2
              + \sum_{l=1}^{L} \frac{\lambda_l}{2}\|W_l\|_F^2,
              \qquad Z = W_L\,\sigma(W_{L-1} \cdots \sigma(W_1 H_1)) + b 1^T

    The squared loss is halved, :math:`\tfrac12\|z - y\|^2`. No activation acts on
    the features :math:`H_1` nor on the output. One layer is the classical model.

    Parameters
    ----------
    num_classes : int
        Number of classes, K, at least 2.
    per_class : int or sequence of int
        Samples per class, n, or one count per class.
    depth : int
        Number of weight matrices, L.
    widths : int or sequence of int, optional
        Dimension of layers 1 to L; by default ``max(32, 4 K)``, where descent from
        random starts tends to collapse.
    feature_decay : float
        :math:`\lambda_H`, positive.
    weight_decay : float or sequence of float
        :math:`\lambda_l`, positive; one for all layers or one per layer.
    loss : {"mse", "ce"}
        Squared loss, or softmax cross-entropy.
    bias : bool
        Whether the last layer has a bias b.
    bias_decay : float
        Its decay :math:`\lambda_b`; 0 leaves it free.
    activation : {"relu", "linear"}
        "linear" gives the deep linear model, a different problem with other optima.

    Raises
    ------
    ValueError
        If any of these is out of range; the message says what to pass.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> round(problem.canonical_decay, 10)
    0.0177827941
    >>> problem.optimum().name
    'dnc'
    """

    def references(self) -> tuple[Optimum, ...]:
        """All closed forms that apply to this problem, lowest loss first: upper bounds of its optimum."""
        return survey(self).optima

    def optimum(self) -> Optimum:
        """The lowest of `references`: the optimum if its `status` is "theorem", else a bound above."""
        return self.references()[0]
