"""The one list that says which passes run, in which order, and why."""

from __future__ import annotations

from graphopt.passes.absorb_shifts import AbsorbShifts
from graphopt.passes.activations import RecoverActivations
from graphopt.passes.arithmetic import CanonicalizeArithmetic, MergeConstantChains
from graphopt.passes.attention import RecoverAttention
from graphopt.passes.attention_heads import AbsorbHeadTransposes
from graphopt.passes.base import Pass
from graphopt.passes.byte_functions import TabulateBytes
from graphopt.passes.cleanup import FoldConstants, MergeCommonSubexpressions, RemoveDeadCode
from graphopt.passes.dequantize_moves import SinkDequantize
from graphopt.passes.fold_affine import FoldAffine
from graphopt.passes.fold_dequantized import FoldDequantized
from graphopt.passes.fold_padding import FoldPadding
from graphopt.passes.identities import RemoveIdentities
from graphopt.passes.integer_convolutions import IntegerConvolutions
from graphopt.passes.integer_products import IntegerProducts
from graphopt.passes.integer_readers import ReadIntegers
from graphopt.passes.keep_halves import KeepHalves
from graphopt.passes.normalizations import RecoverNormalizations
from graphopt.passes.packed_weights import PackWeights
from graphopt.passes.quantize_moves import HoistQuantize
from graphopt.passes.reciprocals import MultiplyByReciprocals
from graphopt.passes.reductions import CanonicalizeReductions
from graphopt.passes.signs import NormalizeSigns
from graphopt.passes.slices import SimplifySlices, SplitProjections
from graphopt.passes.transposed_operands import AbsorbTransposedOperands
from graphopt.passes.transposes import SimplifyTransposes
from graphopt.passes.views import CanonicalizeViews, HoistViews, SinkViews

PIPELINE: tuple[Pass, ...] = (
    RemoveDeadCode(),
    # Before every pattern: patterns ask for constants, and see through copies only here.
    FoldDequantized(weights=False),
    FoldConstants(),
    RemoveIdentities(),
    # One spelling each of arithmetic with constants, views and means, for the patterns below.
    CanonicalizeArithmetic(),
    CanonicalizeReductions(),
    CanonicalizeViews(),  # after the reductions, which leave views
    # Before recovery: exporters write x − mean(x) twice in a layer normalisation.
    MergeCommonSubexpressions(),
    # Before folding, which would move a factor of the pattern (½ of GELU) into weights.
    RecoverActivations(),
    # After the means; before attention, whose softmax may come in pieces.
    RecoverNormalizations(),
    # Before transposes: the one of the keys belongs to the pattern, and what attention needs of
    # it instead is left to cancel below.
    RecoverAttention(),
    # After recovery, whose results are single operators that a view can pass; before folding,
    # which looks for constants right behind a convolution.
    SinkViews(),
    CanonicalizeViews(),
    # After recovery, which owns the constants it matched; chains first, so that one addition
    # follows a convolution and one factor is folded.
    MergeConstantChains(),
    FoldPadding(),  # before shifts are folded: they ask how the convolution is padded
    # After the views, so that a bias is one addition right behind its product, and after the
    # recovery of attention, which expects transposes where these passes move them away.
    SinkDequantize(),
    HoistQuantize(),
    # After the moves, which have brought each dequantization to its user.
    NormalizeSigns(),
    IntegerConvolutions(),
    IntegerProducts(),
    FoldPadding(),  # in front of integer convolutions, as integers
    ReadIntegers(),
    TabulateBytes(),  # what integer kernels have left between quantizations
    MergeConstantChains(),  # a batch normalisation's factor and the scales of the sums in front
    MultiplyByReciprocals(),
    # After everything that could use weights as integers; before factors are folded into weights.
    PackWeights(),
    FoldDequantized(),
    FoldAffine(),
    MergeConstantChains(),  # batch normalisation and folded shifts have left new additions
    # Slices move to the front of views and transposes, where a fused QKV can be split by weight.
    SimplifySlices(),
    SplitProjections(),
    AbsorbShifts(),  # of the parts: what is shifted for a product is made so
    # After the slices, which stand between transposes that then compose.
    SimplifyTransposes(),
    # After the transposes: some have become views, and views that met are one.
    CanonicalizeViews(),
    HoistViews(),
    CanonicalizeViews(),
    SimplifyTransposes(),  # across views that have gone
    CanonicalizeViews(),  # joins those that moved in front of a transpose
    SinkViews(),  # and those that transposes have become
    CanonicalizeViews(),
    # When no transpose can move or cancel any more: what is left in front of attention stays.
    AbsorbHeadTransposes(),
    AbsorbTransposedOperands(),
    # What the passes above have left: constants in new places, equal bindings, no-ops.
    FoldConstants(),
    RemoveIdentities(),
    MergeCommonSubexpressions(),
)


def pipeline_of(halves: bool) -> tuple[Pass, ...]:
    """The passes for a target that does, or does not, compute with half-precision numbers."""
    # Last: no other pass expects convolutions whose result is wider than what they read.
    return (*PIPELINE, KeepHalves()) if halves else PIPELINE


# Deliberately absent. Parallel products of one input (Q, K, V) are not merged into one: the
# pieces would be cut out of the result again, a copy of every one of them, to save two launches
# of a fraction of a microsecond; SplitProjections does the reverse where a model comes merged.
# Squeeze-and-excite keeps its 1×1 convolutions on 1×1 maps: as products they would leave the
# blocked layout that the map they scale is in.
