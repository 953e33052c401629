"""One step of an LSTM, GRU or RNN for a block of batch rows and a vector of hidden units."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from schedules import nest
from schedules.interface import Op, PrimExpr, Step
from schedules.nest import Buffer, Stmt
from schedules.product import cast, ceildiv
from schedules.scalar import evaluate
from schedules.scalar_values import like
from schedules.tile import Tile, accumulate

CHAINS = 8  # accumulators that hide the latency of a multiply-add
LSTM_I, LSTM_O, LSTM_F, LSTM_C = range(4)
GRU_Z, GRU_R, GRU_H = range(3)

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
# Which activation opens each gate, in the order of the gates.
_OPENED_BY = {"lstm": (0, 0, 0, 1), "gru": (0, 0, 1), "rnn": (0,)}

Inputs = Callable[[int, PrimExpr, PrimExpr, PrimExpr], PrimExpr]
"""(gate, row of the block, lane, hidden unit) → what the gate takes from the inputs and biases."""
State = Callable[[PrimExpr, PrimExpr], PrimExpr]
"""(row of the block, hidden unit) → an element of the state."""
Keep = Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt]
"""(value, row of the block, hidden unit) → the statement that keeps the value."""


@dataclass(frozen=True)
class Block:
    """What is computed at once: `rows` of the batch from `row`, the `units` of one panel."""

    row: PrimExpr
    rows: int
    panel: PrimExpr
    units: int


@dataclass(frozen=True)
class Activation:
    """A nonlinearity by its ONNX name in lower case; alpha and beta where it has them."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def of(self, x: PrimExpr) -> PrimExpr:
        """Its value at x."""
        if self.name == "affine":
            return x * like(self.alpha, x) + like(self.beta, x)
        if self.name == "scaledtanh":
            return _step("tanh", x * like(self.beta, x)) * like(self.alpha, x)
        named = {
            "leakyrelu": "leaky_relu",
            "thresholdedrelu": "thresholded_relu",
            "hardsigmoid": "hard_sigmoid",
        }
        return _step(named.get(self.name, self.name), x, alpha=self.alpha, beta=self.beta)


