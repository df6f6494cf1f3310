"""Kinds of golden files whose features are not built yet: listed as `not built`, never as passed."""

from __future__ import annotations

from parity_common import Kind

KINDS: tuple[Kind, ...] = (
    Kind("PASS vision transformer (IRM)", r"e_passvit_.*\.npz"),
    Kind("dual attention (IRM)", r"f_dualattn_.*\.npz"),
    Kind("cross-modal BERT (IRM)", r"g_xbert_.*\.npz"),
    Kind("full model, evaluation (IRM)", r"j_irm_eval_.*\.npz"),
    Kind("position embeddings (IRM)", r"l_posembed_.*\.npz"),
    Kind("editing attention (IRM)", r"n_editing_attn_.*\.npz"),
    Kind("key shapes (IRM)", r"key_shapes_full_size\.txt"),
)
