"""The formula of every metric, in the notation of the papers, and what the conventions choose."""

from __future__ import annotations

NOTATION = (
    "N rows with a valid label, n_c of class c; C classes that are present; μ_c class means; "
    "m = (1/C) Σ_c μ_c; g = (1/N) Σ_i h_i; M has the rows μ_c − m (or μ_c − g); W, b the head; "
    "v_c = (1/n_c) Σ_{i∈c} |h_i − μ_c|²; S_W and S_B the within- and between-class scatter; "
    "⁺ Moore-Penrose; P = (I − 11ᵀ/C)/√(C−1), the Gram matrix of a simplex ETF; |·| the Frobenius or "
    "Euclidean norm."
)

FORMULAS = {
    "nc1_pinv": "tr(S_W S_B⁺)/C",
    "nc1_trace_ratio": "tr S_W / tr S_B",
    "nc1_cdnv": "mean over pairs of (v_a + v_b) / (2 |μ_a − μ_b|²)",
    "nc1_fuzziness": "tr(S_W S_B⁺), both weighted by rows (under he_su2023 by classes), about g",
    "nc1_vci": "1 − tr((S_B + S_W)⁺ S_B)/rank(S_B)",
    "nc2_equinorm": "std_c |μ_c − m| / mean_c, ddof = 1",
    "nc2_equiangular": "population std over pairs of cos(μ_a − m, μ_b − m)",
    "nc2_max_angle": "mean over pairs of |cos + 1/(C−1)|",
    "nc2_etf_error": "|G/|G| − P|, G = M Mᵀ",
    "nc2_of_error": "|G/|G| − I/√C|, G of the uncentred means",
    "gnc2_log_mean": "mean over pairs of −log|u_a − u_b|, u the unit rows of M",
    "gnc2_log_var": "population variance over pairs of −log|u_a − u_b|",
    "nc2_equinorm_head": "std_c |w_c| / mean_c, ddof = 1",
    "nc2_equiangular_head": "population std over pairs of cos(w_a, w_b)",
    "nc2_max_angle_head": "mean over pairs of |cos + 1/(C−1)|",
    "nc2_etf_error_head": "|G/|G| − P|, G = W Wᵀ",
    "nc3_self_duality": "|W/|W| − M/|M||²",
    "nc3_etf_error": "|W Mᵀ/|W Mᵀ| − P|",
    "nc3_cosine": "mean_c cos(w_c, μ_c − m)",
    "nc3_uniform": "variance over c (ddof = 1) of cos(w_c, μ_c − m)",
    "nc3_bias": "|W g + b|",
    "nc4_agreement": "share of rows with decision = argmin_c |h − μ_c|",
    "nc4_mismatch": "1 − nc4_agreement",
    "ncc_accuracy": "share of rows with label = argmin_c |h − μ_c|",
    "means_effective_rank": "exp of the entropy of the singular values of M",
    "means_stable_rank": "|M|² / s₁²",
    "features_effective_rank": "exp of the entropy of the eigenvalues of S_W + S_B",
    "means_condition": "s₁/s_C of the uncentred class means",
    "dnc3_sine": "norm-weighted mean sine of weight rows to the closest uncentred class mean",
    "weight_balance": "|A − B|/(|A| + |B|), A = λ_in W_in W_inᵀ, B = λ_out W_outᵀ W_out",
}

CONVENTIONS = (
    (
        "center",
        "the centre of M in NC1, NC2 and NC3: class (m) or sample (g)",
        "m: Papyan, Han & Donoho 2020, Wu & Papyan 2024; g: Zhu et al. 2021, Zhou et al. 2022, "
        "Rangamani et al. 2023",
    ),
    (
        "within",
        "S_W as sample, (1/N) Σ_i, or class, (1/C) Σ_c (1/n_c) Σ_{i∈c}",
        "class: He & Su 2023, balanced form",
    ),
    (
        "between",
        "S_B weighted by class (1/C) or sample (n_c/N)",
        "sample: He & Su 2023, imbalanced form",
    ),
    ("divide_by_classes", "whether nc1_pinv is divided by C", "not: He & Su 2023"),
    (
        "center_head",
        "whether the head's rows are centred over classes in NC3 and the _head metrics",
        "not: Papyan, Han & Donoho 2020, Zhu et al. 2021",
    ),
)

CITATIONS = (
    ("Papyan, Han & Donoho 2020", "https://doi.org/10.1073/pnas.2015509117"),
    ("Zhu et al. 2021", "https://arxiv.org/abs/2105.02375"),
    ("Galanti, György & Hutter 2021", "https://arxiv.org/abs/2112.15121"),
    ("Tirer & Bruna 2022", "https://arxiv.org/abs/2202.08087"),
    ("Ben-Shaul & Dekel 2022", "https://arxiv.org/abs/2201.08924"),
    ("He & Su 2023", "https://arxiv.org/abs/2210.17020"),
    ("Xu & Liu 2023", "https://arxiv.org/abs/2306.03440"),
    ("Liu et al. 2023", "https://arxiv.org/abs/2303.06484"),
    ("Súkeník, Mondelli & Lampert 2023", "https://arxiv.org/abs/2305.13165"),
    ("Súkeník, Lampert & Mondelli 2024", "https://arxiv.org/abs/2405.14468"),
    ("Wu & Papyan 2024", "https://arxiv.org/abs/2405.17767"),
)