@dataclass(frozen=True)
class Rules:
    """How a cell differs from the plain one of its kind, as the ONNX operators define it.

    activations: ONNX's f, g, h (LSTM), f, g (GRU) or f (RNN). clip: bound of what the gates'
    activations take; 0 for none. input_forget: the forget gate is 1 − input gate. reset_after: a
    GRU's linear_before_reset.
    """

    kind: str
    activations: tuple[Activation, ...]
    clip: float
    input_forget: bool
    reset_after: bool

    @classmethod
    def of(cls, op: Op) -> Rules:
        """The rules of an op; attributes that are not given mean the plain cell."""
        attrs = dict(op.attrs)
        given: tuple[tuple[str, float, float], ...] = attrs.get("activations", ())  # type: ignore[assignment]
        plain = tuple(Activation(name) for name in _DEFAULTS[op.kind])
        return cls(
            op.kind,
            tuple(Activation(*each) for each in given) or plain,
            float(attrs.get("clip", 0.0)),  # type: ignore[arg-type]
            bool(attrs.get("input_forget", False)),
            bool(attrs.get("linear_before_reset", False)),
        )

    def open(self, gate: int, value: PrimExpr) -> PrimExpr:
        """A gate from what it takes."""
        if self.clip > 0:
            value = _step("clip", value, min=-self.clip, max=self.clip)
        return self.activations[_OPENED_BY[self.kind][gate]].of(value)


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: its sizes, and where its packed weights and its biases lie.

    recurrent: [panels, hidden, gates · lanes], as packed by GatePanels. bias: [2 · gates · hidden].
    peepholes: [3 · hidden] for the gates i, o, f of an LSTM, or None.
    """

    rules: Rules
    hidden: int
    lanes: int
    dtype: str
    recurrent: Buffer
    bias: Buffer
    peepholes: Buffer | None = None

    @property
    def gates(self) -> int:
        return GATES[self.rules.kind]

    @property
    def reset_after(self) -> bool:
        return self.rules.reset_after

    @property
    def panels(self) -> int:
        return ceildiv(self.hidden, self.lanes)

    def each_panel(self, body: Callable[[PrimExpr, int], Stmt]) -> Stmt:
        """`body` of every panel and the number of its units."""
        last = body(nest.integer(self.panels - 1), self.hidden - (self.panels - 1) * self.lanes)
        if self.panels == 1:
            return last
        others = nest.serial(self.panels - 1, lambda p: body(p, self.lanes), name="panel")
        return nest.sequence(others, last)

    def one_panel(self, panel: PrimExpr, body: Callable[[PrimExpr, int], Stmt]) -> Stmt:
        """`body` of a panel and the number of its units."""
        units = self.hidden - (self.panels - 1) * self.lanes
        if units == self.lanes:
            return body(panel, self.lanes)
        last = body(nest.integer(self.panels - 1), units)
        if self.panels == 1:
            return last
        return nest.branch(panel < self.panels - 1, body(panel, self.lanes), last)

    def units(self, at: Block, body: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        """`body` of every (row of the block, lane, hidden unit)."""
        return nest.serial(
            at.rows,
            lambda i: nest.vectorized(at.units, lambda u: body(i, u, at.panel * self.lanes + u)),
        )

    def bias_of(self, gate: int, unit: PrimExpr) -> PrimExpr:
        """Both biases of a gate; the input's alone where the other is added before the reset."""
        own = cast(nest.read(self.bias, unit + gate * self.hidden), self.dtype)
        if self.reset_after and gate == GRU_H:
            return own
        return own + self.recurrent_bias(gate, unit)

    def recurrent_bias(self, gate: int, unit: PrimExpr) -> PrimExpr:
        """The second bias of a gate."""
        return cast(nest.read(self.bias, unit + (self.gates + gate) * self.hidden), self.dtype)

    def sums(
        self, at: Block, left: State, depth: int, weights: Buffer, first: int, result: Buffer
    ) -> Stmt:
        """result[row, gate · lanes + lane] = left · weights for the gates from `first`."""
        tile = Tile(at.rows, int(result.ty.shape[1]) // self.lanes, self.lanes)
        chains = max(1, min(CHAINS // (at.rows * tile.vectors), depth))
        return accumulate(
            tile,
            depth,
            left,
            lambda k, j: cast(nest.read(weights, at.panel, k, j + first * self.lanes), self.dtype),
            self.dtype,
            result,
            chains,
        )

    def gate_buffer(self, at: Block, count: int) -> Buffer:
        """Memory for `count` gates of a block."""
        return nest.buffer((at.rows, count * self.lanes), self.dtype, "gate", "local")

    def open_gates(
        self,
        at: Block,
        gate: Buffer,
        inputs: Inputs,
        gates: Iterable[int],
        first: int = 0,
        state: State | None = None,
    ) -> Stmt:
        """gate = activation(inputs + gate) for the gates; `first` is that in column 0.

        `state` is the cell state that peepholes show to the gate.
        """

        def one(index: int) -> Stmt:
            def body(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
                column = u + (index - first) * self.lanes
                value = inputs(index, i, u, j) + nest.read(gate, i, column)
                if state is not None:
                    weight = nest.read(self.peepholes, j + index * self.hidden)
                    value = value + cast(weight, self.dtype) * state(i, j)
                return nest.write(gate, self.rules.open(index, value), i, column)

            return self.units(at, body)

        return nest.sequence(*[one(index) for index in gates])

    def lstm(
        self, at: Block, inputs: Inputs, h: State, c: State, keep_h: Keep, keep_c: Keep
    ) -> Stmt:
        """A step of an LSTM."""
        gate = self.gate_buffer(at, 4)
        forgets = () if self.rules.input_forget else (LSTM_F,)
        squash = self.rules.activations[2]

        def read(index: int, i: PrimExpr, u: PrimExpr) -> PrimExpr:
            return nest.read(gate, i, u + index * self.lanes)

        def forget(i: PrimExpr, u: PrimExpr) -> PrimExpr:
            if not self.rules.input_forget:
                return read(LSTM_F, i, u)
            return like(1, read(LSTM_I, i, u)) - read(LSTM_I, i, u)

        def cell(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
            value = forget(i, u) * c(i, j) + read(LSTM_I, i, u) * read(LSTM_C, i, u)
            return nest.write(gate, value, i, u + LSTM_C * self.lanes)

        def out(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
            value = read(LSTM_O, i, u) * squash.of(read(LSTM_C, i, u))
            return nest.write(gate, value, i, u + LSTM_O * self.lanes)

        def new(i: PrimExpr, j: PrimExpr) -> PrimExpr:
            return read(LSTM_C, i, j - at.panel * self.lanes)

        if self.peepholes is None:
            before = self.open_gates(at, gate, inputs, (LSTM_I, LSTM_O, *forgets, LSTM_C))
            after = None
        else:
            before = nest.sequence(
                self.open_gates(at, gate, inputs, (LSTM_I, *forgets), state=c),
                self.open_gates(at, gate, inputs, (LSTM_C,)),
            )
            # The output gate looks at the new cell state.
            after = self.open_gates(at, gate, inputs, (LSTM_O,), state=new)
        return nest.sequence(
            nest.allocate(gate),
            self.sums(at, h, self.hidden, self.recurrent, 0, gate),
            before,
            self.units(at, cell),
            after,
            self.units(at, lambda i, u, j: keep_c(read(LSTM_C, i, u), i, j)),
            self.units(at, out),
            self.units(at, lambda i, u, j: keep_h(read(LSTM_O, i, u), i, j)),
        )

    def rnn(self, at: Block, inputs: Inputs, h: State, keep_h: Keep) -> Stmt:
        """A step of an RNN."""
        gate = self.gate_buffer(at, 1)
        return nest.sequence(
            nest.allocate(gate),
            self.sums(at, h, self.hidden, self.recurrent, 0, gate),
            self.open_gates(at, gate, inputs, (0,)),
            self.units(at, lambda i, u, j: keep_h(nest.read(gate, i, u), i, j)),
        )

    def gru_after(self, at: Block, inputs: Inputs, h: State, keep_h: Keep) -> Stmt:
        """A step of a GRU that resets after the product (linear_before_reset)."""
        gate = self.gate_buffer(at, 3)
        new = GRU_H * self.lanes

        def reset(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
            value = nest.read(gate, i, u + new) + self.recurrent_bias(GRU_H, j)
            return nest.write(gate, nest.read(gate, i, u + GRU_R * self.lanes) * value, i, u + new)

        return nest.sequence(
            nest.allocate(gate),
            self.sums(at, h, self.hidden, self.recurrent, 0, gate),
            self.open_gates(at, gate, inputs, (GRU_Z, GRU_R)),
            self.units(at, reset),
            # Only the candidate's gate is left to open.
            self.open_gates(at, gate, inputs, (GRU_H,)),
            self._mix(at, gate, new, lambda i, u, j: nest.read(gate, i, u), h, keep_h),
        )

    def gru_gates(self, at: Block, inputs: Inputs, h: State, keep_z: Keep, keep_rh: Keep) -> Stmt:
        """First half of a step of a GRU that resets before the product: z and r · h."""
        gate = self.gate_buffer(at, 2)

        def reset(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
            return keep_rh(nest.read(gate, i, u + self.lanes) * h(i, j), i, j)

        return nest.sequence(
            nest.allocate(gate),
            self.sums(at, h, self.hidden, self.recurrent, GRU_Z, gate),
            self.open_gates(at, gate, inputs, (GRU_Z, GRU_R)),
            self.units(at, lambda i, u, j: keep_z(nest.read(gate, i, u), i, j)),
            self.units(at, reset),
        )

    def gru_before(
        self, at: Block, inputs: Inputs, h: State, z: State, rh: State, keep_h: Keep
    ) -> Stmt:
        """Second half of that step: the candidate and the new state."""
        gate = self.gate_buffer(at, 1)
        return nest.sequence(
            nest.allocate(gate),
            self.sums(at, rh, self.hidden, self.recurrent, GRU_H, gate),
            self.open_gates(at, gate, inputs, (GRU_H,), GRU_H),
            self._mix(at, gate, 0, lambda i, u, j: z(i, j), h, keep_h),
        )

    def _mix(
        self,
        at: Block,
        gate: Buffer,
        column: int,
        z: Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr],
        h: State,
        keep_h: Keep,
    ) -> Stmt:
        """h = z · h + (1 − z) · candidate, which stands in `gate` from `column`."""

        def body(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
            new = nest.read(gate, i, u + column)
            return nest.write(gate, new + z(i, u, j) * (h(i, j) - new), i, u + column)

        return nest.sequence(
            self.units(at, body),
            self.units(at, lambda i, u, j: keep_h(nest.read(gate, i, u + column), i, j)),
        )


def _step(name: str, value: PrimExpr, **attrs: float) -> PrimExpr:
    return evaluate(Step(name, (0,), tuple(attrs.items())), [value])
